"""Where a simulated guest's channels are served: the root's ChannelHost, for the real GuestBus."""

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol
from uuid import UUID

from bus import guids
from bus.channel_messages import STATUS_SUCCESS
from bus.native import Channel, GpaMap
from bus.seam import Seam
from partitions.simulated.serving import RingParts, ServedRing
from partitions.stack.channel_host import ChannelHost, ChannelListener, Opening, OpenRequest
from partitions.stack.channel_ports import ChannelPorts, claim_doorbells, remove_ports
from partitions.stack.guest_memory import GuestMemory
from partitions.stack.served_channel import ServedChannel, Service, clear_record
from partitions.stack.stack_resources import RootResources
from partitions.stack.vmbus_ports import FlagAllocator, guest_channel_port, server_event_port
from runtime.abi import Route

MakeRing = Callable[[OpenRequest, RingParts, Callable[[str], None]], ServedRing]


class Bells(Protocol):
    def bell(self, partition: int, port: int) -> int: ...


class OfferedDisk:
    """A disk as a guest's bus knows it. `make_host` says where its channels are served."""

    interface: Final[UUID] = guids.SCSI

    def __init__(self, name: str, make_host: Callable[[ChannelListener], ChannelHost]) -> None:
        self.name, self._make_host = name, make_host

    def make_host(self, listener: ChannelListener) -> ChannelHost:
        return self._make_host(listener)

    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> Service:
        raise NotImplementedError("its host opens it")

    def close(self) -> None:
        pass


class RingHost:
    """Serves one guest's channels to one device in the process whose `make_ring` it is given."""

    def __init__(
        self, root: RootResources, listener: ChannelListener, bells: Bells, make_ring: MakeRing
    ) -> None:
        self._root, self._listener, self._bells, self._make_ring = root, listener, bells, make_ring
        self.memory = GuestMemory(root.hypercalls, root.windows, listener.partition)
        self.rings: Final[dict[int, ServedRing]] = {}

    def end(self) -> None:
        """Its process is gone."""
        self.memory.close_mappings()

    @property
    def flags(self) -> FlagAllocator:
        return self._root.flags

    def _ports(self, request: OpenRequest) -> ChannelPorts:
        root, guest = self._root, self._listener.partition
        flag = request.opening.flag
        return ChannelPorts(
            root.hypercalls, root.partition, guest, request.action, flag, Route.DIRECT, root.vp
        )

    def open(self, request: OpenRequest) -> int:
        ports = self._ports(request)
        with ports.made_anew():
            clear_record(self._root.record(ports.flag))
            self._attach(request, ports)
        self.serve(request.relid)
        return STATUS_SUCCESS

    def adopt(self, request: OpenRequest) -> None:
        self._attach(request, self._ports(request))

    def _attach(self, request: OpenRequest, ports: ChannelPorts) -> None:
        root, action = self._root, request.action
        doorbells = claim_doorbells(root.hypercalls, ports.flag, ports.route, silent=ports.silent)
        gpa_map = GpaMap()
        self.memory.add_slots(action.relid, gpa_map)
        parts = RingParts(
            doorbells,
            self.memory.rings(action.ring_gpadl, action.downstream_page_offset),
            root.record(ports.flag),
            gpa_map,
            self._bells.bell(self._listener.partition, guest_channel_port(action.relid)),
            self._bells.bell(root.partition, server_event_port(ports.flag)),
        )
        number = request.opening.number
        self.rings[action.relid] = self._make_ring(
            request, parts, lambda reason: self._listener.lost(action.relid, number, False, reason)
        )

    def waits_to_be_served(self, relid: int) -> bool:
        return relid in self.rings

    def was_executing(self, relid: int) -> bool:
        return self.rings[relid].was_executing

    def replay(self, relid: int) -> bool:
        return self.rings[relid].replay()

    def serve(self, relid: int) -> None:
        self.rings[relid].serve()

    def close(self, relid: int, opening: Opening) -> None:
        self._root.nursery.start_soon(self._close, relid, opening)

    async def _close(self, relid: int, opening: Opening) -> None:
        await self._root.sleep(0)
        if (ring := self.rings.pop(relid, None)) is not None:
            ring.close()
            ring.release()
        self.bury(relid, opening)
        self._listener.closed(relid, opening.number)

    def bury(self, relid: int, opening: Opening) -> None:
        root, guest = self._root, self._listener.partition
        remove_ports(root.hypercalls, root.partition, guest, relid, opening.connection_id, opening.flag)

    def find_stuck(self, stuck_ms: int) -> int | None:
        return next(
            (relid for relid, ring in self.rings.items() if ring.hangs_for_ns() >= stuck_ms * 1_000_000), None
        )

    def workers(self) -> Iterable[ServedChannel]:
        return ()

    def is_busy(self, relid: int) -> bool:
        return False

    def statistics(self, relid: int) -> dict[str, Any]:
        return {}
