"""The storage VSP: serves one opened channel from one thread.

Order, always: peek at a request, execute it, publish its completion, and only then release it. The request
ring is the journal: what was not released when this process died, its successor finds there and executes
again.
"""

import threading
from collections.abc import Mapping
from typing import Final

from bus.native import Channel, GpaMap, RingClosed, RingFull
from bus.packets import DESCRIPTOR_BYTES, TRAILER_BYTES, PacketFlags, PacketType
from partitions.storage._blockio import Server
from partitions.storage.backends import BlockBackend
from partitions.storage.executor import MAX_TRANSFER_BYTES, Executor
from partitions.storage.protocol import PACKET_BYTES
from partitions.storage.session import SessionState

BATCH_PACKETS: Final = 64  # peeked, executed, then released together
STOP_POLL_NS: Final = 100_000_000  # how late `stop` may be seen where nobody closes the channel
_COMPLETION_RING_BYTES: Final = DESCRIPTOR_BYTES + PACKET_BYTES + TRAILER_BYTES


class StorageVsp:
    """One opening of one storage channel. `serve` runs in one thread; the rest may be read from any."""

    def __init__(
        self,
        channel: Channel,
        gpa_map: GpaMap,
        backend: BlockBackend,
        *,
        serial: str = "0",
        max_transfer_bytes: int = MAX_TRANSFER_BYTES,
        saved: Mapping[str, object] | None = None,
        fast: bool = True,
    ) -> None:
        """One opening of one channel.

        Args:
            saved: the snapshot of a predecessor that served this same opening.
            fast: leave plain reads and writes to C, where the backend has a descriptor.

        Raises:
            SnapshotError: `saved` is none of ours.
        """
        self._channel = channel
        self._gpa_map = gpa_map
        self._executor = Executor(
            backend, gpa_map.views, serial=serial, max_transfer_bytes=max_transfer_bytes, saved=saved
        )
        self._fast: Server | None = None
        if fast and backend.descriptor is not None:
            self._fast = Server(
                channel,
                gpa_map,
                backend.descriptor,
                backend.size_bytes,
                backend.block_bytes,
                max_transfer_bytes,
                backend.read_only,
            )
        self.dropped = 0  # packets that are no request: a guest's mistake

    def serve(self, stop: threading.Event) -> None:
        """Until `stop` is set or the channel is closed on our side.

        Raises:
            RingCorrupt: the guest broke the ring; the channel is finished, its last request not released.
        """
        try:
            while not stop.is_set():
                for packet_type, flags, identity, extra, payload in self._next_packets():
                    answer = self._answer(packet_type, flags, extra, payload)
                    if answer is not None and not self._publish(answer, identity, stop):
                        return  # not released: a successor executes it again
                self._channel.release()
        except RingClosed:
            return

    def _next_packets(self) -> list[tuple[int, int, int, bytes, bytes]]:
        """What Python has to answer: all of it during the set-up, then only what the fast path leaves."""
        if self._fast is None or self._executor.session.state is not SessionState.READY:
            return self._channel.receive_batch(BATCH_PACKETS, STOP_POLL_NS)
        return self._channel.receive_batch(1, 0) if self._fast.serve(STOP_POLL_NS) else []

    def _answer(self, packet_type: int, flags: int, extra_header: bytes, payload: bytes) -> bytes | None:
        if packet_type not in (PacketType.INBAND, PacketType.GPA_DIRECT):
            self.dropped += 1
            return None
        answer = self._executor.execute(extra_header, payload)
        return answer if flags & PacketFlags.COMPLETION_REQUESTED else None

    def _publish(self, answer: bytes, identity: int, stop: threading.Event) -> bool:
        """False: told to stop while the guest left no room for its answer."""
        while True:
            try:
                self._channel.send_completion(answer, identity)
            except RingFull:
                if stop.is_set():
                    return False
                self._channel.wait_writable(_COMPLETION_RING_BYTES, STOP_POLL_NS)
            else:
                return True

    def snapshot(self) -> dict[str, int | str]:
        """What a successor's `saved` needs; changes only during the channel's set-up."""
        return self._executor.session.snapshot()

    def statistics(self) -> dict[str, int]:
        counters = self._executor.counters
        numbers = {name: getattr(counters, name) for name in counters.__slots__} | {"dropped": self.dropped}
        if self._fast is not None:
            fast = self._fast.statistics()
            for name, value in fast.items():
                numbers[name] += value
            numbers["requests"] += fast["reads"] + fast["writes"]
        return numbers
