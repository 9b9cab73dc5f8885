"""A custom device without rings: its server is called, and replies. The payloads are a ring's.

The server may die: then the socket ends, a new one is asked for, and the request without a reply is sent again.
"""

import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

from partitions.calls.endpoint import adopt_endpoint
from partitions.custom.client import check_room, room_for
from partitions.custom.wire import (
    MARK_BYTES,
    OPENED,
    PLAIN,
    REQUEST_BYTES_MAX,
    CustomClosedError,
    CustomError,
    Mark,
    decode_error,
)

MESSAGE_BYTES_MAX: Final = REQUEST_BYTES_MAX + MARK_BYTES
RECONNECTS_MAX: Final = 1_000  # in a row, without a reply in between
_PAUSE_S_MAX: Final = 0.1  # between two of them, doubling
_COPIED_BYTES_MAX: Final = 8 << 10  # below, one more copy is cheaper than one more piece

Connect = Callable[[], int]
"""A new socket to the server. Raises ConnectionError where there will be none any more."""


def send_marked(sock: socket.socket, data: bytes, mark: bytes) -> bool:
    """False: the other end is gone."""
    try:
        if len(data) <= _COPIED_BYTES_MAX:
            sock.send(data + mark, socket.MSG_NOSIGNAL)
        else:
            sock.sendmsg((data, mark), (), socket.MSG_NOSIGNAL)
    except OSError:
        return False
    return True


class MessageCustom:
    """See `partitions.custom.client.Custom`. One thread."""

    def __init__(self, connect: Connect) -> None:
        """CustomClosedError: there is no server."""
        self._connect = connect
        self._buffer = bytearray(MESSAGE_BYTES_MAX)
        self._view = memoryview(self._buffer)
        self._socket: socket.socket | None = None
        self.reconnects = 0
        self._attach()
        self.begin()

    def begin(self) -> None:
        """Whatever the server keeps for us is forgotten."""
        assert self._socket is not None
        send_marked(self._socket, b"", OPENED)

    def _attach(self) -> None:
        try:
            self._socket = adopt_endpoint(self._connect())
        except ConnectionError as error:
            raise CustomClosedError(str(error)) from error

    def exchange(self, request: bytes, reply_bytes_max: int = 0) -> bytes:
        room = room_for(request, reply_bytes_max)
        return check_room(self.call(request), room)

    def exchange_in_band(self, request: bytes) -> bytes:
        room_for(request, 0)
        return self.call(request)

    exchange_pages = exchange_in_band  # no page of ours is anybody else's here

    def exchange_batch(
        self, requests: Sequence[bytes], reply_bytes_max: int = 0
    ) -> list[bytes | CustomError]:
        """One after the other: that is what it means to call."""
        replies: list[bytes | CustomError] = []
        for request in requests:
            try:
                replies.append(self.exchange(request, reply_bytes_max))
            except CustomError as error:
                replies.append(error)
        return replies

    def call(self, request: bytes) -> bytes:
        """The reply, of whatever length. CustomError, CustomClosedError."""
        failures = 0
        while True:
            if (sock := self._socket) is None:
                raise CustomClosedError("this end was closed")
            if send_marked(sock, request, PLAIN) and (received := self._receive(sock)):
                data = bytes(self._view[: received - MARK_BYTES])
                if self._buffer[received - MARK_BYTES] != Mark.PLAIN:
                    raise decode_error(data)
                return data
            failures += 1
            if failures > RECONNECTS_MAX:
                self.close()
                raise CustomClosedError(f"the server left {RECONNECTS_MAX} times in a row without a reply")
            if failures > 1:
                time.sleep(min(0.001 * 2 ** min(failures, 10), _PAUSE_S_MAX))
            self.reconnects += 1
            sock.close()
            self._socket = None
            self._attach()

    def _receive(self, sock: socket.socket) -> int:
        """0: it is gone."""
        try:
            return sock.recv_into(self._buffer)
        except OSError:
            return 0

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
