"""A machine as whoever breaks it sees it: `partvisor run --json` in a process of its own, and what it says. It comes
from an incubator, as those who break machines need many.

    with RunningMachine(folder, config) as machine:
        machine.wait_for("machine.ready")
        machine.request("kill", name="writer")
        machine.wait_for("partition.exited")

What happens is read from its events; what it is asked goes through its management.

Its caller takes no lock, and neither do its threads: Ctrl-C may come between any two instructions of the main thread,
and a lock that the interrupted caller left taken would hold up the threads that `close` waits for.
"""

import contextlib
import json
import math
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from runtime.chaos.interruption import heeding
from runtime.machine.incubator import incubator_for
from runtime.machine.rundir import BASE_VARIABLE, MachineNotFound, find_machines

PATIENCE_S: Final = 60.0  # for anything that must happen; a busy host is no finding

Event = Mapping[str, Any]


class MachineEnded(Exception):
    """It ended while something was expected of it; the text has its last words."""


class RunningMachine:
    """One boot. Its threads only read; all methods are for one caller."""

    def __init__(self, folder: Path, config: Path, runtime_dir: Path | None = None) -> None:
        """`runtime_dir`: for its sockets, where `folder`, which holds the rest, is too deep for their paths."""
        self.folder: Final = folder
        self.runtime_dir: Final = runtime_dir or folder / "run"
        self._environment = os.environ | {BASE_VARIABLE: str(self.runtime_dir)}
        incubator = incubator_for(self._environment)  # so it goes with us: it is left to nobody
        self.process: Final = incubator.run(["run", str(config), "--json"], self._environment)
        self.events: Final[list[Event]] = []
        self.errors = ""
        self._over = False
        self._news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._news_poll = select.poll()
        self._news_poll.register(self._news, select.POLLIN)
        self._threads = [
            threading.Thread(target=run, daemon=True) for run in (self._read_events, self._read_errors)
        ]
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
            stream.close()
        if self._news >= 0:
            os.close(self._news)
            self._news = -1

    # -- what happens

    def _read_events(self) -> None:
        with (self.folder / "events.jsonl").open("w", buffering=1) as log:
            for line in self.process.stdout:
                log.write(line)
                if not line.endswith("\n"):
                    break  # it was killed in the middle of it
                self.events.append(json.loads(line))
                os.eventfd_write(self._news, 1)
        self._over = True
        os.eventfd_write(self._news, 1)

    def _read_errors(self) -> None:
        self.errors = self.process.stderr.read()

    def all_of(self, kind: str) -> list[Event]:
        return [event for event in list(self.events) if event["kind"] == kind]

    def wait_for(self, kind: str, count: int = 1, patience_s: float = PATIENCE_S) -> Event:
        """The `count`-th event of that kind. MachineEnded; TimeoutError: it did not come."""
        found = self.wait_until(lambda: len(self.all_of(kind)) >= count, patience_s)
        if not found:
            self.complain(f"{kind} number {count}")
        return self.all_of(kind)[count - 1]

    def wait_until(self, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> bool:
        """False: it did not come true, and the machine is over or the time is."""
        deadline = time.monotonic() + patience_s
        while not condition() and not self._over and (left_s := deadline - time.monotonic()) > 0:
            self.wait_for_news(left_s)
        return condition()  # once more: what was its last word may have come between the two looks

    def wait_for_news(self, patience_s: float) -> None:
        """Until something happens, the machine is over or the time is. What happened since the last time counts."""
        patience_ms = max(math.ceil(patience_s * 1000), 0)
        if not self._over and heeding(lambda: self._news_poll.poll(patience_ms)):
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._news)

    def complain(self, wanted: str) -> None:
        told = f"{self.errors[-2000:]}\n" + "\n".join(str(event) for event in self.events[-40:])
        if self._over:
            raise MachineEnded(f"it ended before {wanted}\n{told}")
        raise TimeoutError(f"no {wanted}\n{told}")

    @property
    def is_over(self) -> bool:
        return self._over

    def request(self, verb: str, **args: object) -> dict[str, Any]:
        """Of the machine's management. CommandError: it refused, or does not answer."""
        from runtime.machine.management_client import ManagementClient

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
