"""`partvisor doctor`: what this host allows, and what that means for machines on it."""

import ctypes
import fcntl
import json
import mmap
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import click

from runtime.commands.shared_options import json_option
from runtime.exits import ExitCode
from runtime.machine.user_namespace import enter_before_exec
from runtime.reports import print_json, print_table

_PROBE_SECONDS_MAX: Final = 5
_FILES_WANTED: Final = 4096  # a big machine: 256 partitions with a dozen descriptors each


@dataclass(frozen=True, slots=True)
class Finding:
    """`missing` stops machines from running; `limited` costs speed or a feature."""

    what: str
    state: Literal["ok", "limited", "missing"]
    detail: str


@click.command()
@json_option
def doctor(as_json: bool) -> int:
    """Check what this host allows. Exits with 1 when machines can't run here.

    \b
    Example:
      partvisor doctor
    """
    findings = examine()
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        print_table([asdict(finding) for finding in findings], "nothing was checked")
    return ExitCode.FAILED if any(finding.state == "missing" for finding in findings) else ExitCode.DONE


def examine() -> list[Finding]:
    findings = []
    for what, check in _CHECKS.items():
        try:
            state, detail = check()
        except Exception as error:  # whatever a host may throw at a probe is a finding
            state, detail = "missing", f"{type(error).__name__}: {error}"
        findings.append(Finding(what, state, detail))
    return findings


_Result = tuple[Literal["ok", "limited", "missing"], str]


def _python() -> _Result:
    version = platform.python_version()
    return ("ok" if sys.version_info >= (3, 11) else "missing"), f"{version}, {sys.executable}; needs 3.11"


def _kernel() -> _Result:
    return "ok", f"{platform.system()} {platform.release()} {platform.machine()}"


def _memory_slots() -> _Result:
    fd = os.memfd_create("doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        mmap.mmap(fd, mmap.PAGESIZE).close()
    finally:
        os.close(fd)
    if mmap.PAGESIZE != 4096:
        return "missing", f"pages of {mmap.PAGESIZE} bytes; partvisor needs 4096"
    return "ok", "sealed memfds, pages of 4096 bytes"


def _doorbells() -> _Result:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        os.eventfd_write(fd, 1)
        assert os.eventfd_read(fd) == 1
    finally:
        os.close(fd)
    return "ok", "eventfd"


def _process_watching() -> _Result:
    fd = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(fd, 0)  # only asks whether we may
    finally:
        os.close(fd)
    return "ok", "pidfd_open, pidfd_send_signal"


def _sandbox() -> _Result:
    """By doing it all, in a process of its own: none of it can be undone."""
    run = subprocess.run(
        [sys.executable, "-P", "-m", "partitions.sandbox.probes"],
        timeout=_PROBE_SECONDS_MAX,
        capture_output=True,
        check=True,
        preexec_fn=enter_before_exec,
    )
    missing = json.loads(run.stdout)["missing"]
    if not missing:
        return "ok", 'all of it: sandbox = "strict" runs'
    listed = ", ".join(f"{what} ({why})" for what, why in missing.items())
    return "limited", f'without {listed}; sandbox = "strict" is refused'


def _guest_taps() -> _Result:
    """For [partition.tap]: by making one, in namespaces of its own."""
    run = subprocess.run(
        [sys.executable, "-P", "-m", "partitions.net.guest_interface"],
        timeout=_PROBE_SECONDS_MAX,
        capture_output=True,
        text=True,
    )
    if run.returncode:
        return (
            "limited",
            f"no TAP in a guest: {run.stderr.strip().splitlines()[-1] if run.stderr else 'no reason'}",
        )
    return "ok", "a TAP in a network namespace of its own"


def _user_networks() -> _Result:
    from runtime.machine.user_networks import find_program

    if (program := find_program()) is None:
        return "limited", 'no passt: backend = "user" of a net has no outside; apt install passt'
    return "ok", program


def _cpus() -> _Result:
    allowed = sorted(os.sched_getaffinity(0))
    detail = f"{len(allowed)} of {os.cpu_count()} may be used: {', '.join(map(str, allowed))}"
    if len(allowed) < 2:
        return "limited", f"{detail}; both sides of a ring share one, so every packet costs a context switch"
    return "ok", detail


def _native_core() -> _Result:
    try:
        from bus.native import _core
    except ImportError as error:
        return "missing", f"{error}; build it with: scripts/setup"
    return "ok", str(_core.__file__)


def _compiler() -> _Result:
    header = Path(sysconfig.get_path("include")) / "Python.h"
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return "limited", "no C compiler: the benchmarks' C references can't be built"
    if not header.exists():
        return "limited", f"{compiler}, but no {header}: the extension can't be rebuilt"
    return "ok", f"{compiler}, {header}"


def _open_files() -> _Result:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{soft}, can be raised to {hard}"
    return ("ok" if hard == resource.RLIM_INFINITY or hard >= _FILES_WANTED else "limited"), detail


def _runtime_folder() -> _Result:
    from runtime.machine.rundir import machine_folder

    with machine_folder("doctor") as folder:
        return "ok", str(folder.path.parent)


def _parent_death_signal() -> _Result:
    pr_get_pdeathsig, value = 2, ctypes.c_int()
    if ctypes.CDLL(None).prctl(pr_get_pdeathsig, ctypes.byref(value), 0, 0, 0) != 0:
        return "missing", "prctl(PR_GET_PDEATHSIG) is refused: processes could outlive their machine"
    return "ok", "processes die with their machine"


_CHECKS: Final[dict[str, Callable[[], _Result]]] = {
    "python": _python,
    "kernel": _kernel,
    "native core": _native_core,
    "memory slots": _memory_slots,
    "doorbells": _doorbells,
    "process watching": _process_watching,
    "parent death signal": _parent_death_signal,
    "runtime folder": _runtime_folder,
    "CPUs": _cpus,
    "open files": _open_files,
    "sandbox": _sandbox,
    "compiler": _compiler,
    "guests' TAPs": _guest_taps,
    "user networks": _user_networks,
}
