"""The VMBus of one guest, host side: carries out what the channel server's state machine decides.

Runs in the root's trio task; the data path is in the channels' own threads. Everything that the guest sent has
been checked by the state machine; what is checked here is what only the hypervisor can know: whose pages they are.
"""

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import trio

from bus import channel_actions as actions
from bus.channel_actions import OfferParameters
from bus.channel_messages import STATUS_FAILURE, STATUS_SUCCESS
from bus.channel_server import ChannelServer
from bus.memory import PAGE_BYTES, MemorySlot, UntrustedMemory
from bus.native import GpaMap
from bus.packets import GpaRange
from bus.protocol_errors import RemoteProtocolError
from bus.synic import CHANNEL_MESSAGE, CONTACT_CONNECTION, MESSAGE_CONNECTION, VMBUS_SINT
from partitions.machine_plan import AttachmentPlan
from partitions.served_channel import RingPlacement, ServedChannel
from partitions.storage.device import OfferedDevice
from partitions.vmbus_ports import (
    GUEST_MESSAGE_PORT,
    FlagAllocator,
    root_legacy_message_port,
    root_message_port,
)
from runtime.abi import SLOT_PAGES_MAX, HvStatus, HypercallError, PortType
from runtime.hypercalls import HypercallPort

CHANNEL_BREAKS_MAX: Final = 16  # then a guest that breaks its ring is not offered the device again
_GUEST_VP: Final = 0  # where VMBus messages go
OUTBOX_MESSAGES_MAX: Final = 4096  # a guest that requests more without reading loses its connection
_SLOT_WINDOW_PAGES: Final = SLOT_PAGES_MAX * 32  # of the root's GPA space, one a GPADL: up to 16 slots fit
_SLOT_WINDOWS: Final = (1 << 36) // _SLOT_WINDOW_PAGES


class GpaWindows:
    """Places in the root's own GPA space where guests' slots are mapped. Guests choose none of these numbers."""

    def __init__(self) -> None:
        self._free = deque(range(1, _SLOT_WINDOWS))

    def take(self) -> int:
        """First GPFN of a window; LookupError: all are in use."""
        if not self._free:
            raise LookupError(f"all {_SLOT_WINDOWS - 1} windows for guest memory are in use")
        return self._free.popleft() * _SLOT_WINDOW_PAGES

    def free(self, gpfn: int) -> None:
        self._free.append(gpfn // _SLOT_WINDOW_PAGES)


@dataclass(slots=True)
class RootResources:
    """What all guest buses of one root share."""

    hypercalls: HypercallPort
    partition: int  # the root's id
    event_flags: memoryview  # SIEF page of the root's VP 0
    nursery: trio.Nursery
    log: Callable[..., None]  # (kind, **fields)
    flags: FlagAllocator = field(default_factory=FlagAllocator)
    windows: GpaWindows = field(default_factory=GpaWindows)


@dataclass(slots=True)
class _Offer:
    instance: UUID
    device: OfferedDevice
    plan: AttachmentPlan
    broken: int = 0  # how often the guest broke its ring


@dataclass(slots=True)
class _MappedGpadl:
    """Pages that the guest handed over: the slots behind them, in the root's address space."""

    relid: int
    ranges: tuple[GpaRange, ...]
    window: int
    window_pages: int
    slots: dict[int, MemorySlot]  # by the guest's own GPFN


class GuestBus:
    """One guest's connection, from the creation of its ports to its death."""

    def __init__(self, root: RootResources, partition: int, name: str, vp_count: int) -> None:
        """Create the message ports in both directions. HypercallError: for instance, too little memory deposited."""
        self._root, self.partition, self.name = root, partition, name
        self._server = ChannelServer(vp_count=vp_count)
        self._offers: dict[int, _Offer] = {}
        self._gpadls: dict[int, _MappedGpadl] = {}
        self._channels: dict[int, ServedChannel] = {}
        self._outbox: deque[bytes] = deque()
        self._draining = False
        self.protocol_errors = 0
        call, port = root.hypercalls, root_message_port(partition)
        call.create_port(port, partition, PortType.MESSAGE, VMBUS_SINT, 0)
        call.connect_port(CONTACT_CONNECTION, root.partition, port, partition=partition)
        legacy_port = root_legacy_message_port(partition)  # a port takes one connection
        call.create_port(legacy_port, partition, PortType.MESSAGE, VMBUS_SINT, 0)
        call.connect_port(MESSAGE_CONNECTION, root.partition, legacy_port, partition=partition)
        call.create_port(
            GUEST_MESSAGE_PORT, root.partition, PortType.MESSAGE, VMBUS_SINT, _GUEST_VP, partition=partition
        )
        call.connect_port(port, partition, GUEST_MESSAGE_PORT)

    def offer(self, instance: UUID, device: OfferedDevice, plan: AttachmentPlan) -> None:
        self._offer(_Offer(instance, device, plan))

    def _offer(self, offer: _Offer) -> None:
        """While an older offer of it is being withdrawn, the new one waits for the guest to let go of that."""
        relid, steps = self._server.offer(
            OfferParameters(interface=offer.device.interface, instance=offer.instance)
        )
        self._offers[relid] = offer
        self._perform(steps)

    def receive(self, payload: bytes) -> None:
        """One channel message of the guest. A message that breaks the protocol is counted, logged and dropped."""
        try:
            steps = self._server.receive(payload)
        except RemoteProtocolError as error:
            self.protocol_errors += 1
            self._root.log("vmbus.protocol_error", guest=self.name, error=str(error)[:200])
            return
        self._perform(steps)

    def disconnect(self) -> None:
        """The guest died: stop every channel, give everything back."""
        self._outbox.clear()
        self._perform(self._server.disconnect())

    def devices(self) -> list[dict[str, Any]]:
        """For `partvisor show`: each offered device, and its channel's counters while it is open."""
        rows: list[dict[str, Any]] = []
        for relid, offer in self._offers.items():
            state = self._server.channel_state(relid)
            row: dict[str, Any] = {
                "device": offer.device.name,
                "relid": relid,
                "state": state.name.lower() if state is not None else "gone",
                "signal_route": offer.plan.route.name.lower(),
                "waiting": offer.plan.waiting,
            }
            if (channel := self._channels.get(relid)) is not None:
                row |= channel.statistics()
            rows.append(row)
        return rows

    # -- actions

    def _perform(self, steps: list[actions.Action]) -> None:
        queue = deque(steps)
        while queue:
            match queue.popleft():
                case actions.SendMessage(payload):
                    self._send(payload)
                case actions.ResetConnection():
                    self._outbox.clear()
                case actions.ConnectionMade(version):
                    self._root.log(
                        "vmbus.connected", guest=self.name, version=f"{version >> 16}.{version & 0xFFFF}"
                    )
                case actions.MapGpadl() as request:
                    status = self._map(request)
                    queue.extend(self._server.completed(actions.GpadlMapped(request.gpadl, status)))
                case actions.UnmapGpadl(gpadl=gpadl):
                    self._unmap(gpadl)
                    queue.extend(self._server.completed(actions.GpadlUnmapped(gpadl)))
                case actions.OpenChannel() as request:
                    status = self._open(request)
                    queue.extend(self._server.completed(actions.ChannelOpened(request.relid, status)))
                case actions.CloseChannel(relid):
                    self._root.nursery.start_soon(self._close, relid)
                case actions.ModifyChannel(relid):
                    # Interrupts stay where OPENCHANNEL put them; versions from 5.3 on are told so.
                    queue.extend(self._server.completed(actions.ChannelModified(relid, STATUS_FAILURE)))
                case actions.ChannelReleased(relid):
                    self._offers.pop(relid, None)

    def _send(self, payload: bytes) -> None:
        if len(self._outbox) >= OUTBOX_MESSAGES_MAX:
            self._root.log("vmbus.guest_does_not_read", guest=self.name, messages=len(self._outbox))
            self._perform(self._server.disconnect())
            return
        self._outbox.append(payload)
        if not self._draining:
            self._draining = True
            if not self._post_outbox():
                self._root.nursery.start_soon(self._drain_outbox)

    def _post_outbox(self) -> bool:
        """Post until the guest's buffers are full. True: nothing is left to post."""
        connection = root_message_port(self.partition)
        while self._outbox:
            try:
                self._root.hypercalls.post_message(connection, CHANNEL_MESSAGE, self._outbox[0])
            except HypercallError as error:
                if error.status == HvStatus.INSUFFICIENT_BUFFERS:
                    return False
                if error.status == HvStatus.INVALID_SYNIC_STATE:  # it has not switched its SynIC on yet
                    return False
                self._outbox.clear()  # the guest, or its port, is gone
            else:
                self._outbox.popleft()
        self._draining = False
        return True

    async def _drain_outbox(self) -> None:
        """The guest is slow: try again, ever more patiently, without holding anyone else up."""
        pause_ms = 0.5
        while not self._post_outbox():
            await trio.sleep(pause_ms / 1000)
            pause_ms = min(pause_ms * 2, 50)

    def _map(self, request: actions.MapGpadl) -> int:
        """Get the slots that hold the GPADL's pages. A status other than 0: not all of them are the guest's to give."""
        numbers = [number for part in request.ranges for number in part.page_numbers]
        first, pages = min(numbers), max(numbers) - min(numbers) + 1
        if pages > SLOT_PAGES_MAX:
            return (
                STATUS_FAILURE  # pages from all over a GPA space: no slot made for a channel looks like that
            )
        try:
            window = self._root.windows.take()
        except LookupError:
            return STATUS_FAILURE
        slots: dict[int, MemorySlot] = {}
        try:
            for mapped in self._root.hypercalls.map_partition_pages(
                self.partition, first, pages, window + SLOT_PAGES_MAX
            ):
                slots[mapped.source_gpfn] = MemorySlot.from_fd(mapped.fd, mapped.source_gpfn, mapped.pages)
            covered = {number for slot in slots.values() for number in range(slot.gpfn, slot.end_gpfn)}
            if not covered.issuperset(numbers):
                raise UntrustedMemory("a page of the GPADL belongs to no slot")
        except (HypercallError, UntrustedMemory, OSError) as error:
            self._root.log(
                "vmbus.gpadl_refused", guest=self.name, relid=request.relid, error=str(error)[:200]
            )
            self._drop_slots(window, slots)
            return STATUS_FAILURE
        self._gpadls[request.gpadl] = _MappedGpadl(
            request.relid, request.ranges, window, _SLOT_WINDOW_PAGES, slots
        )
        return STATUS_SUCCESS

    def _unmap(self, gpadl: int) -> None:
        mapped = self._gpadls.pop(gpadl)
        self._drop_slots(mapped.window, mapped.slots)

    def _drop_slots(self, window: int, slots: dict[int, MemorySlot]) -> None:
        for slot in slots.values():
            slot.close()
        with contextlib.suppress(HypercallError):  # a dead guest's slots are gone already
            self._root.hypercalls.unmap_gpa_pages(window, _SLOT_WINDOW_PAGES)
        self._root.windows.free(window)

    def _open(self, request: actions.OpenChannel) -> int:
        offer = self._offers[request.relid]
        try:
            rings = self._ring_placement(request)
            gpa_map = GpaMap()
            for slot in self._channel_slots(request.relid).values():
                gpa_map.add(slot.gpfn, slot.memory)
            channel = ServedChannel(
                self._root.hypercalls,
                self._root.flags,
                self.partition,
                request,
                rings,
                root=self._root.partition,
                route=offer.plan.route,
                waiting=offer.plan.waiting,
                event_flags=self._root.event_flags,
            )
        except (HypercallError, LookupError, ValueError, OSError) as error:
            self._root.log("vmbus.open_refused", guest=self.name, relid=request.relid, error=str(error)[:200])
            return STATUS_FAILURE
        self._channels[request.relid] = channel
        token = trio.lowlevel.current_trio_token()

        def broken(reason: str) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._broken, request.relid, reason)

        channel.start(offer.device.open(channel.channel, gpa_map), broken)
        self._root.log("vmbus.channel_opened", guest=self.name, device=offer.device.name, relid=request.relid)
        return STATUS_SUCCESS

    def _ring_placement(self, request: actions.OpenChannel) -> RingPlacement:
        """The rings as one stretch of memory. ValueError, LookupError: they are not one."""
        gpadl = self._gpadls[request.ring_gpadl]
        numbers = [number for part in gpadl.ranges for number in part.page_numbers]
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            raise ValueError("the ring's pages are not consecutive")
        for slot in gpadl.slots.values():
            if slot.gpfn <= numbers[0] and numbers[-1] < slot.end_gpfn:
                start = (numbers[0] - slot.gpfn) * PAGE_BYTES
                memory = slot.memory[start : start + len(numbers) * PAGE_BYTES]
                return RingPlacement(memory, request.downstream_page_offset)
        raise LookupError("the ring's pages are not in one slot")

    def _channel_slots(self, relid: int) -> dict[int, MemorySlot]:
        """Every slot that this channel's GPADLs handed over, once."""
        slots: dict[int, MemorySlot] = {}
        for gpadl in self._gpadls.values():
            if gpadl.relid == relid:
                slots |= gpadl.slots
        return slots

    async def _close(self, relid: int) -> None:
        channel = self._channels.pop(relid)
        stopped = await trio.to_thread.run_sync(channel.stop, abandon_on_cancel=True)
        if not stopped:  # its backend does not come back; the pages stay mapped, the ports stay taken
            self._root.log("vmbus.channel_stuck", guest=self.name, relid=relid)
            while not await trio.to_thread.run_sync(channel.stop, abandon_on_cancel=True):
                pass
        channel.release()
        self._root.log("vmbus.channel_closed", guest=self.name, relid=relid)
        self._perform(self._server.completed(actions.ChannelClosed(relid)))

    def _broken(self, relid: int, reason: str) -> None:
        """The guest broke its ring: it loses this channel, and nothing else. A few times it gets another one."""
        self._root.log("vmbus.channel_broken", guest=self.name, relid=relid, reason=reason)
        if relid not in self._channels or (offer := self._offers.get(relid)) is None:
            return
        self._perform(self._server.revoke(relid))
        offer.broken += 1
        if offer.broken < CHANNEL_BREAKS_MAX:
            self._offer(offer)
