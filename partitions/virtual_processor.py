"""One VP as its own partition sees it: SIM page, SIEF page, interrupt line."""

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from bus.memory import MemorySlot
from bus.native import synic_take
from bus.synic import SLOT_BYTES, SynicMessage, slot_offset
from runtime.hypercalls import HypercallPort, VpLines

_SYNIC_PAGE_GPFN: Final = (
    0xF_0000  # where a VP's two SynIC pages stand in its GPA space: above any slot of ours
)


class VirtualProcessor:
    """Owns the mappings and the line. Messages are taken by one thread, the one that serves this VP."""

    def __init__(self, lines: VpLines, port: HypercallPort) -> None:
        gpfn = _SYNIC_PAGE_GPFN + 2 * lines.vp
        self.index, self.line_fd, self._port = lines.vp, lines.line_fd, port
        self._sim = MemorySlot.from_fd(lines.sim_fd, gpfn, 1)
        self._sief = MemorySlot.from_fd(lines.sief_fd, gpfn + 1, 1)

    def enable(self, sints: tuple[int, ...]) -> None:
        """Switch the SynIC on, as a guest does at boot; messages arrive from here on."""
        self._port.enable_synic(self.index, sints, self._sim.gpfn, self._sief.gpfn)

    @property
    def event_flags(self) -> memoryview:
        return self._sief.memory

    def acknowledge(self) -> None:
        """Lower the line, which is up. Do it before looking for messages: one that comes later raises it again."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.line_fd)

    def messages(self, sint: int) -> Iterator[tuple[int, int, bytes]]:
        """As `take_messages`, but a message leaves its slot when the next one is asked for."""
        slot = self._sim.memory[slot_offset(sint) : slot_offset(sint) + SLOT_BYTES]
        while (message := SynicMessage.decode(bytes(slot))) is not None:
            yield message.message_type, message.sender, message.payload
            taken = synic_take(self._sim.memory, sint)
            if taken is not None and taken[3]:
                self._port.end_of_message(self.index)

    def take_messages(self, sint: int) -> Iterator[tuple[int, int, bytes]]:
        """(type, sending port, payload) of every message that waits, telling the hypervisor when a slot is free."""
        while (message := synic_take(self._sim.memory, sint)) is not None:
            message_type, sender, payload, end_of_message_owed = message
            if end_of_message_owed:
                self._port.end_of_message(self.index)
            yield message_type, sender, payload

    def close(self) -> None:
        self._sim.close()
        self._sief.close()
        os.close(self.line_fd)
