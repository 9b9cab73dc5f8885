"""`scripts/kill-sweep`: kill root or driver at random instants and at every named step, under load; judge the disk.

Several boots of a machine, one or two guests each with the verified load, and one that opens and closes its channel all
the time. The root is killed as soon as it has come back, again and again: from outside after a random time, which may
fall into its recovery, or by itself at a step (bus.seam). A kill counts once the hypervisor has reaped its victim.
With driver partitions, those are killed in the same ways, in every second turn, and now and then both at once.
"""

import argparse
import contextlib
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bus.seam import Step
from runtime.chaos.liveness import gaps_around
from runtime.chaos.loaded_machine import Judged, Load, LoadedMachine, signal_process
from runtime.chaos.register_conflicts import Kind
from runtime.chaos.running_machine import MachineEnded
from runtime.chaos.verdict import EXPLAINED_MAX
from runtime.exits import ExitCode
from runtime.machine.rundir import janitor

KILLS: Final = 1000
BOOT_S: Final = 20.0  # of load in one boot
PASSES_MAX: Final = {Step.SAVE_STATE: 6, Step.SAVED: 6, Step.CARRY_OUT: 6}
DATA_PASSES_MAX: Final = 60
STEP_PATIENCE_S: Final = 20.0  # for an armed step to be come to
STEPS_EACH: Final = 0.02  # of the random kills, so many at each step, but at least STEPS_LEAST
STEPS_LEAST: Final = 5
EARLY: Final = 0.2  # of the random kills, so many hit the new root while it takes over
BOTH: Final = 0.1  # so many take the standby with them
EARLY_S: Final = 0.02
LATE_S: Final = 0.15
FAILURES_AT_ONCE: Final = 10  # a root that failed more often within FAILURES_WITHIN_S ends its machine
FAILURES_WITHIN_S: Final = 2.1
KILLED: Final = "signal 9"
POWERED_OFF: Final = ("exit code 0", "signal 15")  # at the end of its machine
DRIVER_FAILURES_AT_ONCE: Final = 6  # then it is left in peace for so long that it is forgiven
DRIVER_PEACE_S: Final = 1.2
DATA_STEPS: Final = tuple(step for step in Step if step <= Step.SIGNAL)
PERCENTS: Final = (50, 90, 99, 100)


@dataclass(slots=True)
class Tally:
    """Sums over all boots."""

    kills: int = 0
    takeovers: int = 0
    struck: Counter[str] = field(default_factory=Counter)  # by step
    not_come_to: Counter[str] = field(default_factory=Counter)
    operations: int = 0
    unfinished: int = 0
    reopened: int = 0
    violations: Counter[str] = field(default_factory=Counter)
    explanations: list[str] = field(default_factory=list)
    other_failures: list[str] = field(default_factory=list)  # the machine ended, something was left behind
    outages_ns: list[int] = field(default_factory=list)
    takeovers_ns: list[int] = field(default_factory=list)
    driver_kills: int = 0
    driver_outages_ns: list[int] = field(default_factory=list)
    own_deaths: Counter[str] = field(default_factory=Counter)  # of roots that nobody had killed
    boots: int = 0

    @property
    def passed(self) -> bool:
        crashed = any(not reason.startswith("hung") for reason in self.own_deaths)  # a host may be that busy
        return not (self.violations.total() or self.other_failures or crashed) and self.operations > 0


class Killer:
    """Kills one machine's root over and over, never faster than a machine puts up with."""

    def __init__(self, machine: LoadedMachine, rng: random.Random, tally: Tally) -> None:
        self._machine, self._rng, self._tally = machine, rng, tally
        self._driver_failures = 0  # since it was left in peace
        self._recent: deque[float] = deque(maxlen=FAILURES_AT_ONCE - 2)  # a step may kill two at once

    def _pace(self) -> None:
        if len(self._recent) == self._recent.maxlen:
            time.sleep(max(self._recent[0] + FAILURES_WITHIN_S - time.monotonic(), 0))
        self._recent.append(time.monotonic())

    def kill(self, turn: "Turn") -> bool:
        """False: the load is over."""
        match turn:
            case (True, None):
                return self.kill_driver_at_random()
            case (True, Step() as step):
                return self.kill_driver_at(step)
            case (_, Step() as step):
                return self.kill_at(step)
            case _:
                return self.kill_at_random()

    def kill_at_random(self) -> bool:
        """False: the load is over."""
        machine, rng = self._machine, self._rng
        seen = len(machine.all_of("root.exited"))
        self._pace()
        time.sleep(rng.uniform(0, LATE_S))
        if rng.random() < BOTH and (standby := machine.all_of("root.standby")):
            signal_process(
                standby[-1]["fields"]["pid"], signal.SIGKILL
            )  # it may have become the root: the same to us
        machine.kill_root()
        if rng.random() < EARLY:  # and its successor, while it takes over
            self._pace()
            if self._until(lambda: len(machine.all_of("root.started")) > seen + 1):
                time.sleep(rng.uniform(0, EARLY_S))
                machine.kill_root()
        return self._settle(seen)

    def kill_at(self, step: Step) -> bool:
        """Arm it, wait until it has struck. False: the load is over."""
        machine, rng = self._machine, self._rng
        seen, restored = len(machine.all_of("root.exited")), machine.takeovers
        deaths = rng.choice((1, 1, 2))
        for _ in range(deaths):
            self._pace()
        if not machine.arm(step, rng.randint(1, PASSES_MAX.get(step, DATA_PASSES_MAX)), deaths):
            return False

        def struck() -> bool:
            return machine.has_died_at(step, restored)

        if machine.wait_until(lambda: struck() or machine.load_ended, STEP_PATIENCE_S) and struck():
            self._tally.struck[step.text] += 1
        elif not machine.load_ended:
            self._tally.not_come_to[step.text] += 1
        return self._settle(seen)

    # -- the driver partition

    def kill_driver_at_random(self) -> bool:
        """As `kill_at_random`; in one of five turns the root dies with it."""
        machine, rng = self._machine, self._rng
        seen, roots = machine.driver_deaths, len(machine.all_of("root.exited"))
        self._pace_driver()
        time.sleep(rng.uniform(0, LATE_S))
        machine.kill_driver()
        if rng.random() < EARLY:
            self._pace()
            time.sleep(rng.uniform(0, EARLY_S))
            machine.kill_root()
            if not self._settle(roots):
                return False
        return self._settle_driver(seen)

    def kill_driver_at(self, step: Step) -> bool:
        """As `kill_at`."""
        machine, rng = self._machine, self._rng
        seen, restored = machine.driver_deaths, len(machine.all_of("driver.serving"))
        deaths = rng.choice((1, 1, 2))
        for _ in range(deaths):
            self._pace_driver()
        if not machine.arm(step, rng.randint(1, DATA_PASSES_MAX), deaths, driver=True):
            return False

        def struck() -> bool:
            return machine.driver_has_died_at(step, restored)

        if machine.wait_until(lambda: struck() or machine.load_ended, STEP_PATIENCE_S) and struck():
            self._tally.struck[f"driver {step.text}"] += 1
        elif not machine.load_ended:
            self._tally.not_come_to[f"driver {step.text}"] += 1
        return self._settle_driver(seen)

    def _pace_driver(self) -> None:
        self._driver_failures += 1
        if self._driver_failures > DRIVER_FAILURES_AT_ONCE:
            time.sleep(DRIVER_PEACE_S)
            self._driver_failures = 1

    def _settle_driver(self, seen: int) -> bool:
        machine = self._machine
        return self._until(lambda: machine.driver_deaths > seen and machine.driver_serves)

    def _settle(self, seen: int) -> bool:
        """Until the last of the dead has a successor that serves."""
        machine = self._machine
        return self._until(lambda: len(machine.all_of("root.exited")) > seen and machine.root_serves)

    def _until(self, condition: Callable[[], bool]) -> bool:
        machine = self._machine
        if not machine.wait_until(lambda: condition() or machine.load_ended):
            raise MachineEnded("the root did not come back")
        return not machine.load_ended


Turn = tuple[bool, Step | None]  # whether the driver is meant; at which step, or at a random instant


def sweep(options: argparse.Namespace, folder: Path) -> Tally:
    """All boots."""
    rng, tally = random.Random(options.seed), Tally()
    each = max(int(options.kills * STEPS_EACH), STEPS_LEAST)
    schedule: list[Turn] = [(False, step) for step in Step for _ in range(each)]
    schedule += [(False, None)] * options.kills
    if options.architecture == "disaggregated":
        schedule = [turn for turn in schedule if turn[1] not in DATA_STEPS]  # which the root never comes to
        schedule += [(True, step) for step in DATA_STEPS for _ in range(each)]
        schedule += [(True, None)] * options.kills
    rng.shuffle(schedule)
    while schedule:
        _one_boot(options, folder / f"boot{tally.boots}", rng, tally, schedule)
        tally.boots += 1
        if not options.json:
            print(_progress(tally, len(schedule)), file=sys.stderr, flush=True)
    return tally


def _one_boot(
    options: argparse.Namespace, folder: Path, rng: random.Random, tally: Tally, schedule: list[Turn]
) -> None:
    load = Load(
        policy=options.policy,
        seed=1 + 2 * tally.boots,
        guests=1 + tally.boots % 2,
        reopening=True,
        seconds=min(BOOT_S, 3 + len(schedule) / 3),
        settings={"signal_route": rng.choice(("direct", "broker")), "architecture": options.architecture},
    )
    with LoadedMachine(folder, load) as machine:
        try:
            machine.wait_for("guest.verified_progress")
            killer = Killer(machine, rng, tally)
            while schedule and not machine.load_ended:
                if not killer.kill(schedule.pop()):
                    break
            judged = machine.judge()
        except (MachineEnded, TimeoutError) as error:
            tally.other_failures.append(f"{folder.name}: {error}")
        else:
            _add(tally, folder.name, machine, judged)
    if not options.keep:
        shutil.rmtree(folder)


def _add(tally: Tally, boot: str, machine: LoadedMachine, judged: Judged) -> None:
    verdict = judged.verdict
    killed = [
        event["fields"] for event in machine.all_of("root.exited") if _was_killed(event["fields"]["reason"])
    ]
    restored = machine.all_of("root.restored")
    tally.kills += len(killed)
    tally.takeovers += len(restored)
    tally.operations += verdict.operations
    tally.unfinished += verdict.unfinished
    tally.reopened += judged.reopened
    for kind, count in verdict.counts.items():
        tally.violations[kind.value] += count
    room = EXPLAINED_MAX - len(tally.explanations)
    tally.explanations += [f"{boot}: {violation.text}" for violation in verdict.violations][:room]
    if judged.exit_code:
        tally.other_failures.append(f"{boot}: exit code {judged.exit_code}: {judged.errors.strip()[-300:]}")
    if judged.left_behind:
        tally.other_failures.append(f"{boot}: left behind: {judged.left_behind}")
    for event in machine.all_of("root.exited"):
        reason = event["fields"]["reason"]
        if not _was_killed(reason) and reason not in POWERED_OFF:
            tally.own_deaths[reason] += 1
    stuck = len(machine.all_of("root.stuck"))  # it kills itself, which looks like one of ours
    if stuck:
        tally.own_deaths["stuck"] += stuck
        tally.kills -= stuck
    ended = [fields["at_ns"] for fields in killed]
    for history in judged.histories:
        tally.outages_ns += [gap.length_ns for gap in gaps_around(history, ended) if gap is not None]
    _add_driver(tally, machine, judged)
    served = sorted(event["fields"]["serving_ns"] for event in restored)
    for at_ns in ended:
        tally.takeovers_ns += [next(ns for ns in served if ns > at_ns) - at_ns] if served[-1] > at_ns else []


def _add_driver(tally: Tally, machine: LoadedMachine, judged: Judged) -> None:
    ended = []
    for event in machine.all_of("driver.exited"):
        if event["fields"]["reason"] == KILLED:
            ended.append(event["monotonic_ns"])
        else:
            tally.own_deaths[f"driver: {event['fields']['reason']}"] += 1
    tally.driver_kills += len(ended)
    for event in machine.all_of("driver.failed"):
        tally.other_failures.append(f"the driver was given up: {event['fields']['reason']}")
    for history in judged.histories:
        tally.driver_outages_ns += [gap.length_ns for gap in gaps_around(history, ended) if gap is not None]


def _was_killed(reason: str) -> bool:
    """The first root is the platform's child, which has words of its own for it; the others are the hypervisor's."""
    return reason in (KILLED, "signal SIGKILL")


def _percentiles(values_ns: Sequence[int]) -> dict[str, float]:
    """In ms."""
    ordered = sorted(values_ns)
    return {
        f"p{percent}": round(ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] / 1e6, 2)
        for percent in PERCENTS
        if ordered
    }


def summarize(tally: Tally, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    return {
        "policy": options.policy,
        "architecture": options.architecture,
        "seed": options.seed,
        "passed": tally.passed,
        "boots": tally.boots,
        "seconds": round(seconds, 1),
        "kills": tally.kills,
        "takeovers": tally.takeovers,
        "driver_kills": tally.driver_kills,
        "own_deaths": dict(tally.own_deaths),
        "at_steps": dict(sorted(tally.struck.items()))
        if options.architecture == "disaggregated"
        else {step.text: tally.struck[step.text] for step in Step},
        "steps_not_come_to": dict(tally.not_come_to),
        "operations": tally.operations,
        "unfinished": tally.unfinished,
        "channel_openings": tally.reopened,
        "violations": {kind.value: tally.violations[kind.value] for kind in Kind},
        "outage_ms": _percentiles(tally.outages_ns),
        "driver_outage_ms": _percentiles(tally.driver_outages_ns),
        "takeover_ms": _percentiles(tally.takeovers_ns),
        "explanations": tally.explanations,
        "other_failures": tally.other_failures,
    }


def _progress(tally: Tally, left: int) -> str:
    bad = tally.violations.total() + len(tally.other_failures)
    return (
        f"boot {tally.boots}: {tally.kills} kills, {tally.takeovers} takeovers, {tally.operations:,} operations,"
        f" {bad} findings; {left} kills to go"
    )


def _print(summary: dict[str, Any]) -> None:
    for name, value in summary.items():
        if isinstance(value, dict):
            value = "  ".join(f"{key} {number}" for key, number in value.items()) or "none"
        elif isinstance(value, list):
            value = "".join(f"\n  {line}" for line in value) or "none"
        print(f"{name.replace('_', ' '):<18}{value}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/kill-sweep",
        description="Kill root and drivers at random instants and at every named step under load; judge the disk.",
        epilog="Example: scripts/kill-sweep --kills 100 --policy restart",
    )
    parser.add_argument(
        "--kills", type=int, default=KILLS, metavar="N", help="at random instants (default 1000)"
    )
    parser.add_argument("--policy", choices=("standby", "restart"), default="standby")
    parser.add_argument(
        "--architecture", choices=("microkernelized", "disaggregated"), default="microkernelized"
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="S", help="the schedule follows from it (default 1)"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON, and no progress")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep histories and images there")
    options = parser.parse_args(arguments)
    if options.kills < 0:
        parser.error("--kills: want 0 or more")
    folder = Path(tempfile.mkdtemp(prefix="partvisor-sweep-")) if options.keep is None else options.keep
    began = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the machine under way must go, too
    try:
        with janitor(folder) if options.keep is None else contextlib.nullcontext():
            tally = sweep(options, folder)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    summary = summarize(tally, options, time.monotonic() - began)
    print(json.dumps(summary)) if options.json else _print(summary)
    return ExitCode.DONE if tally.passed else ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main())
