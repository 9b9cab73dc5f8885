"""The VMBus of one guest, host side: carries out what the channel server's state machine decides.

Runs in its stack's trio task; the data path is elsewhere, with the hosts of the channels. What the guest sent has been
checked by the state machine; what is checked here is what only the hypervisor can know: whose pages they are.

Every decision is saved before it is carried out, with the resources that it will take, so that a root that takes over
can carry out again what may not have been (docs/recovery.md).
"""

import contextlib
from collections import deque
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from bus import channel_actions as actions
from bus.channel_actions import OfferParameters
from bus.channel_messages import STATUS_FAILURE, STATUS_SUCCESS
from bus.channel_server import ChannelServer
from bus.channel_states import WITHDRAWN_STATES, ChannelState
from bus.memory import UntrustedMemory
from bus.protocol_errors import LocalProtocolError, RemoteProtocolError
from bus.seam import Step
from bus.synic import CHANNEL_MESSAGE
from partitions.faults.channel_faults import Direction
from partitions.machine_plan import AttachmentPlan
from partitions.stack.channel_host import ChannelHost, OpenRequest
from partitions.stack.channel_hosts import ChannelHosts
from partitions.stack.framing import framing_of
from partitions.stack.message_outbox import MessageOutbox
from partitions.stack.message_ports import connect_message_ports
from partitions.stack.offered_device import OfferedDevice
from partitions.stack.offers import Devices, Offer, Plans, Withheld, row_of
from partitions.stack.openings import Openings
from partitions.stack.served_channel import ServedChannel
from partitions.stack.stack_resources import RootResources
from partitions.stack.sub_channels import missing, revoke_orphans, revoke_with_sub_channels
from partitions.stack.vmbus_ports import GUEST_MESSAGE_PORT, guest_channel_port, root_message_port
from partitions.stack.withheld_offers import WithheldOffers
from runtime.abi import HypercallError

OUTBOX_MESSAGES_MAX: Final = 4096  # a guest that requests more without reading loses its connection


class GuestBus:
    """One guest's connection, from the creation of its ports to its death."""

    def __init__(self, root: RootResources, partition: int, name: str, vp_count: int) -> None:
        self._root, self.partition, self.name = root, partition, name
        self._server = ChannelServer(vp_count=vp_count)
        self._hosts = ChannelHosts(root, self)
        self._offers: dict[int, Offer] = {}
        self._withheld = WithheldOffers(root, self._offer)
        self._openings = Openings(root, self._host_of)
        self._outbox = MessageOutbox(
            root.hypercalls, root.nursery, root_message_port(partition), CHANNEL_MESSAGE, root.sleep
        )

    def connect(self) -> None:
        """Create the message ports in both directions. HypercallError: for instance, too little memory deposited."""
        connect_message_ports(self._root, self.partition)

    def _host_of(self, relid: int) -> ChannelHost:
        """KeyError: there is no such offer."""
        return self._hosts.of(self._offers[relid].device)

    # -- offers

    def offer(self, instance: UUID, device: OfferedDevice, plan: AttachmentPlan) -> None:
        self._hosts.of(device)  # which knows from here on whom to tell that the device is no more
        self._offer(Offer(instance, device, plan))

    def _offer(self, offer: Offer, sub_channel: int = 0) -> None:
        """While an older offer of it is being withdrawn, the new one waits for the guest to let go of that."""
        device, instance = offer.device, offer.instance
        parameters = OfferParameters(
            interface=device.interface,
            instance=instance,
            sub_channel_index=sub_channel,
            **framing_of(device),
        )
        relid, steps = self._server.offer(parameters)
        self._offers[relid] = offer
        self._perform(steps)

    def withdraw(self, device: str, reason: str) -> None:
        """The device is no more: each request that is under way fails, and no channel to it is opened again."""
        if self._withheld.keep_for_good(device, reason):
            return
        for relid in self._primaries_of(device):
            self._withhold(relid, Withheld(self._offers[relid], reason, None))

    def remove(self, device: str) -> None:
        """As `withdraw`, at an operator's wish: nothing says afterwards that it was there."""
        if not self._withheld.forget(device):
            for relid in self._primaries_of(device):
                self._perform(revoke_with_sub_channels(self._server, relid))

    def _relids_of(self, device: str) -> list[int]:
        return [relid for relid, offer in self._offers.items() if offer.name == device]

    def _primaries_of(self, device: str) -> list[int]:
        """Without what was taken away, and the guest has not let go of."""
        relids, server = self._relids_of(device), self._server
        return [relid for relid in relids if server.is_there(relid) and not server.sub_channel_index(relid)]

    def is_open(self, device: str) -> bool:
        """Whether somebody may still serve a channel to it."""
        return any(relid in self._openings for relid in self._relids_of(device))

    def is_busy_with(self, device: str) -> bool:
        """Whether a request to it is known to be under way."""
        open_ones = (relid for relid in self._relids_of(device) if relid in self._openings)
        return any(self._host_of(relid).is_busy(relid) for relid in open_ones)

    def forget(self, device: str) -> None:
        """It is gone, and closed. Another one of its name may be in another place."""
        self._hosts.forget(device)

    def _withhold(self, relid: int, withheld: Withheld) -> None:
        self._withheld.add(withheld)
        self._perform(revoke_with_sub_channels(self._server, relid))
        self._withheld.schedule(withheld)

    def refuse_stream(self, request: actions.ConnectStream) -> None:
        self._perform(self._server.refuse_stream(request.endpoint, request.service))

    def receive(self, payload: bytes) -> None:
        """One channel message of the guest, or what a fault on purpose makes of it."""
        faults = self._root.channel_faults
        for one in (payload,) if faults is None else faults.passing(self.name, Direction.FROM_GUEST, payload):
            self.take(one)

    def take(self, payload: bytes) -> bool:
        """False: it broke the protocol; it was logged and dropped."""
        try:
            steps = self._server.receive(payload)
        except RemoteProtocolError as error:
            self._root.complain("vmbus.protocol_error", self.name, error=str(error)[:200])
            return False
        self._perform(steps)
        return True

    def disconnect(self) -> None:
        """The guest died: stop every channel, give everything back."""
        self._outbox.clear()
        self._perform(self._server.disconnect())

    def devices(self) -> list[dict[str, Any]]:
        """For `partvisor show`: each offered device, and its channel's counters while it is open."""
        states = {relid: self._server.channel_state(relid) for relid in self._offers}
        rows = [
            row_of(relid, offer, states[relid], self._host_of(relid), self._server.sub_channel_index(relid))
            for relid, offer in self._offers.items()
            if offer.name not in self._withheld and states[relid] not in WITHDRAWN_STATES
        ]
        return rows + [withheld.row() for withheld in self._withheld]

    # -- taking over

    def to_state(self) -> dict[str, Any]:
        """All that a successor needs, as plain values."""
        return {
            "partition": self.partition,
            "name": self.name,
            "server": self._server.to_state(),
            "offers": [[relid, *offer.to_state()] for relid, offer in self._offers.items()],
            "withheld": [withheld.to_state() for withheld in self._withheld],
            "windows": [row for host in self._hosts for row in host.memory.to_state()],
            "openings": self._openings.to_state(),
            "outbox": self._outbox.to_state(),
            "posted": self._outbox.posted,
        }

    def take_over(self, state: Mapping[str, Any], devices: Devices, plans: Plans) -> list[int]:
        """Become what a predecessor was. The relids of the channels that wait to be served: see `serve`."""
        self._server = ChannelServer.from_state(state["server"])
        self._adopt_offers(state, devices, plans)
        for released in [relid for relid in self._offers if self._server.channel_state(relid) is None]:
            del self._offers[released]  # saved before that was carried out
        for gpadl, relid, window in state["windows"]:
            self._host_of(relid).memory.adopt(gpadl, relid, window)
        for relid, opening in self._openings.items():
            self._host_of(relid).flags.claim(opening.flag)
        posted = self._root.hypercalls.get_posted_messages(GUEST_MESSAGE_PORT, self.partition)
        self._outbox.adopt(state["outbox"][posted - state["posted"] :], posted)
        adopted = []
        for action in self._server.standing():
            match action:
                case actions.MapGpadl() as request:
                    self._host_of(request.relid).memory.claim(request)
                case actions.OpenChannel() as request:
                    self._host_of(request.relid).adopt(self._request(request))
                    adopted.append(request.relid)
        return sorted(relid for relid in adopted if self._host_of(relid).waits_to_be_served(relid))

    def _adopt_offers(self, state: Mapping[str, Any], devices: Devices, plans: Plans) -> None:
        self._offers = {relid: Offer.from_state(offer, devices, plans) for relid, *offer in state["offers"]}
        for row in state["withheld"]:
            self._withheld.add(Withheld.from_state(row, devices, plans))
        self._openings.adopt(state["openings"])

    def bury(self, state: Mapping[str, Any], devices: Devices, plans: Plans) -> None:
        """The guest died about when our predecessor did: let go of what it had here, and serve nobody."""
        self._adopt_offers(state, devices, plans)
        for relid, opening in self._openings.items():
            if relid in self._offers:
                self._host_of(relid).bury(relid, opening)
        self._openings.clear()
        # Its slots went with it, and so did all mappings of them: the windows are free.

    def was_executing(self, relid: int) -> bool:
        """Whether the predecessor died in the middle of a batch of this channel."""
        return self._host_of(relid).was_executing(relid)

    def replay(self, relid: int) -> bool:
        """Execute again what the predecessor had not released, before anything new is served. See ServedChannel."""
        return self._host_of(relid).replay(relid)

    def serve(self, relid: int) -> None:
        self._host_of(relid).serve(relid)

    def resume(self) -> None:
        """Carry out again what the predecessor may not have finished, and go on posting."""
        pending = self._server.pending()
        for action in pending:  # a try of the predecessor's is none of ours: its host may know it
            if isinstance(action, actions.OpenChannel):
                self._openings.renumber(action.relid)
        if pending:
            self._root.save()
        self._carry_out(pending)
        for withheld in self._withheld:
            self._withheld.schedule(withheld)
        self._start_posting()

    # -- actions

    def _perform(self, steps: list[actions.Action]) -> None:
        """Take what the steps need, save, carry out; and so on with what follows from that."""
        steps = steps + revoke_orphans(self._server, steps)
        for step in steps:
            match step:
                case actions.SendMessage(payload):
                    faults, way = self._root.channel_faults, Direction.TO_GUEST
                    for one in (payload,) if faults is None else faults.passing(self.name, way, payload):
                        self._outbox.put(one)
                case actions.ResetConnection():
                    self._outbox.clear()
                case actions.MapGpadl(relid=relid, gpadl=gpadl):
                    with contextlib.suppress(LookupError):
                        self._host_of(relid).memory.reserve(relid, gpadl)
                case actions.OpenChannel(relid=relid, connection_id=connection_id):
                    with contextlib.suppress(LookupError):
                        self._openings.take(relid, connection_id)
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
                case actions.UnmapGpadl(relid=relid, gpadl=gpadl):
                    self._host_of(relid).memory.unmap(gpadl)
                    following.append(actions.GpadlUnmapped(gpadl))
                case actions.OpenChannel() as request:
                    if self._root.channel_faults is not None:
                        self._root.channel_faults.opening(self.name, request.relid)
                    if (status := self._open(request)) is not None:
                        following.append(actions.ChannelOpened(request.relid, status))
                case actions.CloseChannel(relid):
                    self._close(relid)
                case actions.ModifyChannel(relid, target_vp):
                    following.append(actions.ChannelModified(relid, self._aim(relid, target_vp)))
                case actions.ConnectStream() as request:
                    self._root.ask_for_stream(self, request)
                case actions.ChannelReleased(relid):
                    self._offers.pop(relid, None)
            self._root.seam.passing(Step.CARRY_OUT)
        self._start_posting()
        for completion in following:
            self._perform(self._server.completed(completion))

    def _map(self, request: actions.MapGpadl) -> int:
        try:
            self._host_of(request.relid).memory.map(request)
        except (HypercallError, UntrustedMemory, LookupError, OSError) as error:
            self._root.log(
                "vmbus.gpadl_refused", guest=self.name, relid=request.relid, error=str(error)[:200]
            )
            return STATUS_FAILURE
        return STATUS_SUCCESS

    def _aim(self, relid: int, target_vp: int) -> int:
        """Move a channel's interrupts to another VP of the guest."""
        try:
            self._root.hypercalls.move_port(guest_channel_port(relid), target_vp, self.partition)
        except HypercallError:  # no such VP, or a channel that is polled
            return STATUS_FAILURE
        return STATUS_SUCCESS

    def _request(self, action: actions.OpenChannel) -> OpenRequest:
        """KeyError: no event flag could be had."""
        relid, offer = action.relid, self._offers[action.relid]
        index = self._server.sub_channel_index(relid)
        return OpenRequest(action, self._openings[relid], offer.device, offer.plan, index)

    def _open(self, action: actions.OpenChannel) -> int | None:
        try:
            status = self._host_of(action.relid).open(self._request(action))
        except (HypercallError, LookupError, ValueError, OSError) as error:
            return self._refused(action.relid, str(error))
        if status == STATUS_SUCCESS:
            self._serves(action.relid)
        return status

    def _refused(self, relid: int, reason: str) -> int:
        self._root.complain("vmbus.open_refused", self.name, relid=relid, error=reason[:200])
        self._openings.forget(relid)
        return STATUS_FAILURE

    def _serves(self, relid: int) -> None:
        offer = self._offers[relid]
        offer.breaks.serves(self._root.now_ns())
        self._root.log("vmbus.channel_opened", guest=self.name, device=offer.name, relid=relid)

    def _close(self, relid: int) -> None:
        if (opening := self._openings.get(relid)) is None:  # no flag could be had for it
            self._root.nursery.start_soon(self._close_nothing, relid)
        else:
            self._host_of(relid).close(relid, opening)

    async def _close_nothing(self, relid: int) -> None:
        await self._root.sleep(0)
        self._perform(self._server.completed(actions.ChannelClosed(relid)))

    # -- what the hosts say (ChannelListener)

    def opened(self, relid: int, number: int, status: int) -> None:
        if self._openings.is_current(relid, number):
            if status == STATUS_SUCCESS:
                self._serves(relid)
            else:
                self._refused(relid, f"its host could not serve it (status {status:#x})")
            self._perform(self._server.completed(actions.ChannelOpened(relid, status)))

    def closed(self, relid: int, number: int) -> None:
        if self._openings.is_current(relid, number):
            self._openings.forget(relid)
            self._root.log("vmbus.channel_closed", guest=self.name, relid=relid)
            self._perform(self._server.completed(actions.ChannelClosed(relid)))

    def lost(self, relid: int, number: int, failed: bool, reason: str) -> None:
        """The guest gets another channel after a while; not where the service failed for good."""
        if not self._openings.is_current(relid, number) or (offer := self._offers.get(relid)) is None:
            return
        if offer.name in self._withheld or self._server.channel_state(relid) is not ChannelState.OPEN:
            return  # it is being closed already
        now_ns = self._root.now_ns()
        due_ns = None if failed else offer.breaks.failed(now_ns)
        kind = "vmbus.service_failed" if failed else "vmbus.channel_broken"
        pause_ms = None if due_ns is None else (due_ns - now_ns) / 1e6
        self._root.log(kind, guest=self.name, relid=relid, reason=reason, offered_again_in_ms=pause_ms)
        self._withhold(self._server.primary_of(relid), Withheld(offer, reason, due_ns))

    def asked_for_sub_channels(self, relid: int, number: int, count: int) -> None:
        if not self._openings.is_current(relid, number):
            return
        try:
            for index in missing(self._server, relid, count):
                self._offer(self._offers[relid], index)
        except LocalProtocolError as error:  # no relid is free
            self._root.complain("vmbus.sub_channels_refused", self.name, relid=relid, error=str(error)[:200])

    def find_stuck(self, stuck_ms: int) -> str | None:
        """The device of a channel whose thread has not moved for so long while its ring holds work."""
        for host in self._hosts:
            if (relid := host.find_stuck(stuck_ms)) is not None:
                return self._offers[relid].device.name
        return None

    def workers(self) -> list[ServedChannel]:
        """The channels that this process serves."""
        return self._hosts.workers()

    def _start_posting(self) -> None:
        if len(self._outbox) > OUTBOX_MESSAGES_MAX:
            self._root.log("vmbus.guest_does_not_read", guest=self.name, messages=len(self._outbox))
            self._outbox.clear()
            self._perform(self._server.disconnect())
        else:
            self._outbox.flush()
