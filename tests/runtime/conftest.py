"""A runtime folder of the test's own, short enough for socket paths, empty when the test is over."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.machine.rundir import BASE_VARIABLE, find_machines
from tests.conftest import JANITORS_S, what_is_below


@pytest.fixture
def runtime_base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where machines of this test live. The test fails if it leaves anything there."""
    with tempfile.TemporaryDirectory(prefix="pv") as folder:
        base = Path(folder) / "base"
        monkeypatch.setenv(BASE_VARIABLE, str(base))
        try:
            yield base
        finally:  # a failed test must not leave a daemon
            for machine in find_machines():
                if machine.pid not in (0, os.getpid()):
                    os.kill(machine.pid, signal.SIGKILL)
        deadline = time.monotonic() + JANITORS_S
        while (left := what_is_below(base)) and time.monotonic() < deadline:
            time.sleep(0.01)  # of a machine that was killed, its janitor takes care, when it gets a processor
        assert left == [], f"left behind by pid {os.getpid()}"
