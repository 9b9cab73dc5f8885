"""What each fault of a channel's rings does to a guest that uses them, on a machine that runs."""

from typing import Any

from runtime.chaos.faults.knobs import Knobs
from tests.machine.probed_machine import ProbedMachine, soon
from tests.machine.probing_guest import content

_DELAY_MS = 30
_ASLEEP_MS = 200  # a guest that has asked sleeps by then
_TRIES = 20
_READS = 400  # an index of free room is looked at once in a while
_SOON_S = 0.3
_SOME = Knobs(space=2, times=3)


def _ends_the_channel(machine: ProbedMachine, kind: str, *, rescinds: bool, **parameters: Any) -> None:
    """It is the guest that finds out, and closes; or its server, and the guest is told by a rescind."""
    before = machine.count_of("vmbus.channel_broken")
    block = machine.filled()
    with machine.armed(kind, **parameters) as fault:

        def is_ended() -> bool:
            answer = machine.ask("reads", block=block, times=_READS, timeout_s=_SOON_S)
            error = answer.get("error")
            assert error in (None, "DiskClosedError", "DiskTimeoutError"), answer
            # A read that takes too long before it has struck is only slow.
            return error == "DiskClosedError" or (error is not None and fault.fired > 0)

        assert soon(is_ended)
        fault.fires()
        if rescinds:
            assert soon(lambda: machine.count_of("vmbus.channel_broken") > before)
    machine.reopen()
    assert machine.get(block) == content(block)


def bad_write_index(machine: ProbedMachine) -> None:
    for ring, rescinds in (("completions", False), ("requests", True)):
        _ends_the_channel(machine, "ring-bad-write-index", ring=ring, rescinds=rescinds)


def bad_read_index(machine: ProbedMachine) -> None:
    """Whoever believes it takes a full ring for one with room, or the other way round; so it is checked."""
    block = machine.filled()
    with machine.armed("ring-bad-read-index", ring="requests") as fault:
        machine.get(block)  # from here on it stands there
        fault.fires()
        assert machine.ask("pile", count=200, timeout_s=20)["error"] == "DiskClosedError"
    machine.reopen()
    assert machine.get(block) == content(block)


def bad_request_header(machine: ProbedMachine) -> None:
    _ends_the_channel(machine, "ring-bad-request-header", field="length", rescinds=True)


def bad_completion_header(machine: ProbedMachine) -> None:
    _ends_the_channel(machine, "ring-bad-completion-header", field="type", rescinds=False)


def index_storm(machine: ProbedMachine) -> None:
    """A guest with many requests in flight looks while they are bad. Whichever it meets, it ends the channel."""
    block = machine.filled()
    with machine.armed("ring-index-storm", writes=20_000) as fault:
        assert soon(lambda: "error" in machine.ask("pile", count=32, timeout_s=_SOON_S))
        fault.fires()
    machine.reopen()
    assert machine.get(block) == content(block)


def _spoils_requests(machine: ProbedMachine, kind: str, **parameters: Any) -> None:
    """Some of many go wrong, and are refused or never answered. Their server and all others go on.

    How many it takes is chance: a bit may be one that nobody reads, a race one that the server wins.
    """
    first = machine.fresh(16)

    def some_go_wrong() -> bool:
        answer = machine.ask("writes", first=first, tags=[5] * 16, timeout_s=0.02)
        wrong = [machine.on_the_medium(first + index) != content(5) for index in range(16)]
        return any(answer["errors"]) or any(wrong)

    with machine.armed(kind, **parameters) as fault:
        assert soon(some_go_wrong)
        fault.fires()
    machine.reopen()


def flip_request(machine: ProbedMachine) -> None:
    _spoils_requests(machine, "ring-flip-request")


def double_fetch(machine: ProbedMachine) -> None:
    _spoils_requests(machine, "ring-double-fetch", field="payload")


def flip_completion(machine: ProbedMachine) -> None:
    _spoils_requests(machine, "ring-flip-completion")


def _is_counted_and_dropped(machine: ProbedMachine, kind: str, counter: str) -> None:
    block = machine.filled()
    before = machine.ask("counters")[counter]
    with machine.armed(kind, knobs=_SOME) as fault:
        for _ in range(8):
            assert machine.get(block) == content(block)
        fault.fires(3)
        assert machine.ask("counters")[counter] >= before + 3


def replayed_id(machine: ProbedMachine) -> None:
    _is_counted_and_dropped(machine, "ring-replayed-id", "unknown_ids")


def unknown_id(machine: ProbedMachine) -> None:
    _is_counted_and_dropped(machine, "ring-unknown-id", "unknown_ids")


def twice(machine: ProbedMachine) -> None:
    _is_counted_and_dropped(machine, "ring-twice", "unknown_ids")


def unsolicited(machine: ProbedMachine) -> None:
    _is_counted_and_dropped(machine, "ring-unsolicited", "unasked")


def _waits_for_the_healing(machine: ProbedMachine, kind: str) -> None:
    block = machine.filled()
    with machine.armed(kind) as fault:
        reading = machine.start("read", block=block)
        fault.fires()
        healed_ns = fault.heal()
        answer = reading.answer()
        assert answer["done_ns"] > healed_ns
        assert bytes.fromhex(answer["value"]) == content(block)


def lost(machine: ProbedMachine) -> None:
    _waits_for_the_healing(machine, "ring-lost")


def not_drained(machine: ProbedMachine) -> None:
    _waits_for_the_healing(machine, "ring-not-drained")


def mask_stuck(machine: ProbedMachine) -> None:
    """The disk is slow, so that the guest sleeps by the time that its answer comes; on a busy host it may be late."""

    def waited() -> bool:
        block = machine.filled()
        with machine.armed("storage-slow", delay_ms=_ASLEEP_MS), machine.armed("ring-mask-stuck") as fault:
            reading = machine.start("read", block=block)
            fault.fires()
            healed_ns = fault.heal()
            return bool(reading.answer()["done_ns"] > healed_ns)

    assert any(waited() for _ in range(_TRIES))


def delayed(machine: ProbedMachine) -> None:
    block = machine.filled()
    with machine.armed("ring-delayed", delay_ms=_DELAY_MS):
        began_ns = machine.ask("signals")["done_ns"]
        answer = machine.ask("read", block=block)
        assert answer["done_ns"] - began_ns >= _DELAY_MS * 1_000_000
        assert bytes.fromhex(answer["value"]) == content(block)


def pending_size(machine: ProbedMachine) -> None:
    """A guest rings, or need not, once for each request; what it rings beyond that nobody wants."""

    def rings_beyond_requests() -> int:
        counters = machine.ask("counters")
        return int(counters["signals_sent"] + counters["signals_suppressed"] - counters["packets_sent"])

    block = machine.filled()
    before = rings_beyond_requests()
    with machine.armed("ring-pending-size"):
        for _ in range(16):
            assert machine.get(block) == content(block)
        assert rings_beyond_requests() > before
