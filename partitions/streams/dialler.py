"""Connections to programs of the host, which listen at names that the root does not know: the platform makes them."""

import socket
from collections.abc import Mapping
from itertools import count
from typing import Any, Final

import trio

from runtime.machine.firmware import PacketLink

DIAL_S_MAX: Final = 5.0


class Dialler:
    """Over the firmware link."""

    def __init__(self, firmware: PacketLink) -> None:
        self._firmware, self._numbers = firmware, count(1)
        self._waiting: dict[int, trio.MemorySendChannel[socket.socket | None]] = {}

    async def dial(self, partition: str, service: str) -> socket.socket | None:
        """Who listens for that guest's connections to that service; None: nobody."""
        number = next(self._numbers)
        send, receive = trio.open_memory_channel[socket.socket | None](1)
        self._waiting[number] = send
        try:
            await self._firmware.send(
                "dial-stream", {"number": number, "partition": partition, "service": service}
            )
            with trio.move_on_after(DIAL_S_MAX):
                return await receive.receive()
            return None
        finally:
            del self._waiting[number]

    def dialled(self, values: Mapping[str, Any], sock: socket.socket | None) -> None:
        waiting = self._waiting.get(values.get("number", 0))
        try:
            if waiting is not None:
                waiting.send_nowait(sock)
                return
        except trio.WouldBlock:
            pass
        if sock is not None:
            sock.close()
