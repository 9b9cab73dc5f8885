"""A channel server and a channel client joined by two queues, the devices behind the one, a driver before the other.

Nothing happens by itself: messages wait until one is delivered, device actions until one is reported done. So a
test can try any interleaving. `check` is what must hold at every moment, `agree` what must hold at rest.
"""

from collections import deque
from collections.abc import Collection
from uuid import UUID

from bus import channel_actions as actions
from bus import channel_events as events
from bus.channel_actions import Action, OfferParameters
from bus.channel_client import ChannelClient
from bus.channel_client_states import ClientChannelState, ClientStage
from bus.channel_events import Output
from bus.channel_lifecycle import ConnectionStage
from bus.channel_message_codec import Version
from bus.channel_server import ChannelServer
from bus.channel_states import WITHDRAWN_STATES, ChannelState
from bus.guids import SCSI
from bus.memory import PAGE_BYTES
from bus.packets import GpaRange
from bus.protocol_errors import LocalProtocolError, RemoteProtocolError

# Client's view at rest -> the server's.
AGREEMENT = {
    ClientChannelState.CLOSED: {ChannelState.CLOSED},
    ClientChannelState.OPEN: {ChannelState.OPEN},
    ClientChannelState.RESCINDED: {ChannelState.REVOKED, ChannelState.REOFFERED},
}


class World:
    def __init__(self) -> None:
        self.server, self.client = ChannelServer(), ChannelClient()
        self.to_host, self.to_guest = deque[bytes](), deque[bytes]()
        self.device: list[Action] = []  # handed out, not reported
        self.mapped: set[int] = set()  # GPADLs whose pages a device holds
        self.running: set[int] = set()  # channels whose device runs
        self.taken: set[int] = set()  # relids that the server may not give to another device

    # -- carrying things out

    def at_host(self, done: list[Action]) -> None:
        for action in done:
            match action:
                case actions.SendMessage(payload):
                    self.to_guest.append(payload)
                case actions.ResetConnection():
                    self.to_guest.clear()
                case actions.ChannelReleased(relid):
                    assert relid in self.taken
                    self.taken.discard(relid)
                case actions.UnmapGpadl(relid, gpadl):
                    assert gpadl in self.mapped
                    # A device that runs, or is being started or stopped, keeps its rings.
                    busy = [one for one in self.device if isinstance(one, actions.CloseChannel)]
                    assert relid not in {one.relid for one in busy}
                    self.device.append(action)
                case actions.OpenChannel(relid, ring):
                    assert relid not in self.running
                    assert ring in self.mapped
                    self.device.append(action)
                case actions.CloseChannel(relid):
                    assert relid in self.running
                    self.device.append(action)
                case actions.MapGpadl() | actions.ModifyChannel():
                    self.device.append(action)
                case actions.ConnectionMade():
                    assert not self.device
                    assert not self.mapped
                    assert not self.running

    def at_guest(self, out: list[Output]) -> None:
        for one in out:
            match one:
                case events.SendMessage(_, payload):
                    self.to_host.append(payload)
                case events.GpadlCreated(gpadl, 0):
                    # Unless it was for a channel that is gone by now, the pages are there.
                    assert gpadl in self.mapped or self.going(gpadl)
                case events.GpadlTornDown(gpadl):
                    assert gpadl not in self.mapped or self.going(gpadl)
                case events.Unloaded():
                    assert not self.mapped
                    assert not self.running

    def going(self, gpadl: int) -> bool:
        """Whether the server is taking this GPADL's channel away."""
        channels = self.server.to_state()["table"]["channels"]
        owners = [one for one in channels if gpadl in {row[0] for row in one["gpadls"]}]
        return not owners or owners[0]["state"] >= ChannelState.OPENING_RELEASE

    def deliver_to_guest(self) -> None:
        if self.to_guest:
            self.at_guest(self.client.receive(self.to_guest.popleft()))

    def deliver_to_host(self) -> None:
        """An honest client's message is never refused."""
        if not self.to_host:
            return
        before = self.server.to_state()
        try:
            self.at_host(self.server.receive(self.to_host.popleft()))
        except RemoteProtocolError:
            assert self.server.to_state() == before
            raise

    def report(self, index: int, status: int) -> None:
        """A device action is done, or failed."""
        if not self.device:
            return
        action = self.device.pop(index % len(self.device))
        if isinstance(action, actions.CloseChannel):  # moves of the interrupt are reported first
            for move in [one for one in self.device if isinstance(one, actions.ModifyChannel)]:
                if move.relid == action.relid:
                    self.device.remove(move)
                    self.at_host(self.server.completed(actions.ChannelModified(move.relid, status)))
        match action:
            case actions.MapGpadl(_, gpadl):
                if status == 0:
                    assert gpadl not in self.mapped
                    self.mapped.add(gpadl)
                completion: actions.Completion = actions.GpadlMapped(gpadl, status)
            case actions.UnmapGpadl(_, gpadl):
                self.mapped.remove(gpadl)
                completion = actions.GpadlUnmapped(gpadl)
            case actions.OpenChannel(relid):
                self.running |= {relid} if status == 0 else set()
                completion = actions.ChannelOpened(relid, status)
            case actions.CloseChannel(relid):
                self.running.remove(relid)
                completion = actions.ChannelClosed(relid)
            case actions.ModifyChannel(relid):
                completion = actions.ChannelModified(relid, status)
            case _:
                raise AssertionError(action)
        self.at_host(self.server.completed(completion))

    def settle(self) -> None:
        """Let everything that is under way come to rest."""
        while self.to_host or self.to_guest or self.device:
            if self.to_host:
                self.deliver_to_host()
            elif self.to_guest:
                self.deliver_to_guest()
            else:
                self.report(0, 0)

    # -- the host's choices

    def offer(self, instance: UUID, sub: int = 0) -> None:
        try:
            parameters = OfferParameters(interface=SCSI, instance=instance, sub_channel_index=sub)
            relid, done = self.server.offer(parameters)
        except LocalProtocolError:
            return
        state = self.server.channel_state(relid)
        assert state is not None
        # The relid is new, or the very device's own that has not been released yet.
        assert relid not in self.taken or state in WITHDRAWN_STATES
        self.taken.add(relid)
        self.at_host(done)

    def revoke(self, index: int) -> None:
        if not self.taken:
            return
        before = self.server.to_state()
        try:
            self.at_host(self.server.revoke(pick(self.taken, index)))
        except LocalProtocolError:
            assert self.server.to_state() == before

    def take_over(self) -> None:
        """A successor goes on from the saved state."""
        state = self.server.to_state()
        self.server = ChannelServer.from_state(state)
        assert self.server.to_state() == state

    # -- the guest's choices; what its own client refuses, it does not do

    def connect(self, newest: Version) -> None:
        """Anew: what it still had to say is lost, as with a kernel that takes over from a crashed one.

        The host hears the contact at once: an answer to an earlier one could not be told from this one's.
        """
        self.to_host.clear()
        self.client = ChannelClient(newest=newest)
        self.at_guest(self.client.start())
        self.to_guest.clear()
        self.deliver_to_host()

    def request_offers(self) -> None:
        try:
            self.at_guest(self.client.request_offers())
        except LocalProtocolError:
            return

    def unload(self) -> None:
        if self.client.stage is ClientStage.CONNECTED:
            self.at_guest(self.client.unload())

    def create_gpadl(self, index: int, pages: int) -> None:
        try:
            ranges = [GpaRange.contiguous(0x1000, pages * PAGE_BYTES)]
            self.at_guest(self.client.create_gpadl(self.relid(index), ranges)[1])
        except LocalProtocolError:
            return

    def open(self, index: int, gpadl_index: int) -> None:
        relid = self.relid(index)
        if not (relid and (gpadls := self.client.gpadls(relid))):
            return
        try:
            self.at_guest(self.client.open(relid, pick(gpadls, gpadl_index), 2))
        except LocalProtocolError:
            assert self.client.channel_state(relid) is not ClientChannelState.CLOSED

    def close(self, index: int) -> None:
        try:
            self.at_guest(self.client.close(self.relid(index)))
        except LocalProtocolError:
            return

    def modify(self, index: int) -> None:
        try:
            self.at_guest(self.client.modify(self.relid(index), 0))
        except LocalProtocolError:
            return

    def teardown_gpadl(self, index: int, gpadl_index: int) -> None:
        relid = self.relid(index)
        if not (relid and (gpadls := self.client.gpadls(relid))):
            return
        try:
            self.at_guest(self.client.teardown_gpadl(pick(gpadls, gpadl_index)))
        except LocalProtocolError:
            return  # the channel is open on it

    def relid(self, index: int) -> int:
        """Of a channel that the guest knows; 0 if there is none."""
        relids = [offer.relid for offer in self.client.offers]
        return pick(relids, index) if relids else 0

    # -- what always holds

    def every_action_under_way_is_known_to_the_server(self) -> None:
        assert sorted(map(repr, self.server.pending())) == sorted(map(repr, self.device))

    def devices_hold_what_the_server_says_they_hold(self) -> None:
        standing = self.server.standing()
        unmapping = {one.gpadl for one in self.device if isinstance(one, actions.UnmapGpadl)}
        closing = {one.relid for one in self.device if isinstance(one, actions.CloseChannel)}
        held = {one.gpadl for one in standing if isinstance(one, actions.MapGpadl)}
        running = {one.relid for one in standing if isinstance(one, actions.OpenChannel)}
        assert self.mapped == held | unmapping
        assert self.running == running | closing

    def a_running_device_has_its_rings(self) -> None:
        for one in self.server.standing():
            if isinstance(one, actions.OpenChannel):
                assert one.ring_gpadl in self.mapped

    def agree(self) -> None:
        """At rest: both ends tell the same story."""
        if self.client.stage is not ClientStage.CONNECTED:
            assert self.server.stage is ConnectionStage.DISCONNECTED
            assert not self.mapped
            assert not self.running
            return
        assert self.server.version == self.client.version
        known = {offer.relid for offer in self.client.offers}
        for relid in known:
            state = self.client.channel_state(relid)
            assert state is not None
            assert self.server.channel_state(relid) in AGREEMENT[state]
        for relid in self.taken - known:
            assert self.server.channel_state(relid) is ChannelState.CLIENT_RELEASED
        live = {
            gpadl
            for relid in known
            if self.client.channel_state(relid) is not ClientChannelState.RESCINDED
            for gpadl in self.client.gpadls(relid)
        }
        assert live == self.mapped

    def check(self) -> None:
        self.every_action_under_way_is_known_to_the_server()
        self.devices_hold_what_the_server_says_they_hold()
        self.a_running_device_has_its_rings()

    def end(self) -> None:
        """Everything comes to rest and agrees; then the guest dies, and nothing of it is left."""
        self.settle()
        self.agree()
        self.at_host(self.server.disconnect())
        self.settle()
        assert not self.mapped
        assert not self.running
        assert self.server.to_state()["gpadls_in_progress"] == []


def pick(numbers: Collection[int], index: int) -> int:
    return sorted(numbers)[index % len(numbers)]
