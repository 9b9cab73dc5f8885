"""The storage VSP: serves one opened channel from one thread.

Order, always: peek at a request, execute it, publish its completion, and only then release it. The request
ring is the journal: what was not released when this process died, its successor finds there and executes
again.
"""

import threading
from collections.abc import Mapping
from typing import Final

from bus.native import Channel, GpaMap, RingClosed, RingError
from bus.packets import DESCRIPTOR_BYTES, TRAILER_BYTES, PacketFlags, PacketType
from bus.seam import Seam, Step
from partitions.faults.faulty_channel import beneath
from partitions.faults.faulty_pages import beneath as pages_beneath
from partitions.storage._blockio import DeviceLock, Forward, Relay, Server
from partitions.storage.backends import BlockBackend
from partitions.storage.executor import MAX_TRANSFER_BYTES, Executor
from partitions.storage.protocol import PACKET_BYTES
from partitions.storage.queues import ONLY_QUEUE, Queue, SubChannelRequests
from partitions.storage.session import SessionState, load_session, save_session

_COMPLETION_REQUESTED: Final = int(PacketFlags.COMPLETION_REQUESTED)  # a flag's operators are slow
_EXECUTING_AT: Final = 8  # bus/native/endpoint.h, struct endpoint_journal
_SESSION_AT: Final = 16
_RECORD_BYTES: Final = 20
REPLAYED_REQUESTS_MAX: Final = (
    256  # before the channel is served as ever; more than anybody has begun at once
)
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
        lock: DeviceLock | None = None,
        record: memoryview | None = None,
        seam: Seam | None = None,
        relay: Relay | Forward | None = None,
        turns: memoryview | None = None,
        queue: Queue = ONLY_QUEUE,
    ) -> None:
        """One opening of one channel.

        Args:
            saved: the snapshot of a predecessor that served this same opening.
            fast: leave plain reads and writes to C, where the backend has a descriptor or there is a relay.
            lock: the device's, where several channels are opened to it.
            record: memory that outlives this process, which `channel` has as its journal: byte 8 says that a
                batch is being executed, bytes 16 to 19 say how far the session has come.
            seam: where the process may be made to die; `channel` has the same.
            turns: of the record, where there is a Forward: what its requests are numbered by.
            relay: by which C reaches the backend's disk, where that is another server's.
            queue: which of the disk's channels this is.

        Raises:
            SnapshotError: `saved` is none of ours.
        """
        self._channel = channel
        self._gpa_map = gpa_map
        self._lock = DeviceLock() if lock is None else lock
        self._seam = Seam() if seam is None else seam
        self._record = memoryview(bytearray(_RECORD_BYTES)) if record is None else record
        if saved is None and record is not None:
            saved = load_session(record[_SESSION_AT:_RECORD_BYTES])
        self._executor = Executor(
            backend,
            gpa_map.views,
            serial=serial,
            max_transfer_bytes=max_transfer_bytes,
            saved=saved,
            queue=queue,
        )
        self.sub_channel_requests = SubChannelRequests(self._executor.session)
        self._fast: Server | None = None
        self._stays_here = beneath(channel) is not channel  # whoever wraps it wants to see each request
        if fast and (backend.descriptor is not None or relay is not None):
            self._fast = Server(
                beneath(channel),
                pages_beneath(gpa_map),
                -1 if backend.descriptor is None else backend.descriptor,
                backend.size_bytes,
                backend.block_bytes,
                max_transfer_bytes,
                backend.read_only,
                self._lock,
                relay,
                turns,
            )
        self._saved: tuple[object, ...] = ()  # what we wrote last of the session into the record
        self._holds_device = False
        self._owes_replay = False  # of a batch in whose midst a predecessor died
        self.waits_for_guest = False  # to take answers in: no fault of ours
        self.dropped = 0  # packets that are no request: a guest's mistake

    def serve(self, stop: threading.Event) -> None:
        """Until `stop` is set or the channel is closed on our side.

        Raises:
            RingCorrupt: the guest broke the ring; the channel is finished, its last request not released.
        """
        try:
            while not stop.is_set():
                for packet in self._next_packets():
                    if not self._wait_for_room(stop):
                        return  # not released: a successor executes it
                    self._serve(packet)
        except RingClosed:
            pass  # who closed it lets the device go, once nobody can see what we may have begun
        except RingError:  # nobody will execute again what we may have begun
            self.let_go()
            raise

    def _next_packets(self) -> list[tuple[int, int, int, bytes, bytes]]:
        """What Python has to answer: all of it during the set-up, then only what the fast path leaves."""
        if self._fast is None or self._stays_here or self._executor.session.state is not SessionState.READY:
            return self._channel.receive_batch(1, STOP_POLL_NS)
        try:
            left = self._fast.serve(STOP_POLL_NS)
        finally:
            # Until `_serve` has done what C began and could not do. No guest can keep us from that: C's own copies of
            # the indexes have the request, and room for its answer.
            self._holds_device = self._fast.holds_device
        return self._channel.receive_batch(1, 0) if left else []

    def _answer(self, packet_type: int, flags: int, extra_header: bytes, payload: bytes) -> bytes | None:
        if packet_type not in (PacketType.INBAND, PacketType.GPA_DIRECT):
            self.dropped += 1
            return None
        answer = self._executor.execute(extra_header, payload)
        return answer if flags & _COMPLETION_REQUESTED else None

    def _serve(self, packet: tuple[int, int, int, bytes, bytes]) -> None:
        """Execute, publish, release. There is room for the answer: the device is not held while a guest is slow."""
        packet_type, flags, identity, extra, payload = packet
        self._seam.passing(Step.TAKE)
        self._hold()
        try:
            self._record[_EXECUTING_AT] = 1
            if self._fast is None:  # nobody else asks the backend
                answer = self._answer(packet_type, flags, extra, payload)
            else:
                answer = self._answer_in_turn(self._fast, packet_type, flags, extra, payload)
            self._seam.passing(Step.EXECUTE)
            self._save_session()
            if answer is not None:
                self._channel.send_completion(answer, identity, ring=False)  # a guest can make ringing block
            self.sub_channel_requests.look()
            if not self._owes_replay:
                self._record[_EXECUTING_AT] = 0
        except RingClosed:  # by us: a successor may execute this again
            raise
        except RingError:  # the guest broke it: nobody will
            self.let_go()
            raise
        if not self._owes_replay:
            self.let_go()  # not after any other failure: our successor will, once it has executed this again
        self._channel.release()

    def _answer_in_turn(
        self, fast: Server, packet_type: int, flags: int, extra_header: bytes, payload: bytes
    ) -> bytes | None:
        fast.turn(True)
        try:
            return self._answer(packet_type, flags, extra_header, payload)
        finally:
            fast.turn(False)

    def _save_session(self) -> None:
        """Where anything of it has changed: it does so during the set-up alone."""
        session = self._executor.session
        says = (session.state, session.version, session.sub_channels)
        if says != self._saved:
            save_session(self._record[_SESSION_AT:_RECORD_BYTES], session)
            self._saved = says

    def _hold(self) -> None:
        if self._holds_device:
            return
        self._lock.__enter__()
        if (
            self._channel.is_closed
        ):  # who had the device before us may have let it go in the middle of a request
            self._lock.__exit__(None, None, None)
            raise RingClosed("closed before the device was ours")
        self._holds_device = True

    def inherit(self, failed: object) -> None:
        """Go on holding the device that a failed one on this channel held."""
        assert isinstance(failed, StorageVsp)
        self._holds_device, failed._holds_device = failed._holds_device, False

    def let_go(self) -> None:
        if self._holds_device:
            self._holds_device = False
            self._lock.__exit__(None, None, None)

    def _wait_for_room(self, stop: threading.Event) -> bool:
        """False: told to stop while the guest left no room for an answer."""
        if self._channel.wait_writable(_COMPLETION_RING_BYTES, 0):
            return True
        self.waits_for_guest = True
        try:
            while not self._channel.wait_writable(_COMPLETION_RING_BYTES, STOP_POLL_NS):
                if stop.is_set():
                    return False
        finally:
            self.waits_for_guest = False
        return True

    def replay(self) -> None:
        """Execute what the ring holds at this moment, in its order: a predecessor may have begun with it.

        A guest that asks for more meanwhile does not keep us here: a batch is smaller than REPLAYED_REQUESTS_MAX.
        Ends early where the guest leaves no room for answers; `serve` goes on there: a predecessor's batch had room
        for all of its answers. Until it is replayed as a whole its mark stands, so that whoever comes after us replays
        the rest of it before other channels, too. Raises RingCorrupt.
        """
        self._owes_replay = self._record[_EXECUTING_AT] != 0
        self._executor.session.replaying = True
        try:
            for _ in range(REPLAYED_REQUESTS_MAX):
                if not self._channel.wait_writable(_COMPLETION_RING_BYTES, 0):
                    break
                if not (packets := self._channel.receive_batch(1, 0)):
                    break
                self._serve(packets[0])
                self._executor.session.replaying = False
        except RingClosed:
            raise
        except RingError:
            self.let_go()
            raise
        finally:
            self._executor.session.replaying = False
            self._owes_replay = False
        self._record[_EXECUTING_AT] = 0  # not after a failure: whoever comes next has to know
        self.let_go()

    def snapshot(self) -> dict[str, int | str]:
        """What a successor's `saved` needs; changes only during the channel's set-up."""
        return self._executor.session.snapshot()

    def statistics(self) -> dict[str, int]:
        fast = {} if self._fast is None else self._fast.statistics()
        return self._executor.counters.statistics(self.dropped, fast)
