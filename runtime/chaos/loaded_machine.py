"""A whole machine under the verified load, of processes of its own, whose root can be killed in every way there is.

    with LoadedMachine(folder, Load(policy="standby", seed=1)) as machine:
        machine.wait_for("guest.verified_progress")
        machine.kill_root()
        machine.wait_for("root.restored")
        result = machine.judge()

The machine is `partvisor run --json` in a folder of its own; what happens is read from its events, what its guests saw
from their histories and from the image of the disk.
"""

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bus.seam import Step
from runtime.chaos.blocks import image_values
from runtime.chaos.checker import check
from runtime.chaos.history import History, read_history
from runtime.chaos.running_machine import PATIENCE_S, RunningMachine
from runtime.chaos.verdict import Verdict
from runtime.exits import CommandError

BOUND_S: Final = 20.0  # of one request: beyond it counts as hung
DISK_BYTES: Final = 16 << 20
DRIVER: Final = "disk0"  # the device, and the driver partition that has it where there is one
REOPENED_BLOCK: Final = 3072  # where the reopening guest's own blocks begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    policy: str = "standby"
    seed: int = 1  # the first guest's; the others count up
    guests: int = 1  # on one disk, all on the same blocks
    queues: int = 1  # of each guest to it
    reopening: bool = False  # one more, that opens and closes its channel all the time
    seconds: float = 5.0  # at the most, and so many operations of each guest:
    operations: int = 400_000
    blocks: int = 512
    depth: int = 32
    settings: Mapping[str, int | str] = field(default_factory=dict)  # of [machine]
    root_cpus: tuple[int, ...] = ()  # of the host; none: any

    @property
    def seeds(self) -> range:
        """One for each history: of a guest, or of each of its queues."""
        return range(self.seed, self.seed + self.guests * self.queues)


@dataclass(frozen=True, slots=True)
class Judged:
    """How it ended, and what its guests saw."""

    exit_code: int
    errors: str
    verdict: Verdict
    histories: list[History]
    left_behind: list[str]  # processes and files
    reopened: int  # openings of the reopening guest


class LoadedMachine(RunningMachine):
    """One boot of it."""

    def __init__(self, folder: Path, load: Load, runtime_dir: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.load, self._folder = load, folder
        config = folder / "machine.toml"
        config.write_text(self._config())
        super().__init__(folder, config, runtime_dir)

    def _config(self) -> str:
        load = self.load
        settings = {"name": "loaded", "memory": "512MiB", "on_root_failure": load.policy, **load.settings}
        lines = ["[machine]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
        if load.root_cpus:
            lines += ["[root]", f"cpus = {list(load.root_cpus)}"]
        lines += ["[[root.device]]", 'name = "disk0"', 'kind = "disk"', 'backend = "file"']
        lines += [f'path = "{self.image}"', f"size = {DISK_BYTES}"]
        if load.queues > 1:
            lines.append(f"queues = {load.queues}")
        for seed in load.seeds[:: load.queues]:
            arguments = (
                f'device = "disk0", seed = {seed}, blocks = {load.blocks}, depth = {load.depth}, '
                f"seconds = {load.seconds}, operations = {load.operations}, "
                f"patience_s = {2 * BOUND_S}"
            )
            if load.queues > 1:
                arguments += f", queues = {load.queues}"
                lines += _partition(f"guest{seed}", "verified_queues", arguments)
            else:
                lines += _partition(f"guest{seed}", "verified", arguments)
            for own in range(seed, seed + load.queues):
                self.history_path(own).touch()
                name = f"history{own}" if load.queues > 1 else "history"
                lines += ["[[partition.file]]", f'name = "{name}"', 'mode = "read-write"']
                lines.append(f'path = "{self.history_path(own)}"')
        if load.reopening:
            arguments = f'device = "disk0", seconds = {load.seconds}, first_block = {REOPENED_BLOCK}'
            lines += _partition("reopening", "reopening", arguments)
        return "\n".join(lines) + "\n"

    @property
    def image(self) -> Path:
        return self._folder / "disk.img"

    def history_path(self, seed: int) -> Path:
        return self._folder / f"history{seed}"

    @property
    def load_ended(self) -> bool:
        """Whether a verified guest has done all that it was to do."""
        return self.is_over or bool(self.all_of("guest.verified"))

    # -- the root

    @property
    def root_pid(self) -> int:
        return int(self.all_of("root.started")[-1]["fields"]["pid"])

    @property
    def takeovers(self) -> int:
        return len(self.all_of("root.restored"))

    @property
    def root_serves(self) -> bool:
        """Whether each root that died has a successor that has taken over.

        By the events' own times: what a root tells of itself may come before the hypervisor's word that it was started.
        """
        exited = self._latest("root.exited", "at_ns")
        started = self._latest("root.started", "at_ns")
        restored = self._latest("root.restored", "serving_ns")
        return exited == 0 or exited < started < restored

    def has_died_at(self, step: Step, since: int = 0) -> bool:
        """Whether one of the successors, but the first `since`, says that its predecessor died there."""
        return any(event["fields"]["died_at"] == step.text for event in self.all_of("root.restored")[since:])

    def _latest(self, kind: str, time: str) -> int:
        """Of that time in events of that kind; 0: there was none."""
        return max((event["fields"].get(time, 0) for event in self.all_of(kind)), default=0)

    def kill_root(self, with_signal: int = signal.SIGKILL) -> int | None:
        """Signal the newest root. Its pid; None: it was gone."""
        pid = self.root_pid
        return pid if signal_process(pid, with_signal) else None

    # -- the driver partition, with architecture = "disaggregated"

    @property
    def driver_pid(self) -> int:
        started = [event for event in self.all_of("partition.started") if event["partition"] == DRIVER]
        return int(started[-1]["fields"]["pid"])

    @property
    def driver_deaths(self) -> int:
        return sum(event["partition"] == DRIVER for event in self.all_of("partition.exited"))

    @property
    def driver_serves(self) -> bool:
        """Whether the newest process of the driver partition has told that it serves."""
        started = sum(event["partition"] == DRIVER for event in self.all_of("partition.started"))
        told = max((event["fields"]["generation"] for event in self.all_of("driver.serving")), default=0)
        return bool(told >= started > self.driver_deaths)

    def driver_has_died_at(self, step: Step, since: int = 0) -> bool:
        return any(event["fields"]["died_at"] == step.text for event in self.all_of("driver.serving")[since:])

    def kill_driver(self, with_signal: int = signal.SIGKILL) -> int | None:
        """As `kill_root`."""
        pid = self.driver_pid
        return pid if signal_process(pid, with_signal) else None

    def arm(self, step: Step, passes: int = 1, deaths: int = 1, *, driver: bool = False) -> bool:
        """Have the root, or the driver, die at that step. False: the machine has come to its end."""
        try:
            args: dict[str, Any] = {"step": step.text, "passes": passes, "deaths": deaths}
            if driver:
                self.request("seam-driver", name=DRIVER, **args)
            else:
                self.request("seam", **args)
        except CommandError:
            if self.wait_until(lambda: self.is_over, PATIENCE_S):
                return False
            raise
        return True

    # -- the end

    def finish(self) -> None:
        """Have its guests ask for nothing more: they end, and it with them. Roots may go on dying."""
        for event in self.all_of("partition.started"):
            if event["partition"] == DRIVER:
                continue  # it ends when its guests have
            signal_process(event["fields"]["pid"], signal.SIGTERM)

    def judge(self, patience_s: float = PATIENCE_S) -> Judged:
        """Wait for the end, read what the guests saw. TimeoutError: it does not end."""
        if not self.wait_until(lambda: self.is_over, self.load.seconds + patience_s):
            self.complain("end")
        code = self.process.wait(PATIENCE_S)
        self._threads[1].join()
        histories = [read_history(self.history_path(seed)) for seed in self.load.seeds]
        descriptor = os.open(self.image, os.O_RDONLY)
        try:
            image = dict(enumerate(image_values(descriptor, 0, self.load.blocks)))
        finally:
            os.close(descriptor)
        verdict = check(histories, bound_s=BOUND_S, image=image)
        reopened = sum(event["fields"]["turns"] for event in self.all_of("guest.reopened"))
        return Judged(code, self.errors, verdict, histories, self.left_behind(), reopened)


def _partition(name: str, program: str, arguments: str) -> list[str]:
    return [
        "[[partition]]",
        f'name = "{name}"',
        f'program = "partitions.guests.{program}:main"',
        'memory = "32MiB"',
        f"args = {{ {arguments} }}",
        "[[partition.device]]",
        'name = "disk0"',
    ]


def signal_process(pid: int, with_signal: int) -> bool:
    """False: it had ended."""
    try:
        os.kill(pid, with_signal)
    except ProcessLookupError:
        return False
    return True
