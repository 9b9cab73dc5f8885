"""A partition's accesses by the direct way: past the hypervisor, to whoever emulates its devices.

The calls are those of `HypercallPort`. What differs: every access goes to the parent, also one that it does not
emulate, and the hypervisor sees none of it.
"""

import os
import threading
from typing import Final

from bus.intercept_messages import (
    InterceptAccess,
    InterceptHeader,
    MemoryIntercept,
    PortIntercept,
    memory_instruction,
    port_instruction,
)
from bus.intercept_page import DirectAnswer, InterceptPage
from bus.memory import MemorySlot
from bus.native import eventfd_signal
from bus.synic import MessageType
from partitions.vp.intercept_ports import (
    GUEST_INTERCEPT_CONNECTION,
    GUEST_INTERCEPT_PORT,
    INTERCEPT_PAGE_GPFN,
)
from runtime.hypercalls.caller import AccessResult, HypercallPort

_RFLAGS: Final = 2
_BELL_BYTES: Final = 8  # of an eventfd
_PORT_SIZES: Final = (1, 2, 4)
_MEMORY_SIZES: Final = (1, 2, 4, 8)
_RIP_MASK: Final = 2**64 - 1


class DirectAccess:
    """Of VP 0. Any thread may call; accesses are made one after the other."""

    def __init__(self, hypercalls: HypercallPort) -> None:
        """Raises HypercallError: the parent has not prepared for it."""
        (mapped,) = hypercalls.claim_gpa_pages(INTERCEPT_PAGE_GPFN, 1)
        self._slot: Final = MemorySlot.from_fd(mapped.fd, mapped.gpfn, mapped.pages)
        self._page: Final = InterceptPage(self._slot.memory)
        self._bell: Final = hypercalls.claim_port_doorbell(GUEST_INTERCEPT_PORT).fd
        self._parent_bell: Final = hypercalls.claim_connection_doorbell(GUEST_INTERCEPT_CONNECTION).fd
        self._rip = 0
        self._lock: Final = threading.Lock()  # guards the page and RIP

    def access_port(
        self,
        vp: int,
        port: int,
        size: int,
        *,
        write: bool = False,
        value: int = 0,
        count: int = 0,
        gpa: int = 0,
    ) -> AccessResult:
        """See `InterceptCalls.access_port`."""
        if size not in _PORT_SIZES or not 0 <= port <= 0x1_0000 - size:
            raise ValueError(f"port {port:#x}, {size} bytes")
        instruction = port_instruction(size=size, write=write, string=count > 0)
        all_ones = (1 << 8 * size) - 1
        with self._lock:
            rcx, address = count, gpa
            while True:
                header = self._header(vp, instruction, write)
                message = PortIntercept(
                    header, port, size, count > 0, count > 0, instruction, value, rcx, address, address
                )
                answer = self._ask(MessageType.X64_IO_PORT_INTERCEPT, message.encode())
                rcx, address = answer.rcx, answer.address
                if answer.rip != header.rip or (count and not rcx):
                    break
            self._rip = (self._rip + len(instruction)) & _RIP_MASK
        if count:
            return AccessResult(0 if write else all_ones, rcx)
        return AccessResult(0 if write else answer.rax & all_ones, 0)

    def access_memory(self, vp: int, gpa: int, size: int, *, write: bool = False, value: int = 0) -> int:
        """See `InterceptCalls.access_memory`. What is stored rides where the message has the address twice."""
        if size not in _MEMORY_SIZES:
            raise ValueError(f"{size} bytes")
        instruction = memory_instruction(size=size, write=write)
        with self._lock:
            # There is no register to fetch: the GVA, which is the GPA anyway, holds A.
            message = MemoryIntercept(self._header(vp, instruction, write), value, gpa, instruction)
            answer = self._ask(MessageType.GPA_INTERCEPT, message.encode())
            self._rip = (self._rip + len(instruction)) & _RIP_MASK
        return 0 if write else answer.rax & (1 << 8 * size) - 1

    def _header(self, vp: int, instruction: bytes, write: bool) -> InterceptHeader:
        access = InterceptAccess.WRITE if write else InterceptAccess.READ
        return InterceptHeader(vp, len(instruction), access, self._rip, _RFLAGS)

    def _ask(self, kind: MessageType, payload: bytes) -> DirectAnswer:
        sequence = self._page.ask(kind, payload)
        eventfd_signal(self._parent_bell)
        while (answer := self._page.answer(sequence)) is None:
            os.read(self._bell, _BELL_BYTES)  # unlike eventfd_read, it goes on after a signal
        return answer
