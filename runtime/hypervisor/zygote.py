"""The broker's end of the zygote: a warm process that forks all partitions.

Forking from a process that has imported everything takes milliseconds, where a fresh interpreter takes a
tenth of a second. The zygote forks twice, so the partition becomes the broker's own child (a subreaper's).

    broker -> zygote   ["spawn", {"id", "name", "module", "grant"}] + [its hypercall socket, its console]
    zygote -> broker   ["spawned", {"id", "pid"}], pid 0 if the fork failed; or ["failed", {"id", "reason"}]
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Final, NoReturn

from runtime import codec
from runtime.hypervisor.outbox import Outbox
from runtime.machine.lifeline import die_with_parent
from runtime.machine.user_namespace import enter_before_exec


@dataclass(frozen=True, slots=True)
class Spawned:
    partition: int
    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    partition: int
    reason: str


class ZygoteLost(Exception):
    """It died, or speaks nonsense. Spawns not answered yet will not be."""


class Zygote:
    """Owns the process and its socket."""

    def __init__(self, module: str, sandbox: str = "", born: tuple[int, int] | None = None) -> None:
        """A new one, unless there is one.

        Args:
            sandbox: the platform's orders, which we only pass on (runtime.config.sandbox); empty: the zygote's own.
            born: pid and socket of one that is there, a child of ours: who loaded us has made it. A later one, should
                that die, is executed.
        """
        self.module: Final = module
        self.sandbox: Final = sandbox
        pid, ours = (born[0], socket.socket(fileno=born[1])) if born else _execute(module, sandbox)
        ours.setblocking(False)
        self.pid: Final = pid
        self.socket: Final = ours
        self.outbox: Final = Outbox(ours)

    def spawn(self, partition: int, name: str, module: str, grant: list[int], fds: list[int]) -> None:
        """`grant`: its pages, VPs and files, which bound the process. Takes the descriptors over.

        Raises: OSError: it is gone.
        """
        self.outbox.send(["spawn", {"id": partition, "name": name, "module": module, "grant": grant}], fds)

    def receive(self) -> Spawned | SpawnFailed | None:
        """One answer; None: nothing there. Raises: ZygoteLost."""
        try:
            received = codec.receive_message(self.socket, fds_max=0)
        except BlockingIOError:
            return None
        except (codec.DecodeError, OSError) as error:
            raise ZygoteLost(str(error)) from error
        if received is None:
            raise ZygoteLost("end of file")
        match received[0]:
            case ["spawned", {"id": int() as partition, "pid": int() as pid}]:
                return Spawned(partition, pid) if pid > 0 else SpawnFailed(partition, "it could not fork")
            case ["failed", {"id": int() as partition, "reason": str() as reason}]:
                return SpawnFailed(partition, reason)
            case other:
                raise ZygoteLost(f"unknown message {other!r}")

    def close(self) -> None:
        """Kill and reap it."""
        self.outbox.close()
        self.socket.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _execute(module: str, sandbox: str) -> tuple[int, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    broker_pid = os.getpid()
    with theirs:
        pid = os.fork()
        if pid == 0:
            _become_zygote(module, theirs, broker_pid, sandbox)
    return pid, ours


def confines_somebody(sandbox: str) -> bool:
    """By the platform's orders: the machine's mode, and `path=mode` where a partition's differs. Behind a plus stands
    something else."""
    words = [word for word in sandbox.split(",") if not word.startswith("+")]
    return any(word.rpartition("=")[2] != "off" for word in words)


def _become_zygote(module: str, sock: socket.socket, broker_pid: int, sandbox: str) -> NoReturn:
    """In the new process. Its death with the broker outlasts the exec."""
    try:
        die_with_parent(broker_pid)
        os.setsid()  # a Ctrl-C at the terminal is the platform's to handle
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.set_inheritable(sock.fileno(), True)
        command = [sys.executable, "-P", "-m", module, "--fd", str(sock.fileno())]
        if sandbox:
            command += ["--sandbox", sandbox]
        if confines_somebody(sandbox):
            enter_before_exec()
        os.execv(sys.executable, command)
    finally:
        os._exit(127)
