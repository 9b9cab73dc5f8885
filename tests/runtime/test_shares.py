"""Weights, reserves and caps as people write them, as the hypervisor counts them, and as `partvisor sched` shows."""

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.abi import WHOLE_PROCESSOR
from runtime.config.share_checks import Table, check_all, check_one
from runtime.config.shares import CpuShare, share_text
from runtime.config.toml_lines import Steps
from runtime.measure.bench_sched import SWAPPED, WEIGHTS, Measured, off_by, rows_of
from runtime.measure.delivered_shares import delivered_between


@given(st.integers(0, WHOLE_PROCESSOR))
def test_every_share_reads_back_as_it_was_written(units: int) -> None:
    assert CpuShare.parse(CpuShare(units).text) == units


@pytest.mark.parametrize(
    "value", ["20", 20, "101%", "-1%", "1.2345%", "%", "1e1%", "20 %", None, True, " 20%", "20%\n"]
)
def test_what_is_no_share_is_refused_with_what_is_one(value: object) -> None:
    with pytest.raises(ValueError, match='such as "20%"'):
        CpuShare.parse(value)


def test_shares_show_without_the_units_rounding() -> None:
    assert [share_text(CpuShare.parse(text)) for text in ("10%", "20%", "100%", "0.1%")] == [
        "10%",
        "20%",
        "100%",
        "0.1%",
    ]


def partition(
    name: str, parent: str = "root", reserve: str = "0%", cap: str = "100%", vps: int = 1
) -> dict[str, Any]:
    return {
        "name": name,
        "parent": parent,
        "reserve": CpuShare.parse(reserve),
        "cap": CpuShare.parse(cap),
        "vps": vps,
    }


def problems_of(*partitions: dict[str, Any]) -> list[str]:
    placed: list[tuple[Steps, Table]] = [
        (("partition", index), table) for index, table in enumerate(partitions)
    ]
    found = check_all(placed)
    for path, table in placed:
        found += check_one(path, table)
    return [problem.path_text for problem in found]


def test_a_reserve_is_at_most_the_cap_and_a_cap_lets_something_run() -> None:
    assert problems_of(partition("a", reserve="30%", cap="30%")) == []
    assert problems_of(partition("a", reserve="31%", cap="30%")) == ["partition[0].reserve"]
    assert problems_of(partition("a", cap="0.05%")) == ["partition[0].cap"]


def test_what_is_promised_fits_into_the_processors_and_into_what_the_parent_was_promised() -> None:
    host = len(os.sched_getaffinity(0))
    assert problems_of(partition("a", reserve="100%", vps=host)) == []
    assert problems_of(partition("a", reserve="100%", vps=host), partition("b", reserve="1%")) == [
        "partition[1].reserve"
    ]
    parent = partition("a", reserve="20%", vps=2)
    assert problems_of(parent, partition("b", parent="a", reserve="40%")) == []
    assert problems_of(parent, partition("b", parent="a", reserve="20%"), partition("c", "a", "20.1%")) == [
        "partition[2].reserve"
    ]
    assert problems_of(partition("a"), partition("b", parent="a", reserve="1%")) == ["partition[1].reserve"]


def books(now_ns: int, **cpu_ns: int) -> dict[str, Any]:
    rows = [
        {
            "id": id,
            "name": name,
            "weight": 100,
            "reserve": 0,
            "cap": WHOLE_PROCESSOR,
            "vps": 1,
            "cpus": [0],
            "cpu_ns": ns,
            "due_ns": ns,
            "held": False,
        }
        for id, (name, ns) in enumerate(cpu_ns.items())
    ]
    return {
        "now_ns": now_ns,
        "mechanism": "signals",
        "note": None,
        "broker_cpu_ns": now_ns // 50,
        "partitions": rows,
    }


def test_shares_are_of_what_was_delivered_and_use_is_of_the_processor() -> None:
    result = delivered_between(books(0, a=5, b=5), books(1000, a=105, b=305, c=7))
    rows = {row["name"]: row for row in result["partitions"]}
    assert rows.keys() == {"a", "b"}  # c has no before
    assert [rows[name]["used_percent"] for name in "ab"] == [10, 30]
    assert [rows[name]["delivered_percent"] for name in "ab"] == [25, 75]
    assert result["broker_percent"] == 2


def test_the_benchmark_says_how_far_off_a_figure_is_and_misses_what_it_misses() -> None:
    exact = delivered_between(books(0, one=0, two=0, four=0), books(1000, one=100, two=200, four=400))
    assert off_by(exact, WEIGHTS) < 0.01
    assert off_by(exact, SWAPPED) == pytest.approx(100 * 3 / 7, abs=0.01)
    rows = rows_of(Measured("signals", exact, [], exact, exact))
    assert [row["met"] for row in rows] == [True, False, False, True]  # the cap: 10% where 20% was to be had
