"""From a checked config to a running machine: its folder, its event log, the foreground or a daemon.

What the machine then does is `runtime.machine.run.run_machine`. Nothing here touches ZeroMQ, whose contexts do
not survive a fork; the platform makes its own after we are done forking.
"""

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from bus.trace import STAMPS
from runtime.config.model import MachineConfig
from runtime.exits import CommandError, ExitCode
from runtime.machine.events import Event, EventLog
from runtime.machine.held_signals import held_signals
from runtime.machine.run_options import RunOptions
from runtime.machine.rundir import MachineFolder, machine_folder

_REPORT_BYTES_MAX: Final = 64 << 10
_STANDARD_FDS: Final = (0, 1, 2)


def run_in_foreground(
    config: MachineConfig,
    listener: Callable[[Event, bytes], None],
    post_mortem: Path | None = None,
    trace: Path | None = None,
    trace_stamps: int = STAMPS,
) -> int:
    """Run a machine until it ends; `listener` sees every event. Returns the exit code.

    Raises:
        CommandError: it could not be started, or ended for a reason that the user should read.
    """
    with held_signals(), machine_folder(config.machine.name) as folder:
        log = EventLog()
        log.listen(listener)
        options = RunOptions(
            folder,
            log,
            lambda: None,
            detached=False,
            post_mortem=post_mortem,
            trace=trace,
            trace_stamps=trace_stamps,
        )
        return _run(config, options)


def run_detached(
    config: MachineConfig, post_mortem: Path | None = None, trace: Path | None = None
) -> dict[str, Any]:
    """Start a machine as a daemon and return once it is ready: {name, pid, folder}.

    Raises:
        CommandError: it was not ready; the text has the reason, and nothing of it is left.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    middleman = os.fork()
    if middleman == 0:
        os.close(read_fd)
        try:
            os.setsid()
            if os.fork() == 0:  # not a session leader, so no terminal can become ours
                _daemon(config, write_fd, _absolute(post_mortem), _absolute(trace))
        finally:
            os._exit(ExitCode.DONE)
    os.close(write_fd)
    os.waitpid(middleman, 0)
    with os.fdopen(read_fd, "rb") as reader:
        data = reader.read(_REPORT_BYTES_MAX)
    report = json.loads(data) if data else {"error": "the machine died while it booted"}
    if "error" in report:
        raise CommandError(report["error"])
    return dict(report)


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


def _daemon(config: MachineConfig, report_fd: int, post_mortem: Path | None, trace: Path | None) -> NoReturn:
    """The grandchild. It tells its grandparent once how the boot went, and never returns."""
    reported = False

    def report(**fields: object) -> None:
        nonlocal reported
        if not reported:
            reported = True
            with contextlib.suppress(OSError):  # the terminal's command was interrupted: the machine runs on
                os.write(report_fd, json.dumps(fields).encode())
            os.close(report_fd)

    exit_code = int(ExitCode.FAILED)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if path := os.environ.get("PYTHONPATH"):  # relative parts of it mean the folder that we leave
            os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))
        os.chdir("/")
        with held_signals(), machine_folder(config.machine.name) as folder:
            _leave_terminal(folder)
            log = EventLog()
            last_reason = ""

            def remember(event: Event, encoded: bytes) -> None:
                nonlocal last_reason
                last_reason = str(event.fields.get("reason", "")) or last_reason

            log.listen(remember)
            ready = {"name": folder.name, "pid": folder.pid, "folder": str(folder.path)}
            options = RunOptions(
                folder, log, lambda: report(**ready), detached=True, post_mortem=post_mortem, trace=trace
            )
            exit_code = _run(config, options)
        report(error=f"the machine ended while it booted: {last_reason or f'exit code {exit_code}'}")
    except CommandError as error:
        exit_code = int(error.exit_code)
        report(error=str(error))
    except BaseException as error:
        traceback.print_exc()
        report(error=f"the machine ended while it booted: {type(error).__name__}: {error}")
    finally:
        os._exit(exit_code)


def _leave_terminal(folder: MachineFolder) -> None:
    null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    stderr_fd = os.open(folder.stderr_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for fd, target in zip(_STANDARD_FDS, (null_fd, null_fd, stderr_fd), strict=True):
        os.dup2(target, fd)
    for fd in (null_fd, stderr_fd):
        if fd not in _STANDARD_FDS:
            os.close(fd)


def _run(config: MachineConfig, options: RunOptions) -> int:
    import trio

    from runtime.machine.run import run_machine

    return trio.run(run_machine, config, options)
