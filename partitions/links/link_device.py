"""A link: a direct channel between two children, made by their common parent, who then has no part in it.

Both open an offer of the parent's. The first in the config lends the pages: its rings are mapped into the other's GPA
space, and each gets a port that the other is connected to. That takes the parent's authority over both; neither child
can ask for it, or for more than this one slot. The parent itself maps nothing.

When either lets go, or dies, the other's end is revoked, and offered to it again after a while.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any, Final
from uuid import UUID

import trio

from bus.channel_messages import NO_INTERRUPT_VP, STATUS_FAILURE, STATUS_SUCCESS
from bus.native import Channel, GpaMap
from bus.seam import Seam
from bus.synic import VMBUS_SINT
from partitions.drivers.unserved_channels import UnservedChannels
from partitions.links.windows import LinkWindow, window_of
from partitions.machine_plan import DevicePlan
from partitions.stack.channel_host import ChannelListener, Opening, OpenRequest
from partitions.stack.guest_memory import GuestMemory
from partitions.stack.offered_device import OfferedDevice
from partitions.stack.served_channel import Service
from partitions.stack.stack_resources import RootResources
from partitions.stack.vmbus_ports import FlagAllocator, guest_channel_port
from runtime.abi import HypercallError, PortType

# Ours: Hyper-V has no such device.
LINK_INTERFACE: Final = UUID("8f6b1c52-4d3e-4b0a-9a51-6c696e6b0001")


class LinkDevice:
    """An OfferedDevice, and a HostedDevice."""

    interface: Final[UUID] = LINK_INTERFACE

    def __init__(self, plan: DevicePlan) -> None:
        """`bind` follows."""
        self.name = plan.name
        self.flags: Final = FlagAllocator()  # of openings; no SIEF page has them
        self._stack: RootResources | None = None
        self.between: tuple[str, ...] = ()  # partitions, the lender first
        self.places: tuple[int, ...] = ()  # which device of its partition the link is
        self.ids: dict[str, int] = {}
        self._sides: dict[str, LinkSide] = {}

    @property
    def stack(self) -> RootResources:
        assert self._stack is not None
        return self._stack

    def bind(
        self, stack: RootResources, partitions: Iterable[Mapping[str, Any]], ids: Mapping[str, int]
    ) -> None:
        """`partitions`: all [[partition]] tables, in order; `ids`: of those that there are already."""
        self._stack = stack
        ends = []
        for table in partitions:
            names = [device["name"] for device in table.get("device", ())]
            if self.name in names:
                ends.append((table["name"], names.index(self.name)))
        self.between, self.places = tuple(name for name, _ in ends), tuple(place for _, place in ends)
        self.ids |= {name: ids[name] for name in self.between if name in ids}

    def make_host(self, listener: ChannelListener) -> LinkSide:
        self.ids[listener.name] = listener.partition
        self._sides[listener.name] = side = LinkSide(self, listener)
        return side

    def other(self, name: str) -> LinkSide | None:
        return next((side for each, side in self._sides.items() if each != name), None)

    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> Service:
        raise TypeError(f"{self.name} is served by nobody: it joins two guests")

    def close(self) -> None:
        """There is nothing behind it."""


class LinkSide(UnservedChannels):
    """A ChannelHost: one guest's end of a link."""

    def __init__(self, link: LinkDevice, listener: ChannelListener) -> None:
        self._link, self.listener = link, listener
        self._call = link.stack.hypercalls
        self._memory: GuestMemory | None = None
        self.request: OpenRequest | None = None  # since it asked to be opened
        self.is_joined = False

    @property
    def memory(self) -> GuestMemory:
        """The lender's pages go to the other end; what the other lends, the pages of an idle ring, comes to us."""
        if self._memory is None:
            link, guest = self._link, self.listener.partition
            if self.listener.name != link.between[0]:
                self._memory = GuestMemory(self._call, link.stack.windows, guest)
            elif (holder := link.ids.get(link.between[-1])) is not None and len(link.between) > 1:
                self._memory = GuestMemory(self._call, LinkWindow(window_of(link.places[-1])), guest, holder)
            else:  # the other is still to be created: until then nobody's messages are heard, so nothing is mapped
                return GuestMemory(self._call, LinkWindow(window_of(0)), guest)
        return self._memory

    @property
    def flags(self) -> FlagAllocator:
        return self._link.flags

    def open(self, request: OpenRequest) -> int | None:
        """The first one waits for the other."""
        peer = self._link.other(self.listener.name)
        self.request = request
        if peer is None or peer.request is None:
            return None
        try:
            self._join(peer, peer.request, request)
        except HypercallError:
            self.request = None
            waiting, peer.request = peer.request, None
            peer.listener.opened(waiting.relid, waiting.opening.number, STATUS_FAILURE)
            raise
        peer.listener.opened(peer.request.relid, peer.request.opening.number, STATUS_SUCCESS)
        return STATUS_SUCCESS

    def _join(self, peer: LinkSide, theirs: OpenRequest, ours: OpenRequest) -> None:
        self._disconnect(ours.relid, ours.opening)  # what a predecessor may have made before it died
        peer._disconnect(theirs.relid, theirs.opening)
        try:
            self._connect(ours, peer.listener.partition, theirs)
            peer._connect(theirs, self.listener.partition, ours)
        except HypercallError:
            self._disconnect(ours.relid, ours.opening)
            peer._disconnect(theirs.relid, theirs.opening)
            raise
        self.is_joined = peer.is_joined = True

    def _connect(self, ours: OpenRequest, sender: int, theirs: OpenRequest) -> None:
        """A port of this guest, at the VP and flag that it chose, and the other's connection to it."""
        owner, action = self.listener.partition, ours.action
        if action.target_vp == NO_INTERRUPT_VP:
            return  # it polls
        port = guest_channel_port(ours.relid)
        self._call.create_port(
            port,
            sender,
            PortType.EVENT,
            VMBUS_SINT,
            action.target_vp,
            partition=owner,
            base_flag=action.event_flag,
            flag_count=1,
        )
        connection, route = theirs.action.connection_id, theirs.plan.route
        self._call.connect_port(connection, owner, port, partition=sender, route=route)

    def _disconnect(self, relid: int, opening: Opening) -> None:
        """Whatever there is of this guest's port and connection."""
        guest = self.listener.partition
        with contextlib.suppress(HypercallError):
            self._call.disconnect_port(opening.connection_id, guest)
        with contextlib.suppress(HypercallError):
            self._call.delete_port(guest_channel_port(relid), guest)

    def close(self, relid: int, opening: Opening) -> None:
        self._let_go(relid, opening)
        self._link.stack.nursery.start_soon(self._closed, relid, opening)

    async def _closed(self, relid: int, opening: Opening) -> None:
        await trio.lowlevel.checkpoint()
        self.listener.closed(relid, opening.number)

    def bury(self, relid: int, opening: Opening) -> None:
        self._let_go(relid, opening)

    def _let_go(self, relid: int, opening: Opening) -> None:
        self._disconnect(relid, opening)
        self.request, was_joined, self.is_joined = None, self.is_joined, False
        peer = self._link.other(self.listener.name)
        if was_joined and peer is not None and peer.request is not None:
            lost, peer.is_joined = peer.request, False
            peer.listener.lost(lost.relid, lost.opening.number, False, "the other end of the link is closed")

    def adopt(self, request: OpenRequest) -> None:
        """Ports and pages are the hypervisor's: nothing has to be done for them to go on."""
        self.request, self.is_joined = request, True

    def statistics(self, relid: int) -> dict[str, Any]:
        peer = self._link.other(self.listener.name)
        return {"linked_to": peer.listener.name if peer is not None and self.is_joined else None}


def bind_links(
    devices: Mapping[str, OfferedDevice],
    stack: RootResources,
    partitions: Iterable[Mapping[str, Any]],
    guests: Iterable[Mapping[str, Any]] = (),
) -> None:
    """Tell every link whom it is between. `guests`: what a predecessor saved of them."""
    tables, ids = list(partitions), {guest["name"]: guest["partition"] for guest in guests}
    for device in devices.values():
        if isinstance(device, LinkDevice):
            device.bind(stack, tables, ids)
