"""Server and client against each other, in any interleaving of messages, devices, rescinds and takeovers.

Twice: hypothesis, which shrinks a failure to the shortest program that replays it, and weighted random walks,
which get further; a seed replays a walk. What always holds is in channel_world.
"""

import random
from collections.abc import Callable
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bus import channel_messages as messages
from bus.channel_client_states import ClientStage
from bus.channel_lifecycle import ChannelLifecycle
from bus.channel_message_codec import Version
from bus.channel_messages import STATUS_FAILURE
from bus.channel_states import TRANSITIONS, ChannelEvent, ChannelState
from bus.channel_table import HostChannel
from bus.gpadl import gpadl_messages
from bus.memory import PAGE_BYTES
from bus.packets import GpaRange
from bus.protocol_errors import RemoteProtocolError
from tests.bus.channel_world import World

INSTANCES = [UUID(int=number) for number in range(1, 3)]
INDEXES = st.integers(0, 5)
STATUSES = st.sampled_from([0, 0, 0, STATUS_FAILURE])
VERSIONS = [Version.V6_0, Version.V5_3, Version.V4_0]


class Pair(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @initialize(
        offers=st.lists(st.sampled_from(INSTANCES), min_size=1, max_size=3), version=st.sampled_from(VERSIONS)
    )
    def boot(self, offers: list[UUID], version: Version) -> None:
        for instance in offers:
            self.world.offer(instance)
        self.connect(version)
        self.world.settle()

    @rule(instance=st.sampled_from(INSTANCES), sub=st.sampled_from([0, 0, 1]))
    def offer(self, instance: UUID, sub: int) -> None:
        self.world.offer(instance, sub)

    @rule(index=INDEXES)
    def revoke(self, index: int) -> None:
        self.world.revoke(index)

    @precondition(lambda self: self.world.device)
    @rule(index=INDEXES, status=STATUSES)
    def device_reports(self, index: int, status: int) -> None:
        self.world.report(index, status)

    @rule()
    def successor_takes_over(self) -> None:
        self.world.take_over()

    @precondition(lambda self: self.world.to_host)
    @rule(count=st.integers(1, 4))
    def guest_messages_arrive(self, count: int) -> None:
        for _ in range(min(count, len(self.world.to_host))):
            self.world.deliver_to_host()

    @precondition(lambda self: self.world.to_guest)
    @rule(count=st.integers(1, 4))
    def host_messages_arrive(self, count: int) -> None:
        for _ in range(min(count, len(self.world.to_guest))):
            self.world.deliver_to_guest()

    @rule()
    def everything_comes_to_rest(self) -> None:
        self.world.settle()
        self.world.agree()

    @precondition(lambda self: self.world.client.stage is not ClientStage.CONNECTED)
    @rule(version=st.sampled_from(VERSIONS))
    def connect(self, version: Version) -> None:
        self.world.connect(version)
        self.world.settle()
        self.world.request_offers()

    @rule(rarely=st.integers(0, 3), version=st.sampled_from(VERSIONS))
    def reconnect(self, rarely: int, version: Version) -> None:
        if rarely == 0:
            self.connect(version)

    @rule(rarely=st.integers(0, 3))
    def unload(self, rarely: int) -> None:
        if rarely == 0:
            self.world.unload()

    @rule(index=INDEXES, pages=st.sampled_from([4, 40]))
    def bring_up(self, index: int, pages: int) -> None:
        """As far as OPENCHANNEL on its way to the host."""
        self.world.create_gpadl(index, pages)
        self.world.settle()
        self.world.open(index, 0)

    @rule(index=INDEXES, pages=st.sampled_from([4, 8, 40]))
    def create_gpadl(self, index: int, pages: int) -> None:
        self.world.create_gpadl(index, pages)

    @rule(index=INDEXES, gpadl_index=INDEXES)
    def open(self, index: int, gpadl_index: int) -> None:
        self.world.open(index, gpadl_index)

    @rule(index=INDEXES)
    def close(self, index: int) -> None:
        self.world.close(index)

    @rule(index=INDEXES)
    def modify(self, index: int) -> None:
        self.world.modify(index)

    @rule(index=INDEXES, gpadl_index=INDEXES)
    def teardown_gpadl(self, index: int, gpadl_index: int) -> None:
        self.world.teardown_gpadl(index, gpadl_index)

    @rule(data=st.binary(max_size=60), relid=st.integers(100, 2050))
    def illegal_messages_change_nothing(self, data: bytes, relid: int) -> None:
        before = self.world.server.to_state()
        for junk in (b"\xff" + data, *about_no_channel(relid)):
            with pytest.raises(RemoteProtocolError):
                self.world.server.receive(junk)
        assert self.world.server.to_state() == before

    @invariant()
    def what_always_holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.end()


TestPair = Pair.TestCase
TestPair.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def about_no_channel(relid: int) -> list[bytes]:
    header, *_ = gpadl_messages(relid, 1, [GpaRange.contiguous(0, PAGE_BYTES)])
    return [
        messages.OpenChannel(relid, 1, 1, 0, 2).encode(),
        messages.CloseChannel(relid).encode(),
        messages.RelidReleased(relid).encode(),
        messages.GpadlTeardown(relid, 1).encode(),
        messages.ModifyChannel(relid, 0).encode(),
        header.encode(),
    ]


def walk(seed: int, turns: int) -> None:
    """One random life of a host and a guest."""
    rng, world = random.Random(seed), World()

    def index() -> int:
        return rng.randrange(6)

    parties: list[dict[Callable[[], None], float]] = [
        {lambda: world.deliver_to_host(): 1},
        {lambda: world.deliver_to_guest(): 1},
        {lambda: world.report(index(), rng.choice((0, 0, 0, STATUS_FAILURE))): 1},
        {
            lambda: world.offer(rng.choice(INSTANCES), rng.choice((0, 0, 1))): 8,
            lambda: world.revoke(index()): 2,
            lambda: world.take_over(): 1,
        },
        {
            lambda: world.connect(rng.choice(VERSIONS)): 0.3,
            lambda: world.unload(): 0.2,
            lambda: world.request_offers(): 4,
            lambda: world.create_gpadl(index(), rng.choice((4, 8, 40))): 4,
            lambda: world.open(index(), index()): 12,
            lambda: world.close(index()): 3,
            lambda: world.modify(index()): 6,
            lambda: world.teardown_gpadl(index(), index()): 1,
        },
    ]
    for _ in range(turns):
        # One party does not get to run for a while, so that the others go far before it answers.
        awake = rng.sample(parties, len(parties) - 1)
        for _ in range(rng.randrange(40)):
            choices = rng.choice(awake)
            rng.choices(list(choices), list(choices.values()))[0]()
            world.check()
        if world.client.stage is ClientStage.DISCONNECTED:
            world.connect(rng.choice(VERSIONS))
    world.end()


@pytest.mark.parametrize("seed", range(60))
def test_walks_keep_every_invariant_and_end_in_agreement(seed: int) -> None:
    walk(seed, turns=20)


# Our client lets go only of what was rescinded; the server takes it from others, which test_channel_server_ends tries.
_UNASKED = {
    (state, ChannelEvent.RELEASE)
    for state in (
        ChannelState.CLOSED,
        ChannelState.CLOSING,
        ChannelState.CLOSING_REVOKE,
        ChannelState.REVOKING,
    )
}


def test_walks_reach_every_transition_that_an_honest_guest_can_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the walks would prove less than they seem to."""
    taken = set[tuple[ChannelState, ChannelEvent]]()
    advance, check = ChannelLifecycle._advance, ChannelLifecycle._check

    def noting_advance(
        self: ChannelLifecycle, channel: HostChannel, event: ChannelEvent, status: int = 0
    ) -> object:
        taken.add((channel.state, event))
        return advance(self, channel, event, status)

    def noting_check(self: ChannelLifecycle, channel: HostChannel, event: ChannelEvent) -> object:
        taken.add((channel.state, event))
        return check(self, channel, event)

    monkeypatch.setattr(ChannelLifecycle, "_advance", noting_advance)
    monkeypatch.setattr(ChannelLifecycle, "_check", noting_check)
    for seed in range(1000, 2000):
        walk(seed, turns=40)
        if set(TRANSITIONS) - taken == _UNASKED:
            return
    pytest.fail(f"never taken: {sorted((set(TRANSITIONS) - taken) ^ _UNASKED, key=str)}")
