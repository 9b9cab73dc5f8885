"""What a driver partition serves is what its stack last said, whatever was lost or said twice on the way."""

import contextlib
import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.drivers import messages
from partitions.drivers.messages import (
    GRANTS_MAX,
    SUB_CHANNEL_INDEX_MAX,
    WAITING,
    Asked,
    Begin,
    DriverMessage,
    End,
    Leave,
    Lost,
    MalformedDriverMessage,
    Opened,
    Ready,
    Serve,
    ServeFlags,
    Stick,
    Stop,
    Stopped,
    decode_driver_message,
)
from partitions.drivers.table import Action, Attach, DriverTable, GetStuck, Say, StopServing
from partitions.stack.grant import Grant
from runtime.abi import MESSAGE_PAYLOAD_BYTES_MAX

u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
serves = st.builds(
    Serve,
    number=u64,
    guest=u32,
    relid=u32,
    flag=u16,
    flags=st.sampled_from([ServeFlags(bits) for bits in range(32)]),
    waiting=st.sampled_from(WAITING),
    ring_pages=u32,
    downstream_page_offset=u32,
    ring_gpfn=u64,
    grants=st.lists(st.builds(Grant, u64, u64, u32), max_size=GRANTS_MAX).map(tuple),
    sub_channel=st.integers(0, SUB_CHANNEL_INDEX_MAX),
)
all_messages = st.one_of(
    *(st.builds(kind, u64) for kind in (Begin, End, Stop, Stopped, Stick, Leave)),
    serves,
    st.builds(Ready, u64, u32, u32, u64, u64, u64, u64),
    st.builds(Opened, u64, u32),
    st.builds(Asked, u64, st.integers(0, SUB_CHANNEL_INDEX_MAX)),
    st.builds(Lost, u64, st.booleans(), st.text(max_size=40)),
)


@given(all_messages)
def test_a_message_comes_back_from_the_wire_and_fits_into_a_synic_message(message: DriverMessage) -> None:
    payload = message.encode()
    assert len(payload) <= MESSAGE_PAYLOAD_BYTES_MAX
    decoded = decode_driver_message(payload)
    assert decoded == message
    assert type(decoded) is type(message)


@given(st.binary(max_size=MESSAGE_PAYLOAD_BYTES_MAX))
def test_any_bytes_are_a_message_or_refused(payload: bytes) -> None:
    with contextlib.suppress(MalformedDriverMessage):
        decode_driver_message(payload)


@given(all_messages, st.integers(1, 8))
def test_a_message_that_was_cut_short_is_refused(message: DriverMessage, missing: int) -> None:
    if not isinstance(message, Lost):  # whose text may be any
        with pytest.raises(MalformedDriverMessage):
            decode_driver_message(message.encode()[:-missing])


def test_what_cannot_be_told_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match=f"driver is told of {GRANTS_MAX}"):
        serve(1, 1, grants=GRANTS_MAX + 1).encode()


def serve(number: int, flag: int, grants: int = 0) -> Serve:
    return Serve(number, 2, 1, flag, ServeFlags(0), "block", 8, 4, 0x100, (Grant(1, 2, 3),) * grants)


class Loop:
    """Carries a table's actions out, stops late, and looks that nothing is attached that it should not be."""

    def __init__(self, generation: int, rng: random.Random) -> None:
        self.table, self._rng = DriverTable(generation), rng
        self.attached: dict[int, int] = {}  # number, by flag
        self.stopping: list[int] = []
        self.said: list[messages.DriverMessage] = []
        self.replayed: list[tuple[int, ...]] = []  # what was attached together

    def receive(self, message: DriverMessage) -> None:
        self._perform(self.table.receive(decode_driver_message(message.encode())))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Attach(asked, _):
                    for one in asked:
                        assert one.flag not in self.attached, "two channels on one event flag"
                        self.attached[one.flag] = one.number
                    self.replayed.append(tuple(one.number for one in asked))
                    for one in asked:
                        self._perform(self.table.attached(one.number, 0))
                case StopServing(number):
                    assert number in self.attached.values()
                    assert number not in self.stopping, "told to stop it twice"
                    self.stopping.append(number)
                case Say(message):
                    self.said.append(message)
                case GetStuck():
                    pass

    def finish_a_stop(self) -> None:
        if self.stopping:
            number = self.stopping.pop(self._rng.randrange(len(self.stopping)))
            self.attached = {flag: one for flag, one in self.attached.items() if one != number}
            self._perform(self.table.stopped(number))

    def ask(self, number: int, count: int) -> None:
        self._perform(self.table.asked(number, count))

    def lose_one(self) -> None:
        if self.attached:
            self._perform(self.table.lost(self._rng.choice(list(self.attached.values())), False, "broken"))


def tell_all(generation: int, standing: dict[int, Serve]) -> list[DriverMessage]:
    return [Begin(generation), *standing.values(), End(generation)]


@pytest.mark.parametrize("seed", range(100))
def test_in_the_end_exactly_what_stands_is_attached(seed: int) -> None:
    """Through deaths of the root, which lose what it had not posted, and of drivers, whose mail goes to successors."""
    rng = random.Random(seed)
    generation, number = 1, 0
    standing: dict[int, Serve] = {}
    loop = Loop(generation, rng)
    mail: deque[DriverMessage] = deque(tell_all(generation, standing))
    for _ in range(300):
        match rng.randrange(12):
            case 0 | 1 | 2:  # a channel is opened, on the flag that was free longest or on one just freed
                number += 1
                free = sorted(set(range(1, 8)) - {one.flag for one in standing.values()})
                if free:
                    standing[number] = serve(number, rng.choice(free))
                    mail.append(standing[number])
            case 3 | 4:
                if standing:
                    mail.append(Stop(standing.pop(rng.choice(list(standing))).number))
            case 5:  # the root dies; what it had said last may never have been posted
                for _ in range(rng.randrange(3)):
                    if mail:
                        mail.pop()
                mail.extend(tell_all(generation, standing))
            case 6:  # the driver dies; its successor finds the mail that was for it
                generation += 1
                loop = Loop(generation, rng)
                mail.extend(tell_all(generation, standing))
            case 7:
                loop.lose_one()
            case 8:
                loop.finish_a_stop()
            case _:
                if mail:
                    loop.receive(mail.popleft())
    while mail or loop.stopping:
        if mail:
            loop.receive(mail.popleft())
        loop.finish_a_stop()
    assert set(loop.attached.values()) == set(standing)
    assert loop.table.idle == (not standing)


def test_what_stood_at_a_drivers_birth_is_attached_together() -> None:
    """So that whoever was in the middle of a batch can be replayed first."""
    loop = Loop(2, random.Random(0))
    for message in (Begin(1), serve(9, 1), End(1), Stop(9), Begin(2), serve(1, 1), serve(2, 2), End(2)):
        loop.receive(message)
    assert loop.replayed == [(1, 2)], "what was said to the predecessor is not for this one"
    loop.receive(serve(3, 3))
    assert loop.replayed == [(1, 2), (3,)]


def test_every_command_can_be_said_twice() -> None:
    loop = Loop(1, random.Random(0))
    for message in (
        Begin(1),
        serve(1, 1),
        End(1),
        serve(1, 1),
        Begin(1),
        serve(1, 1),
        End(1),
        Stop(5),
        Stop(5),
    ):
        loop.receive(message)
    assert loop.replayed == [(1,)]
    assert loop.said == [Opened(1, 0), Opened(1, 0), Opened(1, 0), Stopped(5), Stopped(5)]


def test_a_channel_that_was_lost_is_told_of_again_to_a_root_that_did_not_hear_it() -> None:
    loop = Loop(1, random.Random(0))
    for message in (Begin(1), serve(1, 1), End(1)):
        loop.receive(message)
    loop.lose_one()
    for message in (Begin(1), serve(1, 1), End(1)):
        loop.receive(message)
    assert loop.said[-2:] == [Lost(1, False, "broken")] * 2


def test_sub_channels_that_were_asked_for_are_told_of_again_to_a_root_that_did_not_hear_it() -> None:
    loop = Loop(1, random.Random(0))
    for message in (Begin(1), serve(1, 1), End(1)):
        loop.receive(message)
    loop.ask(1, 3)
    assert loop.table.asked(2, 3) == [], "of an opening that is no more"
    for message in (Begin(1), serve(1, 1), End(1)):
        loop.receive(message)
    assert [one for one in loop.said if isinstance(one, Asked)] == [Asked(1, 3)] * 2
