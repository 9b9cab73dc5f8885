"""Rows of a benchmark: a figure, the reference measured in the same round, the ratio, and what we want it to be."""

import statistics
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from runtime.measure.conditions import read_conditions, read_revision, read_versions

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
    """What every result carries: without it a figure says nothing. Call it before the first round."""
    found: dict[str, Any] = msgspec.structs.asdict(read_conditions(cpus))
    return found | {"cpus": list(cpus), **read_versions(), "revision": read_revision()}
