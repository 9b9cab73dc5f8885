"""Machines from a warm process: for who starts many of them, such as a chaos campaign or a test.

`partvisor run` starts two interpreters that import a great deal, the platform's and the root's; that is most of what a
boot costs. An incubator has imported it all. It forks the platform of a machine, and that forks the first process of
the root; what they run is the same from their first line on.

    incubator -- fork --> platform, in a session of its own
                             +-- fork --> root, which waits for its arguments (runtime.machine.process)

    with Incubator() as incubator:
        process = incubator.run(["run", "machine.toml", "--json"], environment)

Protocol, on a SEQPACKET socket: ["run", {arguments, environment, folder}] with what are to be descriptors 1 and 2 is
answered by ["runs", {pid}] and a pidfd; ["reap", {pid}], of one that has ended, by ["ended", {code}].

A process shows in /proc the environment that its interpreter was started with. So that a machine's processes can be
found by their PARTVISOR_RUNTIME_DIR, the incubator is started with room for it, and each machine fills that in.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TextIO

from runtime import codec
from runtime.machine.rundir import BASE_VARIABLE

MODULE: Final = "runtime.machine.incubating"
RESERVED: Final = "." * 1024  # longer than any folder that a socket's path can be below
_OF_THE_START: Final = ("PYTHON", "LD_")  # variables that count when an interpreter starts, and not later
_MS_PER_S: Final = 1_000
KEPT_MAX: Final = (
    2  # incubators of a thread: who changes the environment for a while comes back to the old one
)


class IncubatorLost(OSError):
    """It has ended, and every machine of it with it."""


class Incubated:
    """One machine's platform. What it has of subprocess.Popen does the same; both streams are pipes, of text."""

    def __init__(self, incubator: "Incubator", pid: int, pidfd: int, stdout: TextIO, stderr: TextIO) -> None:
        self._incubator, self._pidfd = incubator, pidfd
        self.pid: Final = pid
        self.stdout, self.stderr = stdout, stderr
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """subprocess.TimeoutExpired: it runs on."""
        code = self._look(None if timeout is None else round(timeout * _MS_PER_S))
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(f"incubated {self.pid}", timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, patience_ms: int | None) -> int | None:
        with self._incubator.lock:
            if self.returncode is not None:
                return self.returncode
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if poll.poll(patience_ms):
            with self._incubator.lock:
                if self.returncode is None:
                    self.returncode = self._incubator.reap(self.pid)
                    os.close(self._pidfd)
        return self.returncode


class Incubator:
    """Owns the process. Any thread may use it, while the one that made it lives: the process ends with that."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.lock: Final = threading.RLock()
        self._environment = dict(environment)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process: Final = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    MODULE,
                    "--fd",
                    str(theirs.fileno()),
                    "--parent",
                    str(os.getpid()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=self._environment | {BASE_VARIABLE: RESERVED},
                start_new_session=True,
            )
        self._end: Final = weakref.finalize(
            self, _end, self._socket, self._process
        )  # at the latest: with its thread

    @property
    def pid(self) -> int:
        return self._process.pid

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether a machine in this environment can come from here: it means the same to an interpreter that starts."""
        ours, theirs = (
            {name: value for name, value in one.items() if name.startswith(_OF_THE_START)}
            for one in (self._environment, environment)
        )
        return ours == theirs and self._process.poll() is None

    def run(self, arguments: Sequence[str], environment: Mapping[str, str]) -> Incubated:
        """`partvisor ARGUMENTS`, with nothing on its stdin. IncubatorLost."""
        order = {"arguments": list(arguments), "environment": dict(environment), "folder": str(Path.cwd())}
        (stdout, its_stdout), (stderr, its_stderr) = os.pipe(), os.pipe()
        streams = open(stdout), open(stderr)  # noqa: SIM115 - whoever wanted the machine closes them
        try:
            values, fds = self._ask("run", order, [its_stdout, its_stderr])
        except BaseException:
            for stream in streams:
                stream.close()
            raise
        finally:
            codec.close_all((its_stdout, its_stderr))
        (pidfd,) = fds
        return Incubated(self, int(str(values["pid"])), pidfd, *streams)

    def reap(self, pid: int) -> int:
        """The exit code of a machine that has ended; for `Incubated`."""
        with contextlib.suppress(IncubatorLost):
            values, _ = self._ask("reap", {"pid": pid}, [])
            return int(str(values["code"]))
        return -signal.SIGKILL  # which is what becomes of all of them when it ends

    def _ask(
        self, verb: str, values: Mapping[str, object], fds: Sequence[int]
    ) -> tuple[Mapping[str, object], list[int]]:
        with self.lock:
            try:
                codec.send_message(self._socket, [verb, dict(values)], fds)
                received = codec.receive_message(self._socket, 1)
            except OSError as error:
                raise IncubatorLost(str(error)) from error
        match received:
            case ([_, dict(answer)], got):
                return answer, got
        raise IncubatorLost("the incubator has ended")

    def close(self) -> None:
        """Every machine of it ends, too."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _end(ours: socket.socket, process: subprocess.Popen[bytes]) -> None:
    ours.close()
    process.kill()
    process.wait()


_of_thread = threading.local()


def incubator_for(environment: Mapping[str, str]) -> Incubator:
    """One of this thread's; made where none is for that environment. All end with the thread.

    One that is no longer kept ends with the last of its machines.
    """
    kept: list[Incubator] = getattr(_of_thread, "kept", [])
    ours = next((one for one in kept if one.serves(environment)), None) or Incubator(environment)
    _of_thread.kept = [*(one for one in kept if one is not ours), ours][-KEPT_MAX:]
    return ours
