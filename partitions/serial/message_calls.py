"""A client's two connections to a line without rings: what is said on them, and again when a server dies."""

import time
from collections.abc import Iterator
from itertools import count

from partitions.calls.call_socket import CallLost, CallSocket, Connect
from partitions.serial.message_wire import (
    MESSAGE_BYTES_MAX,
    WRITE_BYTES_MAX,
    MalformedCall,
    Piece,
    Read,
    Write,
    Written,
    decode_reply,
)


class Writing:
    """The first connection. One thread. ConnectionError, from everything: the server is gone for good."""

    def __init__(self, connect: Connect) -> None:
        self.socket = CallSocket(connect, MESSAGE_BYTES_MAX)
        # From where no client before us has counted: what a server noted of that one's calls is not of ours.
        self._numbers: Iterator[int] = count(time.monotonic_ns())

    def write(self, data: bytes) -> int:
        """How many of these bytes, of which there is one at least, the driver has taken. Waits for the reply."""
        call = Write(next(self._numbers), data[:WRITE_BYTES_MAX])
        while True:
            try:
                self.socket.send(call.encode())
                reply = self.socket.receive()
                assert reply is not None  # no deadline was given
                try:
                    answer = decode_reply(reply)
                except MalformedCall:
                    answer = None
                match answer:
                    case Written(call.number, taken) if taken <= len(call.data):
                        return taken
                self.socket.reject()
            except CallLost:
                call = Write(call.number, call.data, again=True)


class Reading:
    """The second connection. One thread. ConnectionError as above."""

    def __init__(self, connect: Connect) -> None:
        self.socket = CallSocket(connect, MESSAGE_BYTES_MAX)
        self._taken = 0
        self._outstanding = False

    def begin(self) -> None:
        """See that a READ is outstanding: all that was taken before has got where it is to go."""
        if not self._outstanding:
            self._outstanding = True
            self.socket.send(Read(self._taken).encode())

    def take(self, deadline_ns: int | None = None) -> bytes:
        """The next bytes. Empty: the deadline, of CLOCK_MONOTONIC, has passed."""
        while True:
            self.begin()
            try:
                if (reply := self.socket.receive(deadline_ns)) is None:
                    return b""
                self._outstanding = False
                try:
                    answer = decode_reply(reply)
                except MalformedCall:
                    answer = None
                if isinstance(answer, Piece):
                    self._taken = answer.number
                    return answer.data
                self.socket.reject()
            except CallLost:
                self._outstanding = False
