"""The ring benchmark: every goal gets its row, and ratios are those of the round. Speed itself is not asserted."""

import os
from pathlib import Path

import pytest

from runtime.exits import CommandError
from runtime.measure.bench_ring import GOALS, REFERENCES, measure
from runtime.measure.reference_programs import reference_programs

TWO_CPUS = len(os.sched_getaffinity(0)) >= 2


@pytest.mark.skipif(not TWO_CPUS, reason="two CPUs are needed")
def test_every_goal_is_measured_beside_its_reference() -> None:
    report = measure(rounds=1, seconds=0.01)
    assert [row["name"] for row in report["rows"]] == [goal.name for goal in GOALS]
    for row, goal in zip(report["rows"], GOALS, strict=True):
        assert set(row) == {"name", "value", "unit", "reference", "ratio", "goal", "met"}
        assert row["value"] > 0
        assert row["ratio"] > 0
        assert row["reference"].startswith(REFERENCES[goal.reference])
    assert report["conditions"]["scheduler_class"] == "SCHED_OTHER"
    assert report["conditions"]["rounds"] == len(report["rounds"]) == 1


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandError, match="apt-get install gcc"), reference_programs():
        pass
