"""Processes that the platform starts itself, root and broker: executed in their own session, watched by pidfd."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Protocol

import trio

from runtime.machine.user_namespace import enter_before_exec, is_needed


class Descriptor(Protocol):
    """What has a file descriptor."""

    def fileno(self) -> int: ...


def execute(
    module: str, sockets: Mapping[str, Descriptor], *options: str, own_user: bool = False
) -> subprocess.Popen[bytes]:
    """Start a process of the machine, in a session of its own: a Ctrl-C reaches the platform alone.

    `own_user`: in a user namespace, so that `partvisor` can look into it once it is sandboxed.
    """
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
        preexec_fn=enter_before_exec if own_user and is_needed() else None,
    )


async def exit_of(process: subprocess.Popen[bytes]) -> None:
    """Wait for it, by pidfd. The status is then in `process.returncode`."""
    if process.poll() is not None:
        return
    pidfd = os.pidfd_open(process.pid)
    try:
        while process.poll() is None:
            await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def exit_text(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


async def first_of(*events: trio.Event) -> None:
    """Wait for any of them."""
    async with trio.open_nursery() as nursery:

        async def watch(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(watch, event)
