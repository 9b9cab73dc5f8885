"""How a hypercall travels: one blocking request and reply at a time over the born-with socket.

What the calls are is not known here; see `runtime.hypercalls.caller`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from runtime import codec
from runtime.abi import HvStatus, HypercallCode, HypercallError, HypervisorGone

BRIEF_REPLY_BYTES_MAX: Final = 512  # of a call whose reply is a number or two
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Result:
    """What a call returned. The caller owns the descriptors."""

    values: Mapping[str, object]
    fds: list[int]

    def integer(self, name: str) -> int:
        return expect(self.values[name], int)

    def one_fd(self) -> int:
        if len(self.fds) != 1:
            codec.close_all(self.fds)
            raise HypervisorGone("one descriptor was due")
        return self.fds[0]


class HypercallSocket:
    """Carries calls. Any thread may call; calls are made one after the other."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes the socket over and makes it blocking."""
        sock.setblocking(True)
        self._socket: Final = sock
        self._lock: Final = threading.Lock()  # guards the order of request and reply on the socket

    def close(self) -> None:
        self._socket.close()

    def call(self, code: HypercallCode, fds: Sequence[int] = (), **args: object) -> Result:
        """Make one call. Arguments that are None are left out."""
        packet = codec.encode([int(code), {name: value for name, value in args.items() if value is not None}])
        try:
            with self._lock:
                codec.send_packet(self._socket, packet, fds)
                reply = codec.receive_message(self._socket)
        except (OSError, codec.DecodeError) as error:
            raise HypervisorGone(str(error)) from error
        if reply is None:
            raise HypervisorGone("end of file")
        message, received = reply
        with closing_on_error(received):
            return Result(_values(code, message), received)

    def call_briefly(self, code: HypercallCode, args: Mapping[str, int]) -> Mapping[str, object]:
        """The same for a call that takes and returns no descriptors and whose reply is short: room for all that a reply
        may be costs as much as its two system calls."""
        packet = codec.encode([int(code), args])
        try:
            with self._lock:
                self._socket.send(packet, socket.MSG_NOSIGNAL)
                reply = self._socket.recv(BRIEF_REPLY_BYTES_MAX)
            if not reply:
                raise HypervisorGone("end of file")
            return _values(code, codec.decode(reply))
        except (OSError, codec.DecodeError) as error:
            raise HypervisorGone(str(error)) from error


def _values(code: HypercallCode, message: object) -> Mapping[str, object]:
    """Of a reply. Raises: HypercallError: the call was refused; HypervisorGone: it is no reply."""
    match message:
        case [int() as status, dict() as values]:
            if status != HvStatus.SUCCESS:
                raise HypercallError(code, _status(status))
            return values
        case _:
            raise HypervisorGone(f"not a reply: {message!r}")


def _status(value: int) -> HvStatus:
    try:
        return HvStatus(value)
    except ValueError as error:
        raise HypervisorGone(f"unknown status {value:#x}") from error


def expect(value: object, kind: type[_T]) -> _T:
    """A value of a reply, which is of this type. Raises: HypervisorGone: it is not, so that is no hypervisor."""
    if not isinstance(value, kind):
        raise HypervisorGone(f"a reply holds {value!r} where {kind.__name__} is due")
    return value


@contextlib.contextmanager
def closing_on_error(fds: Sequence[int]) -> Iterator[None]:
    """Around the decoding of a reply: if that fails, its descriptors are nobody's."""
    try:
        yield
    except BaseException:
        codec.close_all(fds)
        raise
