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
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from bus.seam import Step
from runtime.chaos.blocks import image_values
from runtime.chaos.checker import check
from runtime.chaos.history import History, read_history
from runtime.chaos.verdict import Verdict
from runtime.exits import CommandError
from runtime.rundir import BASE_VARIABLE, MachineNotFound, find_machines

PATIENCE_S: Final = 60.0  # for anything that must happen; a busy host is no finding
BOUND_S: Final = 20.0  # of one request: beyond it counts as hung
BLOCK_BYTES: Final = 4096
DISK_BYTES: Final = 16 << 20
DRIVER: Final = "disk0"  # the device, and the driver partition that has it where there is one
REOPENED_BLOCK: Final = 3072  # where the reopening guest's own blocks begin

Event = Mapping[str, Any]


class MachineEnded(Exception):
    """It ended while something was expected of it; the text has its last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    policy: str = "standby"
    seed: int = 1  # the first guest's; the others count up
    guests: int = 1  # on one disk, all on the same blocks
    reopening: bool = False  # one more, that opens and closes its channel all the time
    seconds: float = 5.0  # at the most, and so many operations of each guest:
    operations: int = 400_000
    blocks: int = 512
    depth: int = 32
    settings: Mapping[str, int | str] = field(default_factory=dict)  # of [machine]
    root_cpus: tuple[int, ...] = ()  # of the host; none: any

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.guests)


@dataclass(frozen=True, slots=True)
class Judged:
    """How it ended, and what its guests saw."""

    exit_code: int
    errors: str
    verdict: Verdict
    histories: list[History]
    left_behind: list[str]  # processes and files
    reopened: int  # openings of the reopening guest


class LoadedMachine:
    """One boot. Its threads only read; all methods are for one caller."""

    def __init__(self, folder: Path, load: Load, runtime_dir: Path | None = None) -> None:
        """`runtime_dir`: for its sockets, where `folder`, which holds the rest, is too deep for their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        self.load, self._folder = load, folder
        self.runtime_dir: Final = runtime_dir or folder / "run"
        config = folder / "machine.toml"
        config.write_text(self._config())
        self._environment = os.environ | {BASE_VARIABLE: str(self.runtime_dir)}
        self.process: Final = subprocess.Popen(
            [sys.executable, "-m", "runtime.cli", "run", str(config), "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
            start_new_session=True,
        )
        self.events: Final[list[Event]] = []
        self.errors = ""
        self._over = False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=run) for run in (self._read_events, self._read_errors)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Whatever it does, end it."""
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def _config(self) -> str:
        load = self.load
        settings = {"name": "loaded", "memory": "512MiB", "on_root_failure": load.policy, **load.settings}
        lines = ["[machine]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
        if load.root_cpus:
            lines += ["[root]", f"cpus = {list(load.root_cpus)}"]
        lines += ["[[root.device]]", 'name = "disk0"', 'kind = "disk"', 'backend = "file"']
        lines += [f'path = "{self.image}"', f"size = {DISK_BYTES}"]
        for seed in load.seeds:
            self.history_path(seed).touch()
            arguments = (
                f'device = "disk0", seed = {seed}, blocks = {load.blocks}, depth = {load.depth}, '
                f"seconds = {load.seconds}, operations = {load.operations}, "
                f"patience_s = {2 * BOUND_S}"
            )
            lines += _partition(f"guest{seed}", "verified", arguments)
            lines += ["[[partition.file]]", 'name = "history"', 'mode = "read-write"']
            lines.append(f'path = "{self.history_path(seed)}"')
        if load.reopening:
            arguments = f'device = "disk0", seconds = {load.seconds}, first_block = {REOPENED_BLOCK}'
            lines += _partition("reopening", "reopening", arguments)
        return "\n".join(lines) + "\n"

    @property
    def image(self) -> Path:
        return self._folder / "disk.img"

    def history_path(self, seed: int) -> Path:
        return self._folder / f"history{seed}"

    # -- what happens

    def _read_events(self) -> None:
        assert self.process.stdout is not None
        with (self._folder / "events.jsonl").open("w") as log:
            for line in self.process.stdout:
                log.write(line)
                with self._changed:
                    self.events.append(json.loads(line))
                    self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()

    def all_of(self, kind: str) -> list[Event]:
        with self._changed:
            return [event for event in self.events if event["kind"] == kind]

    def wait_for(self, kind: str, count: int = 1, patience_s: float = PATIENCE_S) -> Event:
        """The `count`-th event of that kind. MachineEnded; TimeoutError: it did not come."""
        found = self.wait_until(lambda: len(self.all_of(kind)) >= count, patience_s)
        if not found:
            self._complain(f"{kind} number {count}")
        return self.all_of(kind)[count - 1]

    def wait_until(self, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> bool:
        """False: it did not come true, and the machine is over or the time is."""
        with self._changed:
            return self._changed.wait_for(lambda: condition() or self._over, patience_s) and condition()

    def _complain(self, wanted: str) -> None:
        told = f"{self.errors[-2000:]}\n" + "\n".join(str(event) for event in self.events[-40:])
        if self._over:
            raise MachineEnded(f"it ended before {wanted}\n{told}")
        raise TimeoutError(f"no {wanted}\n{told}")

    @property
    def is_over(self) -> bool:
        return self._over

    @property
    def load_ended(self) -> bool:
        """Whether a verified guest has done all that it was to do."""
        return self._over or bool(self.all_of("guest.verified"))

    # -- the root

    @property
    def root_pid(self) -> int:
        return int(self.all_of("root.started")[-1]["fields"]["pid"])

    @property
    def takeovers(self) -> int:
        return len(self.all_of("root.restored"))

    @property
    def root_serves(self) -> bool:
        """Whether each root that died has a successor that has taken over."""
        exited, started, restored = map(self._last, ("root.exited", "root.started", "root.restored"))
        return exited < started and (exited == 0 or started < restored)

    def has_died_at(self, step: Step, since: int = 0) -> bool:
        """Whether one of the successors, but the first `since`, says that its predecessor died there."""
        return any(event["fields"]["died_at"] == step.text for event in self.all_of("root.restored")[since:])

    def _last(self, kind: str) -> int:
        """The number of the last event of that kind; 0: there was none."""
        return max((event["sequence"] for event in self.all_of(kind)), default=0)

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

    def request(self, verb: str, **args: object) -> dict[str, Any]:
        """Of the machine's management. CommandError: it refused, or does not answer."""
        from runtime.management_client import ManagementClient

        folder = next(iter(find_machines([self.runtime_dir])), None)
        if folder is None:
            raise MachineNotFound("it runs no more")
        with ManagementClient(folder) as client:
            return client.request(verb, **args)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another partvisor command against it."""
        return subprocess.run(
            [sys.executable, "-m", "runtime.cli", *arguments],
            capture_output=True,
            text=True,
            env=self._environment,
            timeout=PATIENCE_S,
            check=False,
        )

    def arm(self, step: Step, passes: int = 1, deaths: int = 1, *, driver: bool = False) -> bool:
        """Have the root, or the driver, die at that step. False: the machine has come to its end."""
        try:
            args: dict[str, Any] = {"step": step.text, "passes": passes, "deaths": deaths}
            if driver:
                self.request("seam-driver", name=DRIVER, **args)
            else:
                self.request("seam", **args)
        except CommandError:
            if self.wait_until(lambda: self._over, PATIENCE_S):
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
        if not self.wait_until(lambda: self._over, self.load.seconds + patience_s):
            self._complain("end")
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

    def left_behind(self, patience_s: float = 10.0) -> list[str]:
        """Processes and files of it that are still there, after a bounded time for the kernel to end what it killed."""
        deadline = time.monotonic() + patience_s
        while (left := self._left_behind()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def _left_behind(self) -> list[str]:
        left = [str(path) for path in self.runtime_dir.rglob("*")] if self.runtime_dir.exists() else []
        marker = f"{BASE_VARIABLE}={self.runtime_dir}".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                if marker in (entry / "environ").read_bytes().split(
                    b"\0"
                ):  # all that it ever forks inherits it
                    left.append(f"process {entry.name}")
            except OSError:
                continue
        return left


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
