"""One open channel on the serving side: its two event ports, its rings, and the thread that serves it."""

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from bus.channel_actions import OpenChannel
from bus.channel_messages import NO_INTERRUPT_VP
from bus.memory import PAGE_BYTES
from bus.native import Channel, GpaMap, RingError, Waiting
from bus.synic import VMBUS_SINT, page_flag
from partitions.vmbus_ports import FlagAllocator, guest_channel_port, root_event_port
from runtime.abi import HypercallError, PortType, Route
from runtime.hypercalls import HypercallPort

_ROOT_VP: Final = 0
JOIN_MS_MAX: Final = 5_000  # a backend call that takes longer keeps its thread; the thread ends with the call


class Service(Protocol):
    """A VSP on one opened channel."""

    def serve(self, stop: threading.Event) -> None:
        """Until `stop` is set or the channel is closed; RingCorrupt: the guest broke the ring."""

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
        hypercalls: HypercallPort,
        flags: FlagAllocator,
        guest: int,
        request: OpenChannel,
        rings: RingPlacement,
        *,
        root: int,
        route: Route,
        waiting: str,
        event_flags: memoryview,
    ) -> None:
        """Connect both directions of interrupts and map the rings. HypercallError, OSError: nothing is left behind.

        Args:
            event_flags: the SIEF page of the root's VP that the guest's signals go to.
        """
        self._hypercalls, self._guest, self._root, self.route = hypercalls, guest, root, route
        self._request, self._flags = request, flags
        self.relid: Final = request.relid
        with contextlib.ExitStack() as undo:
            self._flag = flags.take()
            undo.callback(flags.free, self._flag)
            wait_fd = self._open_inbound(undo)
            signal_fd = -1
            if request.target_vp != NO_INTERRUPT_VP:
                signal_fd = self._open_outbound(undo)
            offset = rings.downstream_page_offset * PAGE_BYTES
            self.channel: Final = Channel(
                rings.memory,
                outgoing_offset=offset,
                outgoing_bytes=len(rings.memory) - offset - PAGE_BYTES,
                incoming_offset=0,
                incoming_bytes=offset - PAGE_BYTES,
                signal_fd=signal_fd,
                wait_fd=wait_fd,
                waiting=Waiting(waiting),
                flags=event_flags if route == Route.BROKER else None,
                flag=page_flag(VMBUS_SINT, self._flag) if route == Route.BROKER else -1,
            )
            self._undo = undo.pop_all()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.service: Service | None = None
        self.failure: str | None = None  # why serving ended by itself

    def _open_inbound(self, undo: contextlib.ExitStack) -> int:
        """Guest -> root: a port of ours, a connection of the guest's with the id that its offer named."""
        port, call = root_event_port(self._flag), self._hypercalls
        call.create_port(
            port, self._guest, PortType.EVENT, VMBUS_SINT, _ROOT_VP, base_flag=self._flag, flag_count=1
        )
        undo.callback(_ignoring_refusal, call.delete_port, port)
        connection = self._request.connection_id
        call.connect_port(connection, self._root, port, partition=self._guest, route=self.route)
        undo.callback(_ignoring_refusal, call.disconnect_port, connection, self._guest)
        fd = call.claim_port_doorbell(port).fd
        undo.callback(os.close, fd)
        return fd

    def _open_outbound(self, undo: contextlib.ExitStack) -> int:
        """Root -> guest: a port of the guest's, at the VP and flag that it chose, and a connection of ours."""
        port, call = guest_channel_port(self.relid), self._hypercalls
        call.create_port(
            port,
            self._root,
            PortType.EVENT,
            VMBUS_SINT,
            self._request.target_vp,
            partition=self._guest,
            base_flag=self._request.event_flag,
            flag_count=1,
        )
        undo.callback(_ignoring_refusal, call.delete_port, port, self._guest)
        connection = root_event_port(self._flag)
        call.connect_port(connection, self._guest, port, route=self.route)
        undo.callback(_ignoring_refusal, call.disconnect_port, connection)
        fd = call.claim_connection_doorbell(connection).fd
        undo.callback(os.close, fd)
        return fd

    def start(self, service: Service, on_failure: Callable[[str], None]) -> None:
        """Serve in a thread of its own. `on_failure` is called from that thread when the guest broke the channel."""

        def run() -> None:
            try:
                service.serve(self._stop)
            except RingError as error:
                self.failure = f"{type(error).__name__}: {error}"
                on_failure(self.failure)

        self.service = service
        self._thread = threading.Thread(target=run, name=f"channel-{self._guest}.{self.relid}", daemon=True)
        self._thread.start()

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
        self._undo.close()

    def statistics(self) -> dict[str, int]:
        counters = self.channel.statistics()
        return counters | (self.service.statistics() if self.service is not None else {})


def _ignoring_refusal(call: Callable[..., None], *arguments: int) -> None:
    """Undoing what a dead guest has already taken with it is no error."""
    with contextlib.suppress(HypercallError):
        call(*arguments)


__all__ = ["GpaMap", "RingPlacement", "ServedChannel", "Service"]
