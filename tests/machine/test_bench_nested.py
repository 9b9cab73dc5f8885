"""The benchmark of nested partitions runs, and says what it measured. (How much that is, is nobody's business here.)"""

from pathlib import Path

import pytest

from runtime.config.loading import load
from runtime.exits import CommandError
from runtime.measure.bench_nested import DEPTHS, machine_text, measure, row

pytestmark = pytest.mark.machine


def test_each_depth_is_measured_in_one_machine() -> None:
    results = measure("adaptive", 1)
    rows = [row("adaptive", depth, results) for depth in DEPTHS]
    assert [one["depth"] for one in rows] == list(DEPTHS)
    assert rows[0]["ratio"] == 1
    assert all(0 < one["read_p50_ns"] <= one["read_p99_ns"] for one in rows)
    assert all(one["queued_reads_per_second"] > 0 for one in rows)


@pytest.mark.parametrize("depths", [(1,), (3,), (1, 2, 3, 4)])
def test_a_machine_of_any_depths_is_valid(tmp_path: Path, depths: tuple[int, ...]) -> None:
    config = tmp_path / "machine.toml"
    config.write_text(machine_text("block", 1, depths))
    paths = {load(config).path_of(f"load{depth}").count("/") + 1 for depth in depths}
    assert paths == set(depths)


def test_a_ratio_is_that_of_each_rounds_own_values() -> None:
    """The median over rounds, of which one was disturbed on both sides."""
    figures = dict.fromkeys(
        ("read_p50_ns", "read_p99_ns", "write_p50_ns", "write_p99_ns", "queued_reads_per_second"), 1
    )
    results = {1: figures | {"round_p50_ns": [10, 1000, 10]}, 2: figures | {"round_p50_ns": [20, 2000, 50]}}
    assert row("block", 2, results)["ratio"] == 2


def test_a_host_on_which_every_window_was_missed_is_told_so() -> None:
    figures = dict.fromkeys(
        ("read_p50_ns", "read_p99_ns", "write_p50_ns", "write_p99_ns", "queued_reads_per_second"), 1
    )
    results: dict[int, dict[str, object]] = {
        1: {**figures, "round_p50_ns": [10]},
        2: {**figures, "round_p50_ns": []},
    }
    with pytest.raises(CommandError, match=r"depth 2.*busy"):
        row("block", 2, results)
