"""The VMBus of one guest, host side: carries out what the channel server's state machine decides.

Runs in the root's trio task; the data path is in the channels' own threads. Everything that the guest sent has
been checked by the state machine; what is checked here is what only the hypervisor can know: whose pages they are.

Every decision is saved before it is carried out, with the resources that it will take, so that a root that takes over
can carry out again what may not have been (docs/recovery.md).
"""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import trio

from bus import channel_actions as actions
from bus.channel_actions import OfferParameters
from bus.channel_messages import STATUS_FAILURE, STATUS_SUCCESS
from bus.channel_server import ChannelServer
from bus.memory import UntrustedMemory
from bus.native import GpaMap
from bus.protocol_errors import RemoteProtocolError
from bus.seam import Seam, Step
from bus.synic import CHANNEL_MESSAGE, CONTACT_CONNECTION, MESSAGE_CONNECTION, VMBUS_SINT
from partitions.channel_ports import ChannelPorts, remove_ports
from partitions.guest_memory import GpaWindows, GuestMemory
from partitions.machine_plan import AttachmentPlan
from partitions.served_channel import ServedChannel, Service, clear_record
from partitions.storage.device import OfferedDevice
from partitions.vmbus_ports import (
    GUEST_MESSAGE_PORT,
    FlagAllocator,
    root_legacy_message_port,
    root_message_port,
)
from runtime.abi import HvStatus, HypercallError, PortType
from runtime.hypercalls import HypercallPort

CHANNEL_BREAKS_MAX: Final = 16  # then a guest that breaks its ring is not offered the device again
_GUEST_VP: Final = 0  # where VMBus messages go
OUTBOX_MESSAGES_MAX: Final = 4096  # a guest that requests more without reading loses its connection
_NOT_NOW: Final = (
    HvStatus.INSUFFICIENT_BUFFERS,
    HvStatus.INVALID_SYNIC_STATE,
)  # the guest is slow, or still booting


@dataclass(slots=True)
class RootResources:
    """What all guest buses of one root share."""

    hypercalls: HypercallPort
    partition: int  # the root's id
    event_flags: memoryview  # SIEF page of the root's VP 0
    nursery: trio.Nursery
    log: Callable[..., None]  # (kind, **fields)
    save: Callable[[], None]  # everything that `to_state` of all guests says
    record: Callable[[int], memoryview]  # a channel's record in the saved state, by its event flag
    seam: Seam
    flags: FlagAllocator = field(default_factory=FlagAllocator)
    windows: GpaWindows = field(default_factory=GpaWindows)


@dataclass(slots=True)
class _Offer:
    instance: UUID
    device: OfferedDevice
    plan: AttachmentPlan
    broken: int = 0  # how often the guest broke its ring


class GuestBus:
    """One guest's connection, from the creation of its ports to its death."""

    def __init__(self, root: RootResources, partition: int, name: str, vp_count: int) -> None:
        self._root, self.partition, self.name = root, partition, name
        self._server = ChannelServer(vp_count=vp_count)
        self._memory = GuestMemory(root.hypercalls, root.windows, partition)
        self._offers: dict[int, _Offer] = {}
        # By relid of an open channel: its flag in the root's SINT 2, and the connection that the guest signals.
        self._openings: dict[int, tuple[int, int]] = {}
        self._channels: dict[int, ServedChannel] = {}
        self._closing: set[ServedChannel] = set()  # whose threads are being stopped
        self._outbox: deque[bytes] = deque()
        self._posted = 0  # messages that this guest was ever sent; the outbox goes on from there
        self._draining = False

    def connect(self) -> None:
        """Create the message ports in both directions. HypercallError: for instance, too little memory deposited."""
        call, port = self._root.hypercalls, root_message_port(self.partition)
        root, guest = self._root.partition, self.partition
        call.create_port(port, guest, PortType.MESSAGE, VMBUS_SINT, 0)
        call.connect_port(CONTACT_CONNECTION, root, port, partition=guest)
        legacy_port = root_legacy_message_port(guest)  # a port takes one connection
        call.create_port(legacy_port, guest, PortType.MESSAGE, VMBUS_SINT, 0)
        call.connect_port(MESSAGE_CONNECTION, root, legacy_port, partition=guest)
        call.create_port(GUEST_MESSAGE_PORT, root, PortType.MESSAGE, VMBUS_SINT, _GUEST_VP, partition=guest)
        call.connect_port(port, guest, GUEST_MESSAGE_PORT)

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
        """One channel message of the guest. A message that breaks the protocol is logged and dropped."""
        try:
            steps = self._server.receive(payload)
        except RemoteProtocolError as error:
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

    # -- taking over

    def to_state(self) -> dict[str, Any]:
        """All that a successor needs, as plain values."""
        return {
            "partition": self.partition,
            "name": self.name,
            "server": self._server.to_state(),
            "offers": [
                [relid, offer.device.name, offer.instance.bytes, offer.broken]
                for relid, offer in self._offers.items()
            ],
            "windows": self._memory.to_state(),
            "openings": dict(self._openings),
            "outbox": list(self._outbox),
            "posted": self._posted,
        }

    def take_over(
        self,
        state: Mapping[str, Any],
        devices: Mapping[str, OfferedDevice],
        plans: Mapping[str, AttachmentPlan],
    ) -> list[int]:
        """Become what a predecessor was. The relids of the channels that wait to be served: see `serve`."""
        self._server = ChannelServer.from_state(state["server"])
        for relid, device, instance, broken in state["offers"]:
            self._offers[relid] = _Offer(UUID(bytes=instance), devices[device], plans[device], broken)
        self._memory.adopt_state(state["windows"])
        for relid, (flag, connection_id) in state["openings"].items():
            self._root.flags.claim(flag)
            self._openings[relid] = flag, connection_id
        posted = self._root.hypercalls.get_posted_messages(GUEST_MESSAGE_PORT, self.partition)
        self._outbox.extend(state["outbox"][posted - state["posted"] :])
        self._posted = posted
        for action in self._server.standing():
            match action:
                case actions.MapGpadl() as request:
                    self._memory.claim(request)
                case actions.OpenChannel() as request:
                    ports = self._ports(request)
                    ports.claim()
                    self._attach(request, ports)
        return sorted(self._channels)

    def bury(self, state: Mapping[str, Any]) -> None:
        """The guest died about when our predecessor did: let go of what it had here, and serve nobody."""
        for relid, (flag, connection_id) in state["openings"].items():
            remove_ports(self._root.hypercalls, self.partition, relid, connection_id, flag)
        # Its slots went with it, and so did our mappings of them: the windows are free.

    def was_executing(self, relid: int) -> bool:
        """Whether the predecessor died in the middle of a batch of this channel."""
        return self._channels[relid].was_executing

    def replay(self, relid: int) -> None:
        """Execute again what the predecessor had not released, before anything new is served."""
        channel = self._channels[relid]
        channel.prepare(self._open_service(relid))
        channel.replay()

    def resume(self) -> None:
        """Carry out again what the predecessor may not have finished, and go on posting."""
        self._carry_out(self._server.pending())
        self._start_posting()

    # -- actions

    def _perform(self, steps: list[actions.Action]) -> None:
        """Take what the steps need, save, carry out; and so on with what follows from that."""
        for step in steps:
            match step:
                case actions.SendMessage(payload):
                    self._outbox.append(payload)
                case actions.ResetConnection():
                    self._outbox.clear()
                case actions.MapGpadl(gpadl=gpadl):
                    with contextlib.suppress(LookupError):
                        self._memory.reserve(gpadl)
                case actions.OpenChannel(relid=relid, connection_id=connection_id):
                    with contextlib.suppress(LookupError):
                        self._openings[relid] = self._root.flags.take(), connection_id
        self._root.save()
        self._carry_out(steps)

    def _carry_out(self, steps: list[actions.Action]) -> None:
        following: deque[actions.Completion] = deque()
        for step in steps:
            match step:
                case actions.ConnectionMade(version):
                    agreed = f"{version >> 16}.{version & 0xFFFF}"
                    self._root.log("vmbus.connected", guest=self.name, version=agreed)
                case actions.MapGpadl() as request:
                    following.append(actions.GpadlMapped(request.gpadl, self._map(request)))
                case actions.UnmapGpadl(gpadl=gpadl):
                    self._memory.unmap(gpadl)
                    following.append(actions.GpadlUnmapped(gpadl))
                case actions.OpenChannel() as request:
                    following.append(actions.ChannelOpened(request.relid, self._open(request)))
                case actions.CloseChannel(relid):
                    self._root.nursery.start_soon(self._close, relid)
                case actions.ModifyChannel(relid):
                    # Interrupts stay where OPENCHANNEL put them; versions from 5.3 on are told so.
                    following.append(actions.ChannelModified(relid, STATUS_FAILURE))
                case actions.ChannelReleased(relid):
                    self._offers.pop(relid, None)
            self._root.seam.passing(Step.CARRY_OUT)
        self._start_posting()
        for completion in following:
            self._perform(self._server.completed(completion))

    def _map(self, request: actions.MapGpadl) -> int:
        try:
            self._memory.map(request)
        except (HypercallError, UntrustedMemory, LookupError, OSError) as error:
            self._root.log(
                "vmbus.gpadl_refused", guest=self.name, relid=request.relid, error=str(error)[:200]
            )
            return STATUS_FAILURE
        return STATUS_SUCCESS

    def _ports(self, request: actions.OpenChannel) -> ChannelPorts:
        """KeyError: no event flag could be had."""
        return ChannelPorts(
            self._root.hypercalls,
            self._root.partition,
            self.partition,
            request,
            self._openings[request.relid][0],
            self._offers[request.relid].plan.route,
        )

    def _open(self, request: actions.OpenChannel) -> int:
        try:
            ports = self._ports(request)
            ports.delete()  # what a predecessor may have made before it died
            ports.connect()
            clear_record(self._root.record(ports.flag))
            try:
                self._attach(request, ports)
            except BaseException:
                ports.delete()
                raise
        except (HypercallError, LookupError, ValueError, OSError) as error:
            self._root.log("vmbus.open_refused", guest=self.name, relid=request.relid, error=str(error)[:200])
            self._forget_opening(request.relid)
            return STATUS_FAILURE
        self.serve(request.relid)
        device = self._offers[request.relid].device.name
        self._root.log("vmbus.channel_opened", guest=self.name, device=device, relid=request.relid)
        return STATUS_SUCCESS

    def _attach(self, request: actions.OpenChannel, ports: ChannelPorts) -> None:
        rings = self._memory.rings(request.ring_gpadl, request.downstream_page_offset)
        waiting = self._offers[request.relid].plan.waiting
        self._channels[request.relid] = ServedChannel(
            ports, rings, waiting, self._root.event_flags, self._root.record(ports.flag), self._root.seam
        )

    def serve(self, relid: int) -> None:
        """Start the channel's thread."""
        channel = self._channels[relid]
        if not channel.is_prepared:
            channel.prepare(self._open_service(relid))
        token = trio.lowlevel.current_trio_token()

        def broken(reason: str) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._broken, relid, reason)

        channel.start(f"{self.name}.{relid}", broken)

    def _open_service(self, relid: int) -> Service:
        gpa_map = GpaMap()
        for slot in self._memory.slots_of_channel(relid).values():
            gpa_map.add(slot.gpfn, slot.memory)
        channel = self._channels[relid]
        return self._offers[relid].device.open(channel.channel, gpa_map, channel.record, self._root.seam)

    def find_stuck(self, stuck_ms: int) -> str | None:
        """The device of a channel whose thread has not moved for so long while its ring holds work."""
        for relid, channel in self._channels.items():
            if channel.is_stuck(stuck_ms):
                return self._offers[relid].device.name
        return None

    def quiesce(self) -> None:
        """Stop every channel's thread between two requests; nothing is closed, all stays as saved. Blocks."""
        for channel in [*self._channels.values(), *self._closing]:
            channel.stop()

    async def _close(self, relid: int) -> None:
        channel = self._channels.pop(relid, None)
        if channel is not None:
            self._closing.add(channel)
            while not await trio.to_thread.run_sync(channel.stop, abandon_on_cancel=True):
                # Its backend does not come back; the pages stay mapped, the ports stay taken.
                self._root.log("vmbus.channel_stuck", guest=self.name, relid=relid)
            self._closing.discard(channel)
            channel.release()
        elif (
            relid in self._openings
        ):  # a predecessor was closing it: its thread died with it, its ports did not
            flag, connection_id = self._openings[relid]
            remove_ports(self._root.hypercalls, self.partition, relid, connection_id, flag)
        self._forget_opening(relid)
        self._root.log("vmbus.channel_closed", guest=self.name, relid=relid)
        self._perform(self._server.completed(actions.ChannelClosed(relid)))

    def _forget_opening(self, relid: int) -> None:
        if (opening := self._openings.pop(relid, None)) is not None:
            self._root.flags.free(opening[0])

    def _broken(self, relid: int, reason: str) -> None:
        """The guest broke its ring: it loses this channel, and nothing else. A few times it gets another one."""
        self._root.log("vmbus.channel_broken", guest=self.name, relid=relid, reason=reason)
        if relid not in self._channels or (offer := self._offers.get(relid)) is None:
            return
        self._perform(self._server.revoke(relid))
        offer.broken += 1
        if offer.broken < CHANNEL_BREAKS_MAX:
            self._offer(offer)

    # -- posting

    def _start_posting(self) -> None:
        if len(self._outbox) > OUTBOX_MESSAGES_MAX:
            self._root.log("vmbus.guest_does_not_read", guest=self.name, messages=len(self._outbox))
            self._outbox.clear()
            self._perform(self._server.disconnect())
        elif not self._draining and not self._post_outbox():
            self._draining = True
            self._root.nursery.start_soon(self._drain_outbox)

    def _post_outbox(self) -> bool:
        """Post until the guest's buffers are full. True: nothing is left to post."""
        connection = root_message_port(self.partition)
        while self._outbox:
            try:
                self._root.hypercalls.post_message(connection, CHANNEL_MESSAGE, self._outbox[0])
            except HypercallError as error:
                if error.status in _NOT_NOW:
                    return False
                self._outbox.clear()  # the guest, or its port, is gone
            else:
                self._outbox.popleft()
                self._posted += 1
        return True

    async def _drain_outbox(self) -> None:
        """The guest is slow: try again, ever more patiently, without holding anyone else up."""
        pause_ms = 0.5
        while not self._post_outbox():
            await trio.sleep(pause_ms / 1000)
            pause_ms = min(pause_ms * 2, 50)
        self._draining = False
