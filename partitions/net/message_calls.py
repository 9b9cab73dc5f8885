"""A client's two connections to a network without rings: what is said on them, and on again when a server dies.

A TRANSMIT that had no reply is not made again: its frames may have been forwarded, and no frame comes twice. A server
that says NOT_OPEN is another one than before, and has forwarded nothing.
"""

import time
from collections.abc import Sequence
from typing import Final

from partitions.calls.call_socket import CallLost, CallSocket, Connect
from partitions.net.errors import NetClosedError, NetTimeoutError
from partitions.net.frames import Frame
from partitions.net.message_wire import (
    MESSAGE_BYTES_MAX,
    MalformedCall,
    NetReply,
    Open,
    Opened,
    Receive,
    Received,
    Refusal,
    Refused,
    Transmit,
    Transmitted,
    decode_reply,
)

REPLY_BYTES_MAX: Final = 64  # on the first connection


class Transmitting:
    """The first connection. One thread; while a call has no reply, the next waits for it."""

    def __init__(self, connect: Connect, asked: Open, timeout_s: float | None = None) -> None:
        """NetClosedError: there is no server. NetTimeoutError: it does not answer."""
        self._asked = asked
        self._waiting: Transmit | Open | None = None  # for its reply
        self.errors = self.lost = 0  # messages: that were refused, and that nobody replied to
        try:
            self.socket = CallSocket(connect, REPLY_BYTES_MAX)
        except ConnectionError as error:
            raise NetClosedError(str(error)) from error
        deadline = None if timeout_s is None else time.monotonic_ns() + int(timeout_s * 1e9)
        try:
            self.opened = self.open(asked, deadline)
        except BaseException:
            self.socket.destroy()
            raise

    def open(self, asked: Open, deadline_ns: int | None = None) -> Opened:
        """Or open again, with other wishes. Raises as the constructor."""
        self._asked = asked
        if not self.reopen(deadline_ns):
            raise NetTimeoutError("the server does not answer")
        return self.opened

    def reopen(self, deadline_ns: int | None = None) -> bool:
        """As before, with whoever serves now. False: the deadline passed first."""
        if not self.settle(deadline_ns):
            return False
        self._say(self._asked)
        return self.settle(deadline_ns)

    @property
    def in_flight(self) -> int:
        return int(self._waiting is not None)

    def transmit(self, frames: Sequence[Frame]) -> None:
        """Begin: `settle` has returned True, and does so once they are done with."""
        self._say(Transmit(frames))

    def _say(self, call: Transmit | Open) -> None:
        self._waiting = call
        try:
            self.socket.send(call.encode())
        except ConnectionError as error:
            raise NetClosedError(str(error)) from error

    def settle(self, deadline_ns: int | None = None) -> bool:
        """Until nothing waits for a reply. False: the deadline passed first. NetClosedError."""
        try:
            while (call := self._waiting) is not None:
                try:
                    if (data := self.socket.receive(deadline_ns)) is None:
                        return False
                    self._take(call, data)
                except CallLost:
                    self.lost += isinstance(call, Transmit)
                    self._say(self._asked)  # whoever is there now has not heard of us
        except ConnectionError as error:
            raise NetClosedError(str(error)) from error
        return True

    def _take(self, call: Transmit | Open, data: memoryview) -> None:
        """Raises CallLost: it was no reply to this."""
        try:
            answer: NetReply | None = decode_reply(data)
        except MalformedCall:
            answer = None
        match call, answer:
            case Open(), Opened():
                self.opened, self._waiting = answer, None
            case Transmit(), Transmitted():
                self._waiting = None
            case Transmit(), Refused(Refusal.INVALID_FRAME):
                self.errors += 1
                self._waiting = None
            case Transmit(), Refused(Refusal.NOT_OPEN):
                self.lost += 1
                self._say(self._asked)
            case _:
                self.socket.reject()


class Receiving:
    """The second connection. One thread; any may close the socket."""

    def __init__(self, connect: Connect) -> None:
        """NetClosedError: there is no server."""
        try:
            self.socket = CallSocket(connect, MESSAGE_BYTES_MAX)
        except ConnectionError as error:
            raise NetClosedError(str(error)) from error
        self._outstanding = False

    def begin(self) -> None:
        """See that a RECEIVE is outstanding."""
        if not self._outstanding:
            self._outstanding = True
            self.socket.send(Receive().encode())

    def take(self, deadline_ns: int | None = None) -> Received | Refused | None:
        """What it was answered: frames that are good until the next call of this, or NOT_OPEN: open first.

        None: the deadline passed. ConnectionError: the server is gone for good, or this was closed.
        """
        while True:
            self.begin()
            try:
                if (data := self.socket.receive(deadline_ns)) is None:
                    return None
                self._outstanding = False
                try:
                    answer = decode_reply(data)
                except MalformedCall:
                    answer = None
                if isinstance(answer, Received) or answer == Refused(Refusal.NOT_OPEN):
                    return answer
                self.socket.reject()
            except CallLost:
                self._outstanding = False
