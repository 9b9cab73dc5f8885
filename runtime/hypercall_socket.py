"""How a hypercall travels: one blocking request and reply at a time over the born-with socket.

What the calls are is not known here; see `runtime.hypercalls`.
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
        match message:
            case [int() as status, dict() as values]:
                pass
            case _:
                codec.close_all(received)
                raise HypervisorGone(f"not a reply: {message!r}")
        if status != HvStatus.SUCCESS:
            codec.close_all(received)
            raise HypercallError(code, _status(status))
        return Result(values, received)


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
