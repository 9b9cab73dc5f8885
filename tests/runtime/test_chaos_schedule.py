"""From an experiment and a seed to what a trial does, and back from its journal."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.chaos.experiment.journal import (
    Fate,
    Finding,
    Header,
    JournalError,
    Outcome,
    Trial,
    read_journal,
)
from runtime.chaos.experiment.model import Experiment
from runtime.chaos.experiment.schedule import Schedule, ScheduleError, draw, renumbered
from runtime.chaos.experiment.trial import is_spent
from runtime.chaos.faults.kinds import Carrier, FaultKind, Group, Parameter
from tests.runtime.chaos_making import injection

KILL = FaultKind("kill", Group.PROCESS, "SIGKILL", "process", Carrier.PROCESS)
SLOW = FaultKind(
    "storage-slow",
    Group.STORAGE,
    "a request takes longer",
    "storage.execute",
    Carrier.SERVER,
    (Parameter("delay_ms", 10, "how much longer", "ms", 0, 1000),),
)
CATALOGUE = {kind.name: kind for kind in (KILL, SLOW)}
TABLES: dict[str, Any] = {
    "experiment": {"name": "both"},
    "fault": [
        {"kind": "kill", "target": "root", "at_ms": [100, 900], "count": 3, "every_ms": 50, "chance": 60},
        {
            "kind": "storage-slow",
            "target": "disk0",
            "parameters": {"delay_ms": {"from": 1, "to": 900}},
            "knobs": {"probability": {"any": [5, 50.0]}, "times": 3},
            "on": "root.started",
            "nth": 2,
            "for_ms": 300,
        },
    ],
}


def experiment(tables: dict[str, Any]) -> Experiment:
    return msgspec.convert(tables, Experiment)


@given(st.integers(0, 1 << 40))
def test_a_seed_always_draws_the_same(seed: int) -> None:
    assert draw(experiment(TABLES), seed, CATALOGUE) == draw(experiment(TABLES), seed, CATALOGUE)


@given(st.integers(0, 1 << 40))
def test_what_is_drawn_is_within_what_was_asked_for(seed: int) -> None:
    schedule = draw(experiment(TABLES), seed, CATALOGUE)
    assert [injection.order.number for injection in schedule] == list(range(1, len(schedule) + 1))
    assert len(schedule) in (1, 4)
    *kills, slow = schedule
    for place, kill in enumerate(kills):
        assert 100 + 50 * place <= kill.moment.after_ms <= 900 + 50 * place
    assert 1 <= int(slow.order.parameters["delay_ms"]) <= 900
    assert slow.order.knobs.probability in (5, 50)
    assert slow.order.knobs.times == 3
    assert (slow.moment.on, slow.moment.nth, slow.for_ms) == ("root.started", 2, 300)


@given(st.integers(0, 1 << 40))
def test_leaving_a_fault_out_changes_no_other(seed: int) -> None:
    first = experiment({**TABLES, "fault": TABLES["fault"][:1]})
    whole = draw(experiment(TABLES), seed, CATALOGUE)
    assert draw(first, seed, CATALOGUE) == whole[:-1]


def test_each_draw_of_a_repeated_fault_has_a_seed_of_its_own() -> None:
    table = {"kind": "storage-slow", "target": "disk0", "count": 20}
    schedule = draw(experiment({**TABLES, "fault": [table]}), 1, CATALOGUE)
    assert len({injection.order.seed for injection in schedule}) == 20


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "no-such"},
        {"kind": "kill", "parameters": {"hard": 1}},
        {"kind": "storage-slow", "parameters": {"delay_ms": 5000}},
        {"kind": "storage-slow", "parameters": {"delay_ms": {"from": 9, "to": 1}}},
        {"kind": "kill", "knobs": {"often": 1}},
        {"kind": "kill", "at_ms": [9, 1]},
        {"kind": "kill", "at_ms": [1], "on": "root.started"},
    ],
)
def test_what_cannot_be_drawn_is_refused_with_its_place(fault: dict[str, Any]) -> None:
    wrong = experiment({**TABLES, "fault": [{"kind": "kill", "target": "root"}, {"target": "root"} | fault]})
    with pytest.raises(ScheduleError, match=r"^fault\[1\]: "):
        draw(wrong, 1, CATALOGUE)


def trial(schedule: Schedule, *outcomes: Outcome, trouble: str = "") -> Trial:
    findings = tuple(
        Finding(f"check{n}", outcome, ("why",), {"ms": 1.5}) for n, outcome in enumerate(outcomes)
    )
    fates = tuple(Fate(injection.order.number, 1.0, 2.0, 3, 1, None, None, 4.0) for injection in schedule)
    points, timeline = ((0.5, 0.1),), ((0.25, "root.started", "root"),)
    return Trial(1, 7, "microkernelized", schedule, fates, findings, (2.5,), points, timeline, 1.25, trouble)


@given(st.integers(0, 1 << 40), st.lists(st.sampled_from(Outcome), max_size=3), st.booleans())
def test_a_journal_says_what_happened(seed: int, outcomes: list[Outcome], troubled: bool) -> None:
    one = trial(draw(experiment(TABLES), seed, CATALOGUE), *outcomes, trouble="no load" if troubled else "")
    assert Trial.from_table(json.loads(json.dumps(one.to_table()))) == one
    wanted = Outcome.worst([*outcomes, *([Outcome.INCONCLUSIVE] if troubled else [])])
    assert one.outcome == wanted
    assert (Outcome.VIOLATED in outcomes) == (one.outcome == Outcome.VIOLATED)


def test_a_journal_that_was_cut_short_has_what_was_whole(tmp_path: Path) -> None:
    schedule = draw(experiment(TABLES), 3, CATALOGUE)
    header = Header(TABLES, "a.toml", "/", 1, 2, {"partvisor": "0"})
    lines = [json.dumps(header.to_table()), json.dumps(trial(schedule, Outcome.PASSED).to_table())]
    path = tmp_path / "journal.jsonl"
    path.write_text("\n".join(lines) + "\n" + lines[1][:40])
    assert read_journal(path) == (header, [trial(schedule, Outcome.PASSED)])


@pytest.mark.parametrize("text", ["", "{}\n", "[]\n", "{", '{"what": "campaign", "format": 9}\n', "x\n"])
def test_what_is_no_journal_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(text)
    with pytest.raises(JournalError) as caught:
        read_journal(path)
    assert "\n" not in str(caught.value)


def test_numbers_have_no_gaps_and_seeds_stay() -> None:
    schedule = draw(experiment(TABLES), 1, CATALOGUE)
    some = renumbered(schedule[1:])
    assert [injection.order.number for injection in some] == list(range(1, len(schedule)))
    assert [injection.order.seed for injection in some] == [one.order.seed for one in schedule[1:]]


@pytest.mark.parametrize(
    ("kind", "times", "fired", "spent"),
    [
        ("kill", -1, 0, False),
        ("kill", -1, 1, True),  # there is nothing left to kill
        ("kill-at-step", -1, 0, False),
        ("kill-at-step", -1, 1, True),  # one death, if its parameters do not say more
        ("stop", -1, 1, False),  # it stays stopped until it is healed
        ("storage-error", 3, 2, False),
        ("storage-error", 3, 3, True),
        ("storage-error", -1, 1_000, False),
    ],
)
def test_a_trial_waits_for_each_fault_that_can_still_strike(
    kind: str, times: int, fired: int, spent: bool
) -> None:
    one = injection(1, kind, times=times)
    assert is_spent(one, {1: (fired, fired)}) is spent
