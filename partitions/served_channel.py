"""One open channel on the serving side: its rings, and the thread that serves it."""

import contextlib
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from bus.memory import PAGE_BYTES
from bus.native import Channel, RingError, Waiting
from bus.seam import Seam
from bus.synic import VMBUS_SINT, page_flag
from partitions.channel_ports import ChannelPorts
from runtime.abi import Route

_EXECUTING_AT: Final = 8  # in a channel record: non-zero while a batch is executed and not yet published
JOIN_MS_MAX: Final = 5_000  # a backend call that takes longer keeps its thread; the thread ends with the call


class Service(Protocol):
    """A VSP on one opened channel."""

    def replay(self) -> None:
        """Execute what the ring holds now; a predecessor may have begun with it."""

    def serve(self, stop: threading.Event) -> None:
        """Until `stop` is set or the channel is closed; RingCorrupt: the guest broke the ring."""

    @property
    def waits_for_guest(self) -> bool:
        """Whether it can't go on before the guest has taken answers in."""

    def statistics(self) -> dict[str, int]: ...


@dataclass(frozen=True, slots=True)
class RingPlacement:
    """Where the two rings stand in mapped memory."""

    memory: memoryview  # the pages of the ring GPADL, from its first one on
    downstream_page_offset: int

    def __post_init__(self) -> None:
        pages = len(self.memory) // PAGE_BYTES
        if not 2 <= self.downstream_page_offset <= pages - 2:
            raise ValueError(f"rings of {self.downstream_page_offset} and {pages} pages in all")


class ServedChannel:
    """Made when the guest opens, closed when it closes, is rescinded, or dies."""

    def __init__(
        self,
        ports: ChannelPorts,
        rings: RingPlacement,
        waiting: str,
        event_flags: memoryview,
        record: memoryview,
        seam: Seam,
    ) -> None:
        """On connected ports, which it owns from here on.

        Args:
            event_flags: the SIEF page of the root's VP that the guest's signals go to.
            record: this channel's in the saved state: where a predecessor stood, or all zero.
            seam: where this process may be made to die.
        """
        self.record: Final = record
        self.was_executing: Final = record[_EXECUTING_AT] != 0
        self._ports = ports
        offset = rings.downstream_page_offset * PAGE_BYTES
        by_flag = ports.route == Route.BROKER
        self.channel: Final = Channel(
            rings.memory,
            outgoing_offset=offset,
            outgoing_bytes=len(rings.memory) - offset - PAGE_BYTES,
            incoming_offset=0,
            incoming_bytes=offset - PAGE_BYTES,
            signal_fd=ports.signal_fd,
            wait_fd=ports.wait_fd,
            waiting=Waiting(waiting),
            flags=event_flags if by_flag else None,
            flag=page_flag(VMBUS_SINT, ports.flag) if by_flag else -1,
            journal=record,
            seam=seam.memory,
        )
        self._seen: tuple[int, float] = (0, time.monotonic())  # packets received, and since when
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._service: Service | None = None

    @property
    def is_prepared(self) -> bool:
        return self._service is not None

    def prepare(self, service: Service) -> None:
        self._service = service

    def replay(self) -> None:
        """Blocks until done. A ring that its guest broke is left for `start`, which finds the same."""
        assert self._service is not None
        with contextlib.suppress(RingError):
            self._service.replay()
        with contextlib.suppress(RingError):
            self.channel.kick()  # the predecessor may have died between publishing and signalling

    def start(self, name: str, on_failure: Callable[[str], None]) -> None:
        """Serve in a thread of its own. `on_failure` is called from that thread when the guest broke the channel.

        Or when the service itself failed: whatever a request of this guest does to it, nobody else is to pay for it.
        """
        service = self._service
        assert service is not None

        def run() -> None:
            try:
                service.serve(self._stop)
            except RingError as error:
                on_failure(f"{type(error).__name__}: {error}")
            except (
                Exception
            ) as error:  # a defect of ours or of a backend; the one who ran into it loses the channel
                traceback.print_exc()
                on_failure(f"the server failed: {type(error).__name__}: {error}")

        self._thread = threading.Thread(target=run, name=name, daemon=True)
        self._thread.start()

    def is_stuck(self, stuck_ms: int) -> bool:
        """Whether the ring has held work for so long without a packet leaving it, through no fault of the guest's."""
        received = self.channel.packets_received
        seen, since = self._seen
        now = time.monotonic()
        guests_turn = self._service is not None and self._service.waits_for_guest
        if received != seen or guests_turn or not self.channel.has_work:
            self._seen = (received, now)
            return False
        return now - since > stuck_ms / 1000

    def stop(self) -> bool:
        """End the thread; True once nothing touches rings or pages any more. Blocks up to JOIN_MS_MAX."""
        self._stop.set()
        self.channel.close()
        if self._thread is not None:
            self._thread.join(JOIN_MS_MAX / 1000)
            return not self._thread.is_alive()
        return True

    def release(self) -> None:
        """Give the ports and descriptors back. Only after `stop`."""
        self._ports.delete()

    def statistics(self) -> dict[str, int]:
        counters = self.channel.statistics()
        return counters | (self._service.statistics() if self._service is not None else {})


def clear_record(record: memoryview) -> None:
    """A new channel begins: whatever an older one of this flag left does not count."""
    record[:] = bytes(len(record))
