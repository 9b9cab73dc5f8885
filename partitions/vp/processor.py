"""One VP as its own partition sees it: SIM page, SIEF page, interrupt line; vectors and timers.

A program that has several VPs gives each a thread:

    def serve(vp: VirtualProcessor) -> None:
        while vp.wait():
            for message in vp.take_messages(5): ...

    threads = [vp.run(serve) for vp in partition.vps]

VP 0's line is read by the VMBus driver once `partition.vmbus` is used; a program that wants to wait there itself
does not use the bus, or waits on another VP.
"""

import contextlib
import os
import select
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from bus.memory import MemorySlot
from bus.native import flags_take_all, synic_take
from bus.synic import SLOT_BYTES, SynicMessage, slot_offset
from partitions.vp.timer import VpTimer
from runtime.abi import TIMERS_PER_VP, RegisterName
from runtime.hypercalls.caller import HypercallPort, VpLines

_SYNIC_PAGE_GPFN: Final = (
    0xF_0000  # where a VP's two SynIC pages stand in its GPA space: above any slot of ours
)
_INTERRUPT_PAGE_GPFN: Final = 0xF_1000


class VirtualProcessor:
    """Owns the mappings and the line. Messages are taken by one thread, the one that serves this VP."""

    def __init__(self, lines: VpLines, port: HypercallPort) -> None:
        gpfn = _SYNIC_PAGE_GPFN + 2 * lines.vp
        self.index, self.line_fd, self._port = lines.vp, lines.line_fd, port
        self._sim = MemorySlot.from_fd(lines.sim_fd, gpfn, 1)
        self._sief = MemorySlot.from_fd(lines.sief_fd, gpfn + 1, 1)
        self._interrupts: MemorySlot | None = None
        self.timers: Final = tuple(VpTimer(lines.vp, timer, port) for timer in range(TIMERS_PER_VP))

    def enable(self, sints: Sequence[int], vector: int = 16) -> None:
        """Switch the SynIC on, as a guest does at boot; messages arrive from here on."""
        self._port.enable_synic(self.index, sints, self._sim.gpfn, self._sief.gpfn, vector)

    def run(self, function: Callable[["VirtualProcessor"], object]) -> threading.Thread:
        """Start the thread that is this VP; the hypervisor learns whose processor time is whose."""

        def body() -> None:
            self._port.set_vp_registers({RegisterName.VP_THREAD: threading.get_native_id()}, self.index)
            function(self)

        thread = threading.Thread(target=body, name=f"vp{self.index}", daemon=True)
        thread.start()
        return thread

    @property
    def runtime(self) -> int:
        """Processor time used, in 100 ns: its thread's once `run` was called, before that the process's."""
        return self._port.get_vp_registers([RegisterName.VP_RUNTIME], self.index)[0]

    # -- waiting -------------------------------------------------------------------------------------------

    def wait(self, timeout_ms: float | None = None) -> bool:
        """Until the line is raised, and lower it. False: the time is over. What raised it may be gone by now."""
        if timeout_ms is None:  # a read waits by itself, and is one system call
            with contextlib.suppress(BlockingIOError, InterruptedError):
                os.eventfd_read(self.line_fd)
                return True
        poll = select.poll()
        poll.register(self.line_fd, select.POLLIN)
        if not poll.poll(timeout_ms):
            return False
        self.acknowledge()
        return True

    def acknowledge(self) -> None:
        """Lower the line, which is up. Do it before looking for messages: one that comes later raises it again."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.line_fd)

    # -- what came -----------------------------------------------------------------------------------------

    @property
    def event_flags(self) -> memoryview:
        return self._sief.memory

    def take_events(self, sint: int) -> list[int]:
        """The event flags of a SINT that were set; they are clear now. Not those of open channels."""
        return flags_take_all(self._sief.memory, sint)

    def take_vectors(self) -> list[int]:
        """The vectors that were requested since the last time: of SINTs, of direct timers, of the parent.

        The first call claims the page of them; what came before stands in it then.
        """
        if self._interrupts is None:
            fd = self._port.claim_interrupt_page(self.index)
            self._interrupts = MemorySlot.from_fd(fd, _INTERRUPT_PAGE_GPFN + self.index, 1)
        return flags_take_all(self._interrupts.memory, 0)  # a page of bits as an event page is

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
        if self._interrupts is not None:
            self._interrupts.close()
        os.close(self.line_fd)
