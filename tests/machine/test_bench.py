"""The benchmarks run, and their checks can fail. (What they measure is nobody's business here.)"""

from pathlib import Path

import pytest

from runtime.measure.bench_disk import GOALS, REFERENCES, run_load
from runtime.measure.goals import Goal, row_of

pytestmark = pytest.mark.machine


def test_a_disk_load_reports_each_kind_once_and_no_wrong_block(
    tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARTVISOR_RUNTIME_DIR", str(runtime_dir))
    results = run_load(tmp_path, (0, 0), "adaptive", single=50, random=200, sequential=20)
    assert {result["operations"] for result in results.values()} == {50, 200, 20}
    assert all(result["mismatches"] == 0 and result["seconds"] > 0 for result in results.values())


def test_every_goal_has_a_limit_and_a_named_reference() -> None:
    for goal in GOALS:
        assert goal.reference in REFERENCES
        assert [goal.at_most, goal.at_least, goal.value_at_least].count(None) in (1, 2)


@pytest.mark.parametrize(
    ("limit", "met"),
    [
        ({"at_most": 2.0}, True),
        ({"at_most": 1.0}, False),
        ({"at_least": 2.0}, False),
        ({"value_at_least": 9.0}, True),
        ({"value_at_least": 99.0}, False),
        ({"value_at_least": 99.0, "at_least": 1.5}, True),
    ],
)
def test_a_row_compares_within_each_round(limit: dict[str, float], met: bool) -> None:
    """The median of the rounds' own ratios: a machine that was twice as slow in one round was so for both."""
    goal = Goal("figure", "figure", "reference", "ns", **limit)
    rounds = [{"figure": 15.0 * pace, "reference": 10.0 * pace} for pace in (1, 2, 50)]
    row = row_of(goal, {"reference": "what it is made of"}, rounds)
    assert (row["ratio"], row["met"]) == (1.5, met)
