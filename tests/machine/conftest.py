"""Whole machines of real processes, and what they must leave behind: nothing."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from runtime import cli
from runtime.machine.incubator import incubator_for
from runtime.machine.rundir import BASE_VARIABLE
from tests.conftest import what_is_below

PATIENCE_S: Final = 60.0  # for anything that must happen; never a performance claim
PARTVISOR: Final = [sys.executable, "-m", "runtime.cli"]
# Of [machine]: on a busy host a healthy process may get no processor for longer than the defaults allow, and a test
# that counts deaths would count one more. Whoever tests how a hang is found out says how soon.
PATIENT: Final[Mapping[str, int]] = {"hang_ms": 60_000, "stuck_ms": 60_000}


def until(condition: Callable[[], object], why: Callable[[], object] = lambda: "") -> None:
    """Wait for what another process does: it may be seen at any time, on a busy host late."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, why()
        time.sleep(0.01)


class RunningMachine:
    """`partvisor run CONFIG --json` as a user runs it, with its events as they come."""

    def __init__(
        self, config: Path, runtime_dir: Path, *overrides: str, options: tuple[str, ...] = ()
    ) -> None:
        self.runtime_dir = runtime_dir
        self.environment = os.environ | {"PARTVISOR_RUNTIME_DIR": str(runtime_dir)}
        arguments = [item for override in overrides for item in ("--set", override)]
        self.process = incubator_for(self.environment).run(
            ["run", str(config), "--json", *arguments, *options], self.environment
        )
        self.events: list[dict[str, Any]] = []
        self.errors = ""
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self._everyone: dict[int, psutil.Process] = {}

    def _read_events(self) -> None:
        for line in self.process.stdout:
            with self._changed:
                self.events.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _read_errors(self) -> None:
        self.errors = self.process.stderr.read()

    def wait_for(self, kind: str, partition: str | None = None) -> dict[str, Any]:
        """The first event of that kind (and partition). Fails with all that was said if it does not come."""

        def find() -> dict[str, Any] | None:
            for event in self.events:
                if event["kind"] == kind and partition in (None, event["partition"]):
                    return event
            return None

        with self._changed:
            self._changed.wait_for(lambda: find() or self.process.poll() is not None, PATIENCE_S)
        if (event := find()) is None:
            self._readers[0].join(PATIENCE_S)
            event = find()
        assert event is not None, f"no {kind}; exit {self.process.poll()}\n{self.errors}\n{self.events}"
        self.remember()
        return event

    def remember(self) -> None:
        """Note every process of the machine that there is now, so that none can hide from `leftovers`."""
        try:
            platform = psutil.Process(self.process.pid)
            for process in [platform, *platform.children(recursive=True)]:
                self._everyone[process.pid] = process
        except psutil.NoSuchProcess:
            pass

    def pid(self, who: str) -> int:
        """Of platform, root, hypervisor, or a partition."""
        if who == "platform":
            return self.process.pid
        kinds = {"root": "root.started", "hypervisor": "hypervisor.started"}
        event = self.wait_for(kinds.get(who, "partition.started"), None if who in kinds else who)
        return int(event["fields"]["pid"])

    def wait(self) -> int:
        """Until `partvisor run` has ended; its exit code."""
        code = self.process.wait(PATIENCE_S)
        for reader in self._readers:
            reader.join(PATIENCE_S)
        for stream in (self.process.stdout, self.process.stderr):
            stream.close()
        return code

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another partvisor command against this machine. In this process: a new one costs more than the command."""
        output, errors = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(BASE_VARIABLE, str(self.runtime_dir))
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                code = int(cli.main(arguments))
        return subprocess.CompletedProcess(list(arguments), code, output.getvalue(), errors.getvalue())

    def leftovers(self) -> list[str]:
        """Processes and files that are still there, after a bounded time for the kernel to end what it killed."""
        deadline = time.monotonic() + PATIENCE_S
        while (left := self._leftovers()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def _leftovers(self) -> list[str]:
        left = []
        for process in self._everyone.values():
            try:
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(f"{process.pid} {process.name()}")
            except psutil.NoSuchProcess:
                continue
        marker = f"PARTVISOR_RUNTIME_DIR={self.runtime_dir}".encode()
        for pid in psutil.pids():
            try:
                if pid not in self._everyone and marker in Path(f"/proc/{pid}/environ").read_bytes().split(
                    b"\0"
                ):
                    left.append(f"{pid} (unknown)")
            except OSError:
                continue
        left += map(str, what_is_below(self.runtime_dir))
        return left

    def destroy(self) -> None:
        self.remember()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.wait()


Boot = Callable[..., RunningMachine]


@pytest.fixture
def boot(tmp_path: Path, runtime_dir: Path) -> Iterator[Boot]:
    """boot(toml text, *overrides) -> a machine; every one is destroyed, and must have left nothing."""
    machines: list[RunningMachine] = []

    def start(text: str, *overrides: str, options: tuple[str, ...] = ()) -> RunningMachine:
        config = tmp_path / f"machine{len(machines)}.toml"
        config.write_text(text)
        machine = RunningMachine(config, runtime_dir, *overrides, options=options)
        machines.append(machine)
        return machine

    yield start
    for machine in machines:
        machine.destroy()
    for machine in machines:
        assert machine.leftovers() == []


def machine_toml(*partitions: str, devices: str = "", **settings: str | int) -> str:
    """A config text: [machine] settings, devices, partitions."""
    table = {"name": "test", "memory": "256MiB", **PATIENT, **settings}
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
    return f"[machine]\n{lines}\n{devices}\n" + "\n".join(partitions)


def idle_partition(name: str) -> str:
    return f'[[partition]]\nname = "{name}"\nprogram = "partitions.guests.idle:main"\nmemory = "16MiB"\n'


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where trials write. Short, for the paths of sockets; and in the end removed."""
    with tempfile.TemporaryDirectory(prefix="pv-") as folder:
        yield Path(folder)
