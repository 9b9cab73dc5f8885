"""What each fault of messages does to a guest that exchanges them with the root, on a machine that runs.

The exchange: the guest hands the same page over, several times, each under a number of its own, and the root answers
each: that it took the page, or that it did not.
"""

import time
from collections.abc import Callable
from typing import Any, Final

from bus.channel_message_codec import ChannelMessageType
from bus.channel_messages import GpadlCreated, GpadlHeader, GpadlTorndown
from runtime.chaos.faults.knobs import Knobs, Trigger
from tests.machine.probed_machine import ONCE, PROBE, ProbedMachine, soon
from tests.machine.probing_guest import content

_DELAY_MS: Final = 30
_QUIET_S: Final = 0.05  # many lines of a flood
_FOR_EVER_MS: Final = 60_000
_SYNIC: Final = "synic-message-"
_CHANNEL: Final = "channel-message-"
_CREATED: Final = GpadlCreated(0, 0, 0).encode()[:4]
_NUMBER_BYTES: Final = range(12, 16)  # in GPADL_HEADER and in GPADL_CREATED: the handle


class Exchange:
    """Some pages that were handed over, and the answers as they come."""

    def __init__(self, machine: ProbedMachine, count: int) -> None:
        self._machine = machine
        machine.ask("heard")
        lent = machine.ask("lend", count=count)
        self.relid, self.gpadls, self.posted_ns = lent["relid"], lent["gpadls"], lent["posted_ns"]
        self.messages: list[tuple[int, bytes]] = []

    def hears(self, enough: Callable[["Exchange"], bool]) -> bool:
        def look() -> bool:
            heard = self._machine.ask("heard")["messages"]
            told = [(when_ns, bytes.fromhex(message)) for when_ns, message in heard]
            self.messages += [
                one for one in told if one[1][:4] == _CREATED
            ]  # others are of earlier exchanges
            return enough(self)

        return soon(look)

    @property
    def answers(self) -> list[int]:
        """Which page each says was taken, in the order in which they came."""
        good = {GpadlCreated(self.relid, one, 0).encode(): one for one in self.gpadls}
        return [good[message] for _, message in self.messages if message in good]

    @property
    def first_ns(self) -> int:
        return self.messages[0][0]

    def take_back(self) -> None:
        self._machine.ask("unlend", relid=self.relid, gpadls=self.gpadls)


def _exchanges_again(machine: ProbedMachine) -> None:
    """With nothing armed each gets its answer, in order."""
    exchange = Exchange(machine, 3)
    assert exchange.hears(lambda it: len(it.answers) == 3)
    assert exchange.answers == exchange.gpadls
    exchange.take_back()
    wanted, heard = {GpadlTorndown(one).encode().hex() for one in exchange.gpadls}, set[str]()

    def all_are_back() -> bool:
        heard.update(message for _, message in machine.ask("heard")["messages"])
        return wanted <= heard

    assert soon(all_are_back), "and nothing is under way any more"


def _drop(machine: ProbedMachine, kind: str, direction: str) -> None:
    with machine.armed(kind, PROBE, ONCE, direction=direction) as fault:
        exchange = Exchange(machine, 3)
        assert exchange.hears(lambda it: len(it.answers) == 2)
        fault.fires()
        assert exchange.answers == exchange.gpadls[1:]
    exchange.take_back()
    _exchanges_again(machine)


def _duplicate(machine: ProbedMachine, kind: str, direction: str) -> None:
    """An answer comes twice; a request that comes twice is done once."""
    with machine.armed(kind, PROBE, ONCE, direction=direction):
        exchange = Exchange(machine, 2)
        if direction == "to":
            assert exchange.hears(lambda it: len(it.answers) == 3)
            assert exchange.answers == [exchange.gpadls[0], *exchange.gpadls]
        else:
            assert exchange.hears(lambda it: len(it.answers) == 2)
            assert exchange.answers == exchange.gpadls
    exchange.take_back()
    _exchanges_again(machine)


def _delay(machine: ProbedMachine, kind: str, direction: str) -> None:
    with machine.armed(kind, PROBE, ONCE, direction=direction, delay_ms=_DELAY_MS):
        exchange = Exchange(machine, 3)
        assert exchange.hears(lambda it: len(it.answers) == 3)
        assert exchange.first_ns - exchange.posted_ns >= _DELAY_MS * 1_000_000
        assert exchange.answers == exchange.gpadls, "what is behind it waits, too"
    exchange.take_back()
    _exchanges_again(machine)


def _reorder(machine: ProbedMachine, kind: str, direction: str) -> None:
    with machine.armed(kind, PROBE, ONCE, direction=direction, delay_ms=_FOR_EVER_MS):
        exchange = Exchange(machine, 3)
        assert exchange.hears(lambda it: len(it.answers) == 3)
        first, second, third = exchange.gpadls
        assert exchange.answers == [second, first, third]
    exchange.take_back()
    _exchanges_again(machine)


def _hits_the_number() -> int:
    """A seed whose bit is one of the page's number, in the request as in the answer."""
    lengths = len(GpadlHeader(1, 1, 16, 1, bytes(16)).encode()), len(GpadlCreated(1, 1, 0).encode())
    return next(
        seed
        for seed in range(10_000)
        if all(Trigger(ONCE, seed).draw(8 * length) // 8 in _NUMBER_BYTES for length in lengths)
    )


def _corrupt(machine: ProbedMachine, kind: str, direction: str) -> None:
    """Of another page than was asked for, the answer is; the page that was asked for has none."""
    with machine.armed(kind, PROBE, ONCE, seed=_hits_the_number(), direction=direction):
        exchange = Exchange(machine, 3)
        assert exchange.hears(lambda it: len(it.messages) == 3)
        assert exchange.answers == exchange.gpadls[1:]
    exchange.take_back()
    _exchanges_again(machine)


_HARMS: Final = {
    "drop": _drop,
    "duplicate": _duplicate,
    "delay": _delay,
    "reorder": _reorder,
    "corrupt": _corrupt,
}


def both_ways(kind: str) -> Callable[[ProbedMachine], None]:
    def run(machine: ProbedMachine) -> None:
        for direction in ("to", "from"):
            _HARMS[kind.rsplit("-", 1)[1]](machine, kind, direction)

    return run


MESSAGE_CASES: Final = {
    prefix + harm: both_ways(prefix + harm) for prefix in (_SYNIC, _CHANNEL) for harm in _HARMS
}


# -- devices that come and go


def rescind(machine: ProbedMachine) -> None:
    block = machine.filled()
    opened = machine.count_of("vmbus.channel_opened")
    with machine.armed("rescind", PROBE, for_ms=_FOR_EVER_MS) as fault:

        def is_closed() -> bool:
            answer = machine.ask("reads", block=block, times=1_000, timeout_s=20)
            return bool(answer.get("error") == "DiskClosedError")

        assert soon(is_closed)
        machine.ask("close")
        assert soon(lambda: not machine.ask("offers")["offered"])
        fault.fires()
        fault.heal()  # gives it back at once
    machine.reopen()
    assert soon(lambda: machine.count_of("vmbus.channel_opened") > opened)
    assert machine.get(block) == content(block)


def rescind_during_open(machine: ProbedMachine) -> None:
    block = machine.filled()
    machine.ask("close")
    with machine.armed("rescind-during-open", PROBE, ONCE, for_ms=20) as fault:
        answer = machine.ask("open")
        assert answer["error"] == "VmbusError", answer
        fault.fires()
        machine.reopen()
    assert machine.get(block) == content(block)


def _offered_again(machine: ProbedMachine) -> list[tuple[int, int]]:
    """What the host says from here on until the disk is there again: when, and which message."""
    machine.ask("heard")
    taken = machine.inject("rescind", PROBE, for_ms=1)
    machine.reopen()
    taken.heal()
    heard = machine.ask("heard")["messages"]
    return [(when_ns, int.from_bytes(bytes.fromhex(message)[:4], "little")) for when_ns, message in heard]


def offer_late(machine: ProbedMachine) -> None:
    with machine.armed("offer-late", PROBE, delay_ms=_DELAY_MS):
        heard = _offered_again(machine)
        (gone_ns,) = [when for when, kind in heard if kind == ChannelMessageType.RESCIND_CHANNELOFFER]
        (came_ns,) = [when for when, kind in heard if kind == ChannelMessageType.OFFERCHANNEL]
        assert came_ns - gone_ns >= _DELAY_MS * 1_000_000


def offer_twice(machine: ProbedMachine) -> None:
    with machine.armed("offer-twice", PROBE):
        kinds = [kind for _, kind in _offered_again(machine)]
        assert kinds.count(ChannelMessageType.OFFERCHANNEL) == 2
        assert kinds.count(ChannelMessageType.OPENCHANNEL_RESULT) == 1


# -- what a hostile guest would send


def _is_refused(machine: ProbedMachine, kind: str) -> None:
    """Its bus takes none of them, and the guest, in whose name they came, keeps what it has."""

    def complaints() -> int:
        told: list[Any] = machine.all_of("vmbus.protocol_error")
        return sum(1 + event["fields"].get("left_out", 0) for event in told)

    block, before = machine.filled(), complaints()
    with machine.armed(kind, PROBE, Knobs(times=5), rate=500) as fault:
        fault.fires(5)
        assert soon(lambda: complaints() >= before + 5)
        assert machine.get(block) == content(block)
    assert machine.count_of("fault.forgery_accepted") == 0


def forge_relid(machine: ProbedMachine) -> None:
    _is_refused(machine, "forge-relid")


def forge_gpadl(machine: ProbedMachine) -> None:
    _is_refused(machine, "forge-gpadl")


def console_flood(machine: ProbedMachine) -> None:
    before = machine.count_of("root.noise")
    with machine.armed("console-flood", "root", rate=1000):
        assert soon(lambda: machine.count_of("root.noise") >= before + 5)

    def is_quiet() -> bool:
        before = machine.count_of("root.noise")
        machine.works()
        time.sleep(_QUIET_S)
        return machine.count_of("root.noise") == before

    assert soon(is_quiet), "it is over, once what was on its way is there"
