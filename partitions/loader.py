"""The loader of the hypervisor: a copy of the root's first process that has not begun to be the root.

On a real machine the root's own loader brings the hypervisor. Here it saves the machine's second start of a Python with
all that partitions import, which is most of the time and half of the processor time of a boot: what the root has
imported the zygote needs, too, and a fork costs milliseconds.

    root --fork, twice--> loader, which waits      (the platform, a subreaper, becomes its parent)
                            |  fork
                            +----> zygote          keeps what was imported
                            v  exec
                          hypervisor               keeps nothing: it loads its own few modules, and has a zygote

    loader -> platform   loader {pid}
    platform -> loader   boot {descriptors, options} + descriptors     an option's name for each; more options

Who loses a loader has lost time: the platform then executes a hypervisor, and that executes a zygote.
"""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from partitions import zygote
from partitions.sandbox import descriptors
from runtime.codec import DecodeError, receive_message, send_message
from runtime.config.sandbox import SandboxOrders
from runtime.machine.lifeline import die_with_parent, name_process

HYPERVISOR: Final = "runtime.hypervisor"  # by name: nothing of it is ours to import
_SANDBOX: Final = "--sandbox"
_FAILED: Final = 127  # as a shell says of what it cannot execute


def fork_off(control_fd: int, platform_pid: int) -> None:
    """Leave a loader behind; returns in the caller, which has one thread. Its copy of `control_fd` is closed."""
    with contextlib.suppress(OSError):  # no process to be had: the platform sees the end of the socket
        middleman = os.fork()
        if middleman == 0:
            try:
                if os.fork() == 0:
                    _load(control_fd, platform_pid)
            finally:
                os._exit(0)
        os.waitpid(middleman, 0)
    os.close(control_fd)


def _load(control_fd: int, platform_pid: int) -> NoReturn:
    try:
        descriptors.keep_only((control_fd,))
        die_with_parent(platform_pid)
        os.setsid()
        name_process("pv-loader")
        control = socket.socket(fileno=control_fd)
        send_message(control, ["loader", {"pid": os.getpid()}])
        match receive_message(control):
            case ["boot", {"descriptors": [*names], "options": [*options]}], fds:
                control.close()
                _become_hypervisor([str(name) for name in names], [str(option) for option in options], fds)
    except (OSError, DecodeError):
        pass  # the platform is gone, or gives us up
    finally:
        os._exit(_FAILED)


def _become_hypervisor(names: Sequence[str], options: Sequence[str], fds: Sequence[int]) -> NoReturn:
    given = [item for name, fd in zip(names, fds, strict=True) for item in (name, str(fd))]
    orders = options[options.index(_SANDBOX) + 1] if _SANDBOX in options else ""
    pid, sock = _fork_zygote(SandboxOrders.parse(orders) if orders else SandboxOrders())
    for fd in (*fds, sock.fileno()):
        os.set_inheritable(fd, True)
    born = ["--zygote-fd", str(sock.fileno()), "--zygote-pid", str(pid)]
    os.execv(sys.executable, [sys.executable, "-P", "-m", HYPERVISOR, *given, *options, *born])


def _fork_zygote(orders: SandboxOrders) -> tuple[int, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            descriptors.keep_only((theirs.fileno(),))
            os.setsid()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            status = zygote.serve(theirs, orders)
        finally:
            os._exit(status)
    theirs.close()
    return pid, ours
