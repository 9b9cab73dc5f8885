"""Each check is content with a sound trial, and catches the defect that is planted for it."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from runtime.chaos.experiment.checks.check import CHECKS, DEFAULT, CheckError, check_of
from runtime.chaos.experiment.evidence import Balance, Evidence
from runtime.chaos.experiment.journal import Finding, Outcome
from runtime.chaos.experiment.model import CheckPlan
from runtime.chaos.history import Ending, OperationKind
from runtime.chaos.history import Outcome as Answer
from tests.runtime.chaos_making import (
    BEGAN_NS,
    HEALED_NS,
    MS,
    event,
    evidence,
    history,
    injection,
    request,
    steady_load,
)

SCHEDULE = (injection(1),)


def sound() -> Evidence:
    histories = {
        "guest1": history(*steady_load()),
        "bystander": history(*steady_load(2), seed=2),
    }
    return evidence(histories, SCHEDULE, devices={"bystander": "disk1"})


def judge(kind: str, whole: Evidence, **parameters: float) -> Finding:
    check, settled = check_of(CheckPlan(kind=kind, parameters=dict(parameters)))
    return check.judge(whole, settled)


def with_guest(
    *, ending: Ending = Ending.FINISHED, leave_out: Callable[[int], bool] = lambda ms: False
) -> Evidence:
    operations = [one for one in steady_load() if not leave_out((one.invoked_ns - BEGAN_NS) // MS)]
    whole = sound()
    numbered = [replace(one, number=number) for number, one in enumerate(operations, 1)]
    return replace(whole, histories={**whole.histories, "guest1": history(*numbered, ending=ending)})


@pytest.mark.parametrize("kind", [kind for kind in CHECKS if kind != "fifo"])  # which has a file of its own
def test_a_sound_trial_passes(kind: str) -> None:
    finding = judge(kind, sound())
    assert (finding.outcome, finding.texts) == (Outcome.PASSED, ())


def test_history_catches_a_lost_write() -> None:
    whole = sound()
    first = request(1, OperationKind.WRITE, 3, 0)
    second = request(2, OperationKind.WRITE, 3, 10)
    old = request(3, OperationKind.READ, 3, 20, values=(first.version,))
    finding = judge("history", replace(whole, histories={"guest1": history(first, second, old)}))
    assert finding.outcome is Outcome.VIOLATED
    assert "disk0: block 3" in finding.texts[0]
    assert finding.figures["violations lost"] == 1


def test_history_says_when_it_had_nothing_to_look_at() -> None:
    assert judge("history", evidence({})).outcome is Outcome.INCONCLUSIVE
    unread = history(request(1, OperationKind.WRITE, 3, 0))
    assert judge("history", evidence({"guest1": unread})).outcome is Outcome.INCONCLUSIVE


def test_history_excuses_a_guest_that_was_killed_and_nobody_else() -> None:
    cut_short = history(
        *steady_load(until_ms=100), request(999, OperationKind.WRITE, 2, 101, None), ending=Ending.NONE
    )
    cut_short.operations[-1].number = len(cut_short.operations)
    for target, outcome in (("guest1", Outcome.PASSED), ("root", Outcome.VIOLATED)):
        whole = evidence({"guest1": cut_short}, (injection(1, "kill", target),))
        assert judge("history", whole).outcome is outcome


def test_liveness_catches_a_guest_that_is_never_answered_again() -> None:
    whole = sound()
    hung = steady_load(until_ms=400)
    hung.append(request(len(hung) + 1, OperationKind.READ, 1, 410, None))
    finding = judge("liveness", replace(whole, histories={"guest1": history(*hung, ending=Ending.NONE)}))
    assert finding.outcome is Outcome.VIOLATED


def test_liveness_catches_an_answer_that_comes_too_late() -> None:
    late = with_guest(leave_out=lambda ms: 400 < ms < 800)
    assert judge("liveness", late, within_ms=200).outcome is Outcome.VIOLATED
    assert judge("liveness", late, within_ms=400).outcome is Outcome.PASSED


def test_liveness_asks_nothing_of_the_dead() -> None:
    whole = with_guest(ending=Ending.NONE, leave_out=lambda ms: ms > 300)
    dead = event("partition.exited", 301, "guest1", reason="signal 9")
    assert judge("liveness", replace(whole, events=[dead])).outcome is Outcome.PASSED


@pytest.mark.parametrize("defect", ["error", "end", "wait"])
def test_containment_catches_what_a_bystander_sees(defect: str) -> None:
    whole = sound()
    operations = steady_load(2)
    events = []
    match defect:
        case "error":
            operations[-1].outcome, operations[-1].values = Answer.FAILED, ()
        case "end":
            events = [event("partition.exited", 100, "bystander", reason="signal 11")]
        case "wait":
            operations[-1].completed_ns = (operations[-1].completed_ns or 0) + 2_000 * MS
    histories = {**whole.histories, "bystander": history(*operations, seed=2)}
    finding = judge("containment", replace(whole, histories=histories, events=events))
    assert finding.outcome is Outcome.VIOLATED
    assert "bystander" in finding.texts[0]


def test_containment_compares_p99_where_it_is_asked_to() -> None:
    whole = sound()
    slow = [
        replace(one, completed_ns=one.invoked_ns + 4 * MS) if BEGAN_NS <= one.invoked_ns < HEALED_NS else one
        for one in steady_load(2)
    ]
    slowed = replace(whole, histories={**whole.histories, "bystander": history(*slow, seed=2)})
    assert judge("containment", slowed).outcome is Outcome.PASSED
    assert judge("containment", slowed, p99_factor=3).outcome is Outcome.VIOLATED
    assert judge("containment", slowed, p99_factor=5).outcome is Outcome.PASSED


def test_containment_needs_a_bystander() -> None:
    whole = evidence({"guest1": history(*steady_load())}, (injection(1, "stop", "guest1"),))
    assert judge("containment", whole).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    "change",
    [
        {"left_behind": ["process 4711"]},
        {"after": Balance(8, 100, 200 << 20)},
        {"after": Balance(7, 200, 200 << 20)},
        {"after": Balance(7, 100, 400 << 20)},
    ],
)
def test_resources_catch_what_is_more_than_before(change: dict[str, object]) -> None:
    assert judge("resources", replace(sound(), **change)).outcome is Outcome.VIOLATED  # type: ignore[arg-type]


def test_resources_that_could_not_be_counted_again_show_nothing() -> None:
    assert judge("resources", replace(sound(), after=None)).outcome is Outcome.INCONCLUSIVE


class NobodyExited:
    """A check of one's own: what docs/chaos.md shows."""

    name, meaning, parameters = "nobody-exited", "no partition ended before its time", ()

    def judge(self, whole: Evidence, parameters: object) -> Finding:
        texts = [
            f"{one['partition']} ended"
            for one in whole.all_of("partition.exited")
            if one["monotonic_ns"] < whole.healed_ns
        ]
        return Finding(self.name, Outcome.VIOLATED if texts else Outcome.PASSED, tuple(texts))


def test_a_check_of_ones_own() -> None:
    own = f"{__name__}:NobodyExited"
    assert judge(own, sound()).outcome is Outcome.PASSED
    ended = replace(sound(), events=[event("partition.exited", 3, "guest1")])
    assert judge(own, ended).texts == ("guest1 ended",)


@pytest.mark.parametrize(
    "plan",
    [
        CheckPlan(kind="no-such"),
        CheckPlan(kind="no.such:Module"),
        CheckPlan(kind=f"{__name__}:NoSuch"),
        CheckPlan(kind="liveness", parameters={"within": 1}),
        CheckPlan(kind="liveness", parameters={"within_ms": 0}),
    ],
)
def test_what_is_no_check_is_refused_in_one_line(plan: CheckPlan) -> None:
    with pytest.raises(CheckError) as caught:
        check_of(plan)
    assert "\n" not in str(caught.value)


def test_the_checks_that_nobody_asked_for_are_there() -> None:
    assert {plan.kind for plan in DEFAULT} <= set(CHECKS)
