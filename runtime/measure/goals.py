"""Rows of a benchmark: a figure, the reference measured in the same round, the ratio, and what we want it to be."""

import os
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Values: TypeAlias = dict[str, float]  # one round's figures, by name


@dataclass(frozen=True, slots=True)
class Goal:
    """One row: a figure, the reference that it is divided by, and the limit for the ratio or for the figure itself.

    With both `value_at_least` and `at_least` one of them is enough: a machine may be too slow for the value.
    """

    name: str
    figure: str
    reference: str
    unit: str
    at_most: float | None = None  # of value / reference
    at_least: float | None = None  # of value / reference
    value_at_least: float | None = (
        None  # of the value, in its unit; or `at_least` of the reference, if given, too
    )


def row_of(goal: Goal, references: dict[str, str], rounds: list[Values]) -> dict[str, Any]:
    """A goal's row: medians over the rounds, the ratio being that of each round's own two values."""
    ratio = statistics.median(values[goal.figure] / values[goal.reference] for values in rounds)
    value = statistics.median(values[goal.figure] for values in rounds)
    reference = statistics.median(values[goal.reference] for values in rounds)
    if goal.at_most is not None:
        wanted, met = f"ratio <= {goal.at_most:g}", ratio <= goal.at_most
    else:
        wishes = {"value": (value, goal.value_at_least), "ratio": (ratio, goal.at_least)}
        limits = {name: wish for name, wish in wishes.items() if wish[1] is not None}
        wanted = " or ".join(f"{name} >= {limit:g}" for name, (_, limit) in limits.items())
        met = any(found >= limit for found, limit in limits.values() if limit is not None)
    return {
        "name": goal.name,
        "value": round(value, 3),
        "unit": goal.unit,
        "reference": f"{references[goal.reference]}: {reference:.3g}",
        "ratio": round(ratio, 3),
        "goal": wanted,
        "met": met,
    }


def conditions(cpus: tuple[int, ...]) -> dict[str, Any]:
    """What every result carries: without it a figure says nothing."""
    return {
        "cpus": list(cpus),
        "cpu_model": _cpu_model(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()
