"""`partvisor bench recovery`: how long a guest waits when the root, or what serves its disk, dies under its load.

One machine a mode; in each the victim is replaced again and again, at random moments, with pauses between. The guest
(partitions.guests.recovery_load) writes the time of every completion into a file that is mapped here too, so the
outage is the guest's own: the longest gap between two completions around the kill.
"""

import contextlib
import mmap
import os
import queue
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from runtime.config.loading import load
from runtime.exits import CommandError, ExitCode
from runtime.machine.events import Event
from runtime.machine.launch import run_in_foreground
from runtime.measure.goals import conditions
from runtime.measure.outages import PHASES, REMAINDER, Replacement, longest_gap, summarize
from runtime.reports import print_json, print_record, print_table

KILLS: Final = 100  # a mode
QUICK_KILLS: Final = 10
HANG_MS: Final = 500  # the configuration's default
PAUSE_MS: Final = (250, 350)  # a machine whose root fails ten times within 2 s gives up
DRIVER_PAUSE_MS: Final = (1_050, 1_150)  # one that has served for a second is forgiven, and restarted at once
DRIVER: Final = "disk0"  # the driver partition has its device's name
PATIENCE_S: Final = 30.0
TIMES_MAX: Final = 1 << 22  # completions in one boot; the file is sparse
DISK_BYTES: Final = 16 << 20
WAITING: Final = "adaptive"
SEED: Final = 1
PEERS: Final = "NiLiHype 22 ms, ReHype 713 ms, MINIX 3 about 400 ms"

_SCHEDULING: Final = {os.SCHED_OTHER: "SCHED_OTHER", os.SCHED_FIFO: "SCHED_FIFO", os.SCHED_RR: "SCHED_RR"}

_MACHINE: Final = """
[machine]
name = "{name}"
memory = "256MiB"
waiting = "{waiting}"
on_root_failure = "{policy}"
architecture = "{architecture}"
hang_ms = {hang_ms}
[[root.device]]
name = "disk0"
kind = "disk"
backend = "file"
path = "{folder}/disk.img"
size = {disk_bytes}
[[partition]]
name = "load"
program = "partitions.guests.recovery_load:main"
memory = "32MiB"
args = {{ device = "disk0" }}
[[partition.device]]
name = "disk0"
[[partition.file]]
name = "completions"
path = "{folder}/completions"
mode = "read-write"
"""


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to lose a root or a driver, and what we want of it."""

    name: str
    policy: str
    how: str  # "kill", "service" or "hang"
    p50_ms_max: float | None = None
    p99_ms_max: float | None = None
    architecture: str = "microkernelized"
    victim: str = "root"  # or "driver"
    pause_ms: tuple[int, int] = PAUSE_MS

    @property
    def serves(self) -> bool:
        """Whether the victim is what serves the guest."""
        return self.victim == "driver" or self.architecture == "microkernelized"


MODES: Final = (
    Mode("SIGKILL, standby", "standby", "kill", p50_ms_max=15, p99_ms_max=40),
    Mode("SIGKILL, restart", "restart", "kill", p50_ms_max=60),
    Mode("planned service", "standby", "service", p50_ms_max=10),
    Mode(f"SIGSTOP, hang_ms {HANG_MS}", "standby", "hang"),
    Mode(
        "SIGKILL, driver",
        "restart",
        "kill",
        architecture="disaggregated",
        victim="driver",
        pause_ms=DRIVER_PAUSE_MS,
    ),
    Mode("SIGKILL, root beside drivers", "restart", "kill", architecture="disaggregated"),
)


class _MachineEnded(Exception):
    """It went down while we wanted something of it; its own words follow."""


class _Events:
    """The machine's events, from the thread that runs it to the one that kills."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

    def put(self, event: Event, encoded: bytes) -> None:
        self._queue.put(event)

    def end(self) -> None:
        self._queue.put(None)

    def wait_for(self, *kinds: str) -> dict[str, dict[str, Any]]:
        """The fields of the next event of each kind, all of which must come."""
        found: dict[str, dict[str, Any]] = {}
        deadline = time.monotonic() + PATIENCE_S
        while len(found) < len(kinds):
            try:
                event = self._queue.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                missing = ", ".join(kind for kind in kinds if kind not in found)
                raise CommandError(f"no {missing} within {PATIENCE_S:g} s") from None
            if event is None:
                raise _MachineEnded
            if event.kind in kinds and (not event.kind.startswith("partition.") or event.partition == DRIVER):
                found[event.kind] = event.fields | {"logged_ns": event.monotonic_ns}
        return found

    def forget(self) -> None:
        """What has come so far. CommandError: a root or a driver has died, and nobody had asked for it."""
        while not self._queue.empty():
            event = self._queue.get()
            if event is None:
                raise _MachineEnded
            if event.kind in ("root.exited", "driver.exited", "driver.failed"):
                raise CommandError(f"{event.kind}, and nobody had killed it: {event.fields.get('reason')}")


class _Killer:
    """The thread that replaces roots while the main thread runs the machine."""

    def __init__(self, mode: Mode, name: str, times: memoryview, kills: int) -> None:
        self.events: Final = _Events()
        self.replacements: list[Replacement] = []
        self.failure: BaseException | None = None
        self._mode, self._name, self._times, self._kills = mode, name, times, kills
        self._place = 0  # times before it were read
        self._pid = 0  # the victim's
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)

    def __enter__(self) -> "_Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.events.end()
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        from runtime.machine.management_client import ManagementClient
        from runtime.machine.rundir import resolve

        try:
            started = "root.started" if self._mode.victim == "root" else "partition.started"
            self._pid = self.events.wait_for(started, "machine.ready")[started]["pid"]
            self._await_times(1)
            with ManagementClient(resolve(self._name)) as client:
                try:
                    self._replace_all(client.request)
                finally:
                    with contextlib.suppress(CommandError):
                        client.request("stop")
        except _MachineEnded:
            pass
        except BaseException as error:
            self.failure = error
            os.kill(os.getpid(), signal.SIGTERM)  # `run_in_foreground` ends the machine

    def _replace_all(self, request: Callable[..., object]) -> None:
        rng = random.Random(SEED)
        for _ in range(self._kills):
            pause_begins_ns = time.monotonic_ns()
            time.sleep(rng.uniform(*self._mode.pause_ms) / 1000)
            self.replacements.append(self._replace(request, pause_begins_ns))

    def _replace(self, request: Callable[..., object], pause_begins_ns: int) -> Replacement:
        self.events.forget()
        killed_ns = time.monotonic_ns()
        match self._mode.how:
            case "service":
                request("service")
            case how:
                os.kill(self._pid, signal.SIGSTOP if how == "hang" else signal.SIGKILL)
        if self._mode.victim == "root":
            standby = ["root.standby"] if self._mode.policy == "standby" else []
            seen = self.events.wait_for("root.exited", "root.started", "root.restored", *standby)
            exited, started, restored = seen["root.exited"], seen["root.started"], seen["root.restored"]
            exited_ns, started_ns = exited["at_ns"], started["at_ns"]
        else:
            kinds = ("partition.exited", "partition.started", "driver.serving")
            seen = self.events.wait_for(*kinds)
            exited, started, restored = (seen[kind] for kind in kinds)
            # The platform's times, not the hypervisor's: they may be late, but no order is in doubt.
            started_ns = min(started["logged_ns"], restored["born_ns"])
            exited_ns = min(exited["logged_ns"], started_ns)
        self._pid = started["pid"]
        self._await_times(restored["serving_ns"])
        times = self._new_times()
        calm = [one for one in times if one <= killed_ns]
        quiet = longest_gap(calm, pause_begins_ns, calm[-1])
        begin, end = longest_gap(times, killed_ns, restored["serving_ns"])
        completed_ns = next(one for one in times if one > restored["restored_ns"])
        return Replacement(
            killed_ns=killed_ns,
            exited_ns=exited_ns,
            started_ns=started_ns,
            born_ns=restored["born_ns"],
            restored_ns=restored["restored_ns"],
            replayed_ns=restored["replayed_ns"],
            serving_ns=restored["serving_ns"],
            completed_ns=completed_ns,
            outage_ns=end - begin,
            quiet_ns=quiet[1] - quiet[0],
        )

    def _await_times(self, after_ns: int) -> None:
        """Until the guest has had a completion after that moment."""
        deadline = time.monotonic() + PATIENCE_S
        place = self._place
        while True:
            while place < len(self._times) and self._times[place]:
                if self._times[place] > after_ns:
                    return
                place += 1
            if place == len(self._times):
                raise CommandError(f"more than {TIMES_MAX} completions: ask for fewer kills")
            if time.monotonic() > deadline:
                raise CommandError(f"the guest has had no completion for {PATIENCE_S:g} s")
            time.sleep(0.001)

    def _new_times(self) -> list[int]:
        """All since the last call, and the last one of that."""
        end = self._place
        while end < len(self._times) and self._times[end]:
            end += 1
        first, self._place = max(self._place - 1, 0), end
        return list(self._times[first:end])


def measure_mode(mode: Mode, kills: int) -> list[Replacement]:
    """Boot a machine and replace its root or driver `kills` times. CommandError: it did not live through that."""
    name = f"bench-recovery-{os.getpid()}"
    with _scratch() as (folder, times):
        config = folder / "machine.toml"
        config.write_text(
            _MACHINE.format(
                name=name,
                waiting=WAITING,
                policy=mode.policy,
                architecture=mode.architecture,
                hang_ms=HANG_MS,
                folder=folder,
                disk_bytes=DISK_BYTES,
            )
        )
        with _Killer(mode, name, times, kills) as killer:
            code = run_in_foreground(load(config), killer.events.put)
    if killer.failure is not None:
        raise killer.failure
    if code == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if len(killer.replacements) < kills:
        raise CommandError(f"the machine ended after {len(killer.replacements)} of {kills} kills")
    return killer.replacements


@contextlib.contextmanager
def _scratch() -> Iterator[tuple[Path, memoryview]]:
    """A folder, and in it the mapped file of completion times."""
    with tempfile.TemporaryDirectory(prefix="partvisor-bench-") as place:
        with (Path(place) / "completions").open("w+b") as file:
            file.truncate(TIMES_MAX * 8)
            mapping = mmap.mmap(file.fileno(), TIMES_MAX * 8, prot=mmap.PROT_READ)
        times = memoryview(mapping).cast("Q")
        try:
            yield Path(place), times
        finally:
            times.release()
            with contextlib.suppress(BufferError):  # the killer's thread did not end in time
                mapping.close()


def rows_of(mode: Mode, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each goal of a mode."""
    outage = summary["outage_ms"]
    goals = {"p50": mode.p50_ms_max, "p99": mode.p99_ms_max}
    return [
        {"goal": f"{mode.name}: {name} < {limit:g} ms", "value": outage[name], "met": outage[name] < limit}
        for name, limit in goals.items()
        if limit is not None
    ]


def _revision() -> str | None:
    """Of the source tree that we run from, if it is one."""
    here = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        described = ["git", "-C", str(here), "describe", "--always", "--dirty"]
        return subprocess.run(described, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    return None


def run(*, kills: int | None = None, quick: bool = False, as_json: bool = False) -> int:
    """Measure and print; the exit code says whether every goal was met."""
    count = kills if kills is not None else QUICK_KILLS if quick else KILLS
    found = conditions(tuple(sorted(os.sched_getaffinity(0))))
    measured = {mode: measure_mode(mode, count) for mode in MODES}
    found |= {
        "load_after": round(os.getloadavg()[0], 2),
        "scheduler_class": _SCHEDULING.get(os.sched_getscheduler(0), "other"),
        "waiting": WAITING,
        "hang_ms": HANG_MS,
        "revision": _revision(),
    }
    summaries = {mode: summarize(replacements) for mode, replacements in measured.items()}
    goals = [row for mode, summary in summaries.items() for row in rows_of(mode, summary)]
    if as_json:
        print_json(
            {
                "modes": {mode.name: summary for mode, summary in summaries.items()},
                "goals": goals,
                "peers": PEERS,
                "conditions": found,
                "replacements": {
                    mode.name: [asdict(one) for one in replacements]
                    for mode, replacements in measured.items()
                },
            }
        )
    else:
        _print(summaries, goals, found)
    return ExitCode.DONE if all(row["met"] for row in goals) else ExitCode.FAILED


def _print(summaries: dict[Mode, dict[str, Any]], goals: list[dict[str, Any]], found: dict[str, Any]) -> None:
    print("The guest's longest time without a completion, in ms")
    print_table(
        [
            {"mode": mode.name, "kills": summary["kills"], **summary["outage_ms"]}
            | {"quiet p50": summary["quiet_gap_ms"]["p50"], "quiet max": summary["quiet_gap_ms"]["max"]}
            for mode, summary in summaries.items()
        ],
        "nothing was measured",
    )
    print(f"\nElsewhere, for other systems on other machines: {PEERS}")
    print("\nWhere it goes, p50 in ms, from the kill to the guest's first completion")
    print_table(
        [
            {"mode": mode.name}
            | {phase: summary["split_ms"][phase]["p50"] for phase in PHASES}
            | {"sum": summary["first_completion_ms"]["p50"]}
            | {f"({phase})": summary["split_ms"][phase]["p50"] for phase in REMAINDER}
            for mode, summary in summaries.items()
        ],
        "nothing was measured",
    )
    print()
    print_table(goals, "no goals")
    print()
    print_record(found)
