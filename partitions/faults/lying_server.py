"""Replies that are garbage, come twice, or never: on the wire, by replacing parts of the server that called us.

A driver is handed no channel. But it lives in one process with the server of its channel, and nothing inside a process
keeps code from other code: it walks up the stack to the server that is executing this request, and puts something of
its own between that server and the ring, or the socket. From outside it looks like any server that lies.
"""

import contextlib
import enum
import random
import socket
import sys
from types import FrameType
from typing import Any

from bus.native import Channel, RingError
from bus.packets import PacketFlags, PacketType
from partitions.storage.message_service import MessageService
from partitions.storage.message_wire import Kind, MessageHead
from partitions.storage.protocol import PACKET_BYTES
from partitions.storage.vsp import StorageVsp


class Lie(enum.Enum):
    GARBAGE = enum.auto()
    TWICE = enum.auto()
    NEVER = enum.auto()


def corrupt(lie: Lie, seed: int) -> bool:
    """Have the request that this thread is executing answered so. False: it executes none, as at a disk's end."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        server = frame.f_locals.get("self")
        if isinstance(server, StorageVsp):
            server._channel = _LyingChannel.around(server, lie, seed)  # type: ignore[assignment]
            return True
        if isinstance(server, MessageService):
            _LyingReply(server, lie, seed).install()
            return True
        frame = frame.f_back
    return False


class _LyingChannel:
    """In the place of a server's channel, for one completion."""

    def __init__(self, server: StorageVsp, channel: Channel, lie: Lie, seed: int) -> None:
        self._server, self._real, self._lie, self._rng = server, channel, lie, random.Random(seed)

    @classmethod
    def around(cls, server: StorageVsp, lie: Lie, seed: int) -> "_LyingChannel":
        channel: Any = server._channel
        return cls(server, channel._real if isinstance(channel, cls) else channel, lie, seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def send_completion(self, payload: bytes, transaction_id: int, ring: bool = True) -> None:
        self._server._channel = self._real
        if self._lie is Lie.NEVER:
            return
        if self._lie is Lie.TWICE:
            self._real.send_completion(payload, transaction_id, ring)
            with contextlib.suppress(RingError):  # there is no room for two
                self._real.send_completion(payload, transaction_id, ring)
            return
        self._send_garbage(transaction_id, len(payload))

    def _send_garbage(self, transaction_id: int, length: int) -> None:
        """Of three kinds: nonsense under the right name, under a wrong one, and a packet that is no completion."""
        rng = self._rng
        nonsense = rng.randbytes(length)
        match rng.randrange(3):
            case 0:
                self._real.send_completion(nonsense, transaction_id)
            case 1:
                self._real.send_completion(nonsense, rng.getrandbits(63))
            case _:
                kind = rng.choice((PacketType.INBAND, PacketType.GPA_DIRECT, 0x3F))
                flags = rng.choice((0, int(PacketFlags.COMPLETION_REQUESTED)))
                self._real.send_raw(kind, flags, b"", nonsense, transaction_id)


class _LyingReply:
    """In the place of a server's way to reply, for one message."""

    def __init__(self, server: MessageService, lie: Lie, seed: int) -> None:
        self._server, self._lie, self._rng = server, lie, random.Random(seed)

    def install(self) -> None:
        self._server._reply = self._reply  # type: ignore[method-assign]

    def _reply(self, sock: socket.socket, head: MessageHead, answer: bytes, inline: int) -> bool:
        server = self._server
        del server._reply  # the class's own is there again
        if self._lie is Lie.TWICE:
            return server._reply(sock, head, answer, inline) and server._reply(sock, head, answer, inline)
        real = sock
        lying: Any = _LyingSocket(real, self._lie, self._rng, head)
        return server._reply(lying, head, answer, inline)


class _LyingSocket:
    """For one `sendmsg`."""

    def __init__(self, real: socket.socket, lie: Lie, rng: random.Random, head: MessageHead) -> None:
        self._real, self._lie, self._rng, self._head = real, lie, rng, head

    def sendmsg(self, parts: list[Any], ancillary: tuple[()], flags: int) -> int:
        length = sum(len(part) for part in parts)
        if self._lie is Lie.NEVER:
            return length
        rng, head = self._rng, self._head
        nonsense = rng.randbytes(PACKET_BYTES)
        match rng.randrange(3):
            case 0:
                right = MessageHead(head.transaction_id, head.area_bytes, 0, Kind.REPLY, PACKET_BYTES)
                self._real.sendmsg([right.encode(), nonsense], (), flags)
            case 1:
                wrong = MessageHead(rng.getrandbits(62), 0, 0, Kind.REPLY, PACKET_BYTES)
                self._real.sendmsg([wrong.encode(), nonsense], (), flags)
            case _:
                self._real.sendmsg([rng.randbytes(length)], (), flags)
        return length
