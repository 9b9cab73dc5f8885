"""Attacks on processes: signals to others, new processes, more than its limits allow. What ends it is in last_call."""

import ctypes
import os
import resource
import signal
from typing import Final

from partitions.guests.hostile.scene import Scene
from partitions.guests.hostile.tally import Tally
from partitions.guests.hostile.walls import require_walls

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE, _VFORK, _CLONE3, _TGKILL = 56, 58, 435, 234
_CLONE_NEWUSER: Final = 0x1000_0000
_DESCRIPTORS_MAX: Final = 1 << 17
_TOO_MUCH_BYTES: Final = 8 << 30
_AROUND: Final = 24


def call_by_number(number: int, *arguments: int) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(each) for each in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def signals_to_others(scene: Scene, tally: Tally) -> None:
    """Whoever is near gets signal 0, which asks whether one might be sent; those of this machine get real ones."""
    require_walls()
    machine = [*(int(pid) for pid in scene.args.get("pids", ())), os.getppid()]
    own = os.getpid()
    near = [pid for pid in range(own - _AROUND, own + _AROUND) if pid != own]
    for pid in (*machine, -1, *near):
        tally.system_call(f"kill {pid}, 0", lambda: os.kill(pid, 0))  # noqa: B023
    for pid in (*machine, *near):
        tally.system_call(f"tgkill {pid}, 0", lambda: call_by_number(_TGKILL, pid, pid, 0))  # noqa: B023
        tally.system_call(f"pidfd of {pid}", lambda: os.close(os.pidfd_open(pid)))  # noqa: B023
    if tally.breaches:
        return  # it is proven already, and need not hurt
    for pid in machine:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            tally.system_call(f"kill {pid}, {number}", lambda: os.kill(pid, number))  # noqa: B023
        tally.system_call(f"priority of {pid}", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))  # noqa: B023


def new_processes(scene: Scene, tally: Tally) -> None:
    require_walls()
    tally.system_call("fork", _fork)
    tally.system_call("clone", lambda: _end_a_child(call_by_number(_CLONE, signal.SIGCHLD, 0, 0, 0, 0)))
    tally.system_call(
        "clone into a new user namespace",
        lambda: _end_a_child(call_by_number(_CLONE, signal.SIGCHLD | _CLONE_NEWUSER, 0, 0, 0, 0)),
    )
    tally.system_call("clone3", lambda: call_by_number(_CLONE3, 0, 0))
    tally.system_call("execve", lambda: os.execv("/bin/true", ["true"]))
    tally.system_call("posix_spawn", lambda: os.posix_spawn("/bin/true", ["true"], {}))


def _fork() -> None:
    _end_a_child(os.fork())


def _end_a_child(pid: int) -> None:
    if pid == 0:
        os._exit(0)


def more_than_its_limits(scene: Scene, tally: Tally) -> None:
    require_walls()
    opened: list[int] = []
    try:
        try:
            while len(opened) < _DESCRIPTORS_MAX:
                opened.append(os.eventfd(0))
            tally.breach(f"{len(opened)} descriptors")
        except OSError:
            tally.met("EMFILE")
    finally:
        for fd in opened:
            os.close(fd)
    try:
        bytearray(_TOO_MUCH_BYTES)
        tally.breach(f"{_TOO_MUCH_BYTES} bytes of private memory")
    except MemoryError:
        tally.met("ENOMEM")
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_DATA):
        hard = resource.getrlimit(limit)[1]
        if hard != resource.RLIM_INFINITY:
            tally.system_call("raise a limit", lambda: _raise(limit, hard + 1))  # noqa: B023
    tally.evidence = f"no more than {len(opened)} descriptors at once"


def _raise(limit: int, value: int) -> None:
    try:
        resource.setrlimit(limit, (value, value))
    except ValueError as error:  # Python's word for EPERM here
        raise PermissionError(1, str(error)) from error
