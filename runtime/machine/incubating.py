"""`python -m runtime.machine.incubating --fd N --parent PID`: an incubator's process (runtime.machine.incubator)."""

import argparse
import ctypes
import gc
import importlib
import os
import random
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Final, NoReturn

from runtime import cli, codec
from runtime.machine import process
from runtime.machine.incubator import RESERVED
from runtime.machine.lifeline import die_with_parent, name_process
from runtime.machine.rundir import BASE_VARIABLE

# By name: the runtime knows nothing of what is in partitions, and what a command imports is its own affair.
_PLATFORM: Final = (
    "runtime.commands.machines",
    "runtime.config.loading",
    "runtime.machine.launch",
    "runtime.machine.run",
)
_ROOT: Final = "partitions.power_on"
_PRELOADING: Final = "partitions.guest_modules"
_DESCRIPTORS: Final = 2  # of an order
_ENV_START: Final = 47  # of /proc/PID/stat, counted from behind the process's name; proc(5): field 50


def main() -> int:
    parser = argparse.ArgumentParser(prog=__spec__.name if __spec__ else None, description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="whose machines they are")
    parser.add_argument(
        "--parent", type=int, required=True, help="their process: when it has ended, so does this"
    )
    options = parser.parse_args()
    control = socket.socket(fileno=options.fd)
    die_with_parent(options.parent)
    name_process("pv-incubator")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for module in (*_PLATFORM, _ROOT):
        importlib.import_module(module)
    importlib.import_module(_PRELOADING).preload()
    gc.collect()
    gc.freeze()  # what is here now never becomes garbage: a machine's collectors need not touch (and copy) its pages
    try:
        return _serve(control)
    except (BrokenPipeError, ConnectionResetError):  # whoever asked has gone meanwhile
        return 0


def _serve(control: socket.socket) -> int:
    """Carry orders out, until whose machines they are has gone."""
    this = os.getpid()
    while (received := codec.receive_message(control, _DESCRIPTORS)) is not None:
        match received:
            case [
                "run",
                {"arguments": [*arguments], "environment": dict(environment), "folder": str(folder)},
            ], fds:
                pid = os.fork()
                if pid == 0:
                    _become_platform(this, [str(item) for item in arguments], environment, folder, fds)
                codec.close_all(fds)
                pidfd = os.pidfd_open(pid)
                codec.send_message(control, ["runs", {"pid": pid}], [pidfd])
                os.close(pidfd)
            case ["reap", {"pid": int(pid)}], []:
                _, status = os.waitpid(pid, 0)
                codec.send_message(control, ["ended", {"code": os.waitstatus_to_exitcode(status)}])
            case _:
                return 1  # who made us is the only speaker
    return 0


def _become_platform(
    incubator: int, arguments: list[str], environment: dict[str, str], folder: str, fds: list[int]
) -> NoReturn:
    code = 1
    try:
        die_with_parent(incubator)
        os.setsid()
        name_process("partvisor")
        for target, fd in enumerate(fds, 1):
            os.dup2(fd, target)
        os.closerange(3, 1 << 20)
        os.environ.clear()
        os.environ.update(environment)
        _show_in_proc(environment.get(BASE_VARIABLE, ""))
        os.chdir(folder)
        random.seed()
        process.keep_ready(_ROOT)
        code = cli.main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _show_in_proc(folder: str) -> None:
    """Write the folder to where the kernel looks when somebody asks for this process's environment."""
    shown = Path("/proc/self/environ").read_bytes()
    place = shown.find(f"{BASE_VARIABLE}={RESERVED}\0".encode())
    value = f"{BASE_VARIABLE}={folder}".encode()
    room = len(BASE_VARIABLE) + 1 + len(RESERVED)
    if place < 0 or len(value) > room:
        raise ValueError(f"{folder}: no room in the environment")
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    ctypes.memmove(int(fields[_ENV_START]) + place, value.ljust(room, b"\0"), room)


if __name__ == "__main__":
    sys.exit(main())
