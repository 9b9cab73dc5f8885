"""A process that runs beside a measurement, and not longer: a machine of ours, or somebody else's server."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

STOP_S: Final = 15.0
# Never executed anew, so that what ties its life to ours holds.
_START: Final = (
    "import sys; from runtime.machine.lifeline import die_with_parent; die_with_parent(int(sys.argv[1]));"
    " from runtime.cli import main; sys.exit(main(['run', *sys.argv[2:], '--json']))"
)


def machine_command(config: Path, *options: str) -> list[str]:
    """`partvisor run CONFIG --json`, which dies with this process."""
    return [sys.executable, "-P", "-c", _START, str(os.getpid()), str(config), *options]


def end(process: "subprocess.Popen[Any]") -> None:
    """In order, and if that takes too long, at once."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running(command: list[str], **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """`options`: of Popen."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, **options)
    try:
        yield process
    finally:
        end(process)
