"""Processes that the platform starts itself, root and broker: executed in their own session, watched by pidfd."""

import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn, Protocol

import trio

from runtime import codec
from runtime.machine.lifeline import die_with_parent
from runtime.machine.user_namespace import enter_before_exec, is_needed


class Descriptor(Protocol):
    """What has a file descriptor."""

    def fileno(self) -> int: ...


class Child(Protocol):
    """What the platform needs of a process that it has started. As subprocess.Popen."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def kill(self) -> None: ...


class AdoptedChild:
    """A child that was forked, not executed; be it by another process."""

    def __init__(self, pid: int) -> None:
        """ChildProcessError: it is none of ours."""
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        self.pid: Final = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        code = self._reap(0)
        assert code is not None
        return code

    def kill(self) -> None:
        if self.poll() is None:  # else its pid may be another's by now
            os.kill(self.pid, signal.SIGKILL)

    def _reap(self, options: int) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code


def execute(module: str, sockets: Mapping[str, Descriptor], *options: str, own_user: bool = False) -> Child:
    """Start a process of the machine, in a session of its own: a Ctrl-C reaches the platform alone.

    `own_user`: in a user namespace, so that `partvisor` can look into it once it is sandboxed.
    """
    own_user = own_user and is_needed()
    if (ready := _ready.pop(module, None)) is not None:
        if not own_user:  # a namespace counts from an exec on
            return ready.begin(sockets, options)
        ready.give_up()
    arguments = [item for option, sock in sockets.items() for item in (option, str(sock.fileno()))]
    return subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-m",
            module,
            *arguments,
            *options,
        ],  # -P: no module of the current folder is ours
        pass_fds=[sock.fileno() for sock in sockets.values()],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
        start_new_session=True,
        preexec_fn=enter_before_exec if own_user else None,
    )


class _Ready:
    """A process that has imported a module, and waits for what to run it with."""

    def __init__(self, child: AdoptedChild, order: socket.socket) -> None:
        self._child, self._order = child, order

    def begin(self, sockets: Mapping[str, Descriptor], options: Sequence[str]) -> Child:
        with self._order:
            fds = [sock.fileno() for sock in sockets.values()]
            codec.send_message(self._order, [list(sockets), list(options)], fds)
        return self._child

    def give_up(self) -> None:
        self._order.close()
        self._child.wait()


_ready: Final[dict[str, _Ready]] = {}  # by module


def keep_ready(module: str) -> None:
    """Have the next process of `module`, which is imported here, forked from this one, which has one thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _run_when_told(module, theirs, parent_pid)
    theirs.close()
    _ready[module] = _Ready(AdoptedChild(pid), ours)


def _run_when_told(module: str, order: socket.socket, parent_pid: int) -> NoReturn:
    """As `execute` would have it: nothing on stdin, and no way to the platform's stdout."""
    status = 1
    try:
        die_with_parent(parent_pid)
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)
        with order:
            received = codec.receive_message(order)
        match received:
            case [[*names], [*options]], fds:
                for fd in fds:
                    os.set_inheritable(fd, True)
                given = [item for name, fd in zip(names, fds, strict=True) for item in (str(name), str(fd))]
                sys.argv = [module, *given, *map(str, options)]
                status = sys.modules[module].main()
            case None:
                status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


async def exit_of(process: Child) -> None:
    """Wait for it, by pidfd. The status is then in `process.returncode`."""
    if process.poll() is not None:
        return
    pidfd = os.pidfd_open(process.pid)
    try:
        while process.poll() is None:
            await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def exit_text(process: Child) -> str:
    """Of one that has ended."""
    code = process.wait()
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


async def first_of(*events: trio.Event) -> None:
    """Wait for any of them."""
    async with trio.open_nursery() as nursery:

        async def watch(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(watch, event)
