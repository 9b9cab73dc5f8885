"""A guest's ordinary programs, as its own program starts them."""

import contextlib
import os
import select
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Final

from partitions.programs import wire

OUTPUT_BYTES_MAX: Final = 4 << 20  # that `run` keeps of one program; what comes then is read and dropped
_START_S_MAX: Final = 30.0
_PIECE_BYTES: Final = 64 << 10


class ProgramError(Exception):
    """A program could not be started, or the runner is gone."""


class Program:
    """One that runs. `output` is a descriptor to read from, until its end."""

    def __init__(
        self, runner: socket.socket, argv: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """ProgramError."""
        self._told, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.output, write_end = os.pipe2(os.O_CLOEXEC)
        self._code: int | None = None
        null, null_end = os.pipe2(os.O_CLOEXEC)
        os.close(null_end)  # its input is at its end already
        try:
            order = wire.encode({"argv": list(argv), "environment": dict(environment or {})})
            if len(order) > wire.ORDER_BYTES_MAX:
                raise ProgramError(f"{len(order)} bytes of arguments; at most {wire.ORDER_BYTES_MAX}")
            socket.send_fds(runner, [order], [theirs.fileno(), null, write_end, write_end])
            theirs.close()
            self._told.settimeout(_START_S_MAX)
            answer = wire.decode_answer(self._told.recv(wire.ANSWER_BYTES_MAX) or b"{}")
            if "pid" not in answer:
                raise ProgramError(str(answer.get("error", "the runner is gone")))
        except BaseException as error:
            self._told.close()
            os.close(self.output)
            if isinstance(error, OSError | wire.MalformedOrder):
                raise ProgramError(str(error)) from error
            raise
        finally:
            theirs.close()
            os.close(null)
            os.close(write_end)

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Its exit code; less than 0: the signal that ended it. None: it runs on. ProgramError: the runner is gone."""
        if self._code is None and select.select([self._told], [], [], timeout_s)[0]:
            answer = wire.decode_answer(self._told.recv(wire.ANSWER_BYTES_MAX) or b"{}")
            if "code" not in answer:
                raise ProgramError("the runner is gone")
            self._code = int(answer["code"])
        return self._code

    def kill(self) -> None:
        """It, and what it has started."""
        with contextlib.suppress(OSError):
            self._told.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.kill()
        self._told.close()
        if self.output >= 0:
            os.close(self.output)
            self.output = -1

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run(runner: socket.socket, argv: Sequence[str], timeout_s: float) -> tuple[int, bytes]:
    """(exit code, what it wrote) of a program; one that takes longer is killed. ProgramError."""
    deadline, kept = time.monotonic() + timeout_s, bytearray()
    with Program(runner, argv) as program:
        while True:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([program.output], [], [], left)[0]:
                program.kill()
                deadline = time.monotonic() + _START_S_MAX
                continue
            if not (data := os.read(program.output, _PIECE_BYTES)):
                break
            kept += data[: OUTPUT_BYTES_MAX - len(kept)]
        code = program.wait(_START_S_MAX)
        if code is None:
            raise ProgramError("it has closed its output, and does not end")
        return code, bytes(kept)
