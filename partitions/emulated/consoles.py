"""Emulated serial ports, joined to consoles of the machine."""

import socket
from typing import Final

import trio

from partitions.emulated.host import EmulationHost
from partitions.serial.console_line import open_pair

TYPED_BYTES: Final = 256  # at a time, into an emulated port
_NO_ROOM_S: Final = 0.02  # until it is tried again
_NOT_THERE_S: Final = 0.1


class EmulatedConsoles:
    """Joins emulated serial ports to consoles."""

    def __init__(self, emulation: EmulationHost, nursery: trio.Nursery) -> None:
        self._emulation, self._nursery = emulation, nursery
        self._ends: dict[str, socket.socket] = {}
        self.dropped = 0  # bytes that the platform did not take in time
        emulation.on_serial_output = self._show

    def open(self, partition: str) -> None:
        end = socket.socket(fileno=open_pair(f"uart:{partition}"))
        self._ends[partition] = end
        self._nursery.start_soon(self._type, partition, end)

    def _show(self, partition: str, data: bytes) -> None:
        """In the threads that answer accesses: nobody there waits for a terminal."""
        if (end := self._ends.get(partition)) is None:
            return
        try:
            sent = end.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            sent = 0
        self.dropped += len(data) - sent

    async def _type(self, partition: str, end: socket.socket) -> None:
        with end:
            while True:
                await trio.lowlevel.wait_readable(end)
                data = end.recv(TYPED_BYTES)
                if not data:
                    return  # the platform is gone
                while data:
                    try:
                        taken = self._emulation.type_in(partition, data)
                    except KeyError:  # it is not there yet, or has ended
                        await trio.sleep(_NOT_THERE_S)
                        continue
                    data = data[taken:]
                    if data:
                        await trio.sleep(_NO_ROOM_S)
