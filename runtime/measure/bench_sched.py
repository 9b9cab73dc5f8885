"""`partvisor bench sched`: do partitions get the processor time that their weights and caps say, and at what cost?

Three guests that burn all they can get share one processor. The host takes what it needs for itself, so weights are
judged by each guest's part of the CPU time that was delivered to the three; a cap is a part of the processor, as the
clock on the wall goes. All three steps run on one machine, with changes while it runs.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime.abi import WHOLE_PROCESSOR
from runtime.config.loading import load
from runtime.config.model import SchedulerChoice
from runtime.exits import CommandError, ExitCode
from runtime.machine.launch import run_detached
from runtime.measure.delivered_shares import delivered_between
from runtime.measure.goals import conditions
from runtime.reports import print_json, print_record, print_table

SECONDS: Final = 10.0  # a step
QUICK_SECONDS: Final = 3.0
WARM_SECONDS: Final = 1.0
SETTLE_SECONDS: Final = 0.5  # after a change, before its measurement
WINDOW_SECONDS: Final = 0.25  # of what is shown of a change
WINDOWS: Final = 8
WEIGHTS: Final = {"one": 100, "two": 200, "four": 400}
SWAPPED: Final = {"one": 400, "two": 200, "four": 100}
CAP_PERCENT: Final = 20
WEIGHT_POINTS_MAX: Final = 1.0
CAP_POINTS_MAX: Final = 0.5
BROKER_PERCENT_MAX: Final = 3.0

_MACHINE: Final = """
[machine]
name = "{name}"
memory = "128MiB"
scheduler = "{scheduler}"
"""
_PARTITION: Final = """
[[partition]]
name = "{name}"
program = "partitions.guests.burn:main"
memory = "16MiB"
cpus = [{cpu}]
weight = {weight}
"""

Request = Callable[..., dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Measured:
    """One mechanism's figures."""

    mechanism: str
    weights: dict[str, Any]  # as `delivered_between` returns them
    changing: list[dict[str, Any]]  # the windows after the change
    changed: dict[str, Any]
    capped: dict[str, Any]


def measure(scheduler: SchedulerChoice, seconds: float) -> Measured:
    """Boot a machine, take it through all steps, end it. CommandError: it did not live so long."""
    from runtime.machine.management_client import ManagementClient
    from runtime.machine.rundir import resolve

    name = f"bench-sched-{os.getpid()}"
    cpu = max(os.sched_getaffinity(0))
    text = _MACHINE.format(name=name, scheduler=scheduler.value)
    text += "".join(_PARTITION.format(name=each, cpu=cpu, weight=weight) for each, weight in WEIGHTS.items())
    with tempfile.TemporaryDirectory(prefix="partvisor-bench-") as folder:
        config = Path(folder) / "machine.toml"
        config.write_text(text)
        run_detached(load(config))
        with ManagementClient(resolve(name)) as client:
            try:
                return _measure(client.request, seconds)
            finally:
                client.stop()


def _measure(request: Request, seconds: float) -> Measured:
    time.sleep(WARM_SECONDS)
    weights = _over(request, seconds)
    for name, weight in SWAPPED.items():
        request("schedule", name=name, shares={"weight": weight})
    windows = [_over(request, WINDOW_SECONDS) for _ in range(WINDOWS)]
    changed = _over(request, seconds)
    cap = round(CAP_PERCENT * WHOLE_PROCESSOR / 100)
    request("schedule", name="one", shares={"cap": cap})  # which its weight would take far above
    time.sleep(SETTLE_SECONDS)
    capped = _over(request, seconds)
    if len(capped["partitions"]) != len(WEIGHTS):
        raise CommandError("a guest of the benchmark has ended")
    return Measured(str(weights["mechanism"]), weights, windows, changed, capped)


def _over(request: Request, seconds: float) -> dict[str, Any]:
    before = request("sched")
    time.sleep(seconds)
    return delivered_between(before, request("sched"))


def off_by(shares: Mapping[str, Any], weights: Mapping[str, int]) -> float:
    """The largest distance of anybody's part of the delivered CPU time from what its weight says, in points."""
    total = sum(weights.values())
    rows: dict[str, float] = {row["name"]: row["delivered_percent"] or 0.0 for row in shares["partitions"]}
    return max(abs(rows[name] - 100 * weight / total) for name, weight in weights.items())


def rows_of(measured: Measured) -> list[dict[str, Any]]:
    """Wanted and measured, one row a goal."""
    one = next(row for row in measured.capped["partitions"] if row["name"] == "one")
    steps = (measured.weights, measured.changed, measured.capped)
    cost = max(step["broker_percent"] for step in steps)
    figures = [
        ("weights 1:2:4, points off", off_by(measured.weights, WEIGHTS), WEIGHT_POINTS_MAX, "<="),
        ("changed to 4:2:1, points off", off_by(measured.changed, SWAPPED), WEIGHT_POINTS_MAX, "<="),
        (f"cap {CAP_PERCENT}%, points off", abs(one["used_percent"] - CAP_PERCENT), CAP_POINTS_MAX, "<="),
        ("broker, percent of a CPU", cost, BROKER_PERCENT_MAX, "<"),
    ]
    return [
        {
            "mechanism": measured.mechanism,
            "figure": figure,
            "measured": round(value, 2),
            "wanted": f"{sign} {limit:g}",
            "met": value <= limit if sign == "<=" else value < limit,
        }
        for figure, value, limit, sign in figures
    ]


def mechanisms() -> list[SchedulerChoice]:
    """Signals, which work everywhere; and what `auto` would take, if that is something else."""
    from runtime.hypervisor.scheduling_cgroups import places

    found = [SchedulerChoice.SIGNALS]
    if (place := next(places(), None)) is not None:
        found.append(SchedulerChoice(place[0].value))
    return found


def run(*, quick: bool = False, as_json: bool = False) -> int:
    """Measure and print; the exit code says whether every goal was met."""
    found = conditions((max(os.sched_getaffinity(0)),))
    seconds = QUICK_SECONDS if quick else SECONDS
    measured = []
    for choice in mechanisms():
        if not as_json:
            print(
                f"measuring {choice.value}: about {3 * seconds + WARM_SECONDS + WINDOWS * WINDOW_SECONDS:.0f} s"
            )
        measured.append(measure(choice, seconds))
    found["load_after"] = round(os.getloadavg()[0], 2)
    goals = [row for each in measured for row in rows_of(each)]
    if as_json:
        steps = {
            each.mechanism: {
                "weights": each.weights,
                "changing": each.changing,
                "changed": each.changed,
                "capped": each.capped,
            }
            for each in measured
        }
        print_json({"measured": steps, "goals": goals, "conditions": found})
    else:
        _print(measured, goals, found)
    return ExitCode.DONE if all(row["met"] for row in goals) else ExitCode.FAILED


def _print(measured: Sequence[Measured], goals: list[dict[str, Any]], found: dict[str, Any]) -> None:
    for each in measured:
        print(
            f"\n{each.mechanism}: delivered, in percent of what the three had; used, in percent of the processor"
        )
        steps = {"1:2:4": each.weights, "4:2:1": each.changed, f"one at most {CAP_PERCENT}%": each.capped}
        print_table(
            [
                {
                    "step": step,
                    **{f"{row['name']} delivered": row["delivered_percent"] for row in shares["partitions"]},
                    **{f"{row['name']} used": row["used_percent"] for row in shares["partitions"]},
                    "broker": shares["broker_percent"],
                }
                for step, shares in steps.items()
            ],
            "nothing was measured",
        )
        print(
            f"\n{each.mechanism}: delivered in each {WINDOW_SECONDS * 1000:.0f} ms from the change to 4:2:1 on"
        )
        print_table(
            [
                {row["name"]: row["delivered_percent"] for row in window["partitions"]}
                for window in each.changing
            ],
            "nothing was measured",
        )
    print()
    print_table(goals, "no goals")
    print()
    print_record(found)
