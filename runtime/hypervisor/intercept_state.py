"""What the hypervisor keeps for intercepts: registers and access of a VP, what its parent is told of."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from runtime.abi import PAGE_BYTES, InterceptMask, InterceptType, RegisterName

_RFLAGS_AT_RESET: Final = 2
_U64: Final = 2**64 - 1
_READ: Final = int(InterceptMask.READ)
_WRITE: Final = int(InterceptMask.WRITE)

Registers = list[int]  # from RAX to RFLAGS
# places in it
RAX: Final = 0
RCX: Final = RegisterName.RCX - RegisterName.RAX
RDX: Final = RegisterName.RDX - RegisterName.RAX
RSI: Final = RegisterName.RSI - RegisterName.RAX
RDI: Final = RegisterName.RDI - RegisterName.RAX
RIP: Final = RegisterName.RIP - RegisterName.RAX
RFLAGS: Final = RegisterName.RFLAGS - RegisterName.RAX


def _at_reset() -> Registers:
    registers = [0] * (RFLAGS + 1)
    registers[RFLAGS] = _RFLAGS_AT_RESET
    return registers


@dataclass(frozen=True, slots=True)
class Access:
    """The instruction at which a VP stands."""

    type: InterceptType  # IO_PORT or MMIO
    write: bool
    size: int  # bytes
    address: int  # port, or GPA
    is_string: bool
    instruction: bytes
    rip: int

    @property
    def next_rip(self) -> int:
        return (self.rip + len(self.instruction)) & _U64

    @property
    def all_ones(self) -> int:
        return (1 << 8 * self.size) - 1


@dataclass(slots=True)
class ProcessorState:
    """A VP's share of all this, as child and as parent."""

    registers: Registers = field(default_factory=_at_reset)
    access: Access | None = None  # InterceptSuspend is set while there is one
    waiting: deque[tuple[int, int]] = field(default_factory=deque)  # (child, its VP): not yet in our SIM page


@dataclass(frozen=True, slots=True)
class Installed:
    """What a parent wants to be told of."""

    type: InterceptType
    first: int  # port or page number
    last: int
    access: int  # an InterceptMask, as a plain number: it is looked at for each access


@dataclass(slots=True)
class Intercepts:
    """Of one partition, installed by its parent."""

    vp: int = 0  # the parent's, which is told
    table: list[Installed] = field(default_factory=list)

    def catch(self, access: Access) -> bool:
        """Whether one byte of the access is intercepted."""
        mask = _WRITE if access.write else _READ
        first, last = access.address, access.address + access.size - 1
        is_memory = access.type is InterceptType.MMIO
        if is_memory:
            first, last = first // PAGE_BYTES, last // PAGE_BYTES
        for entry in self.table:
            if (
                entry.first <= last
                and first <= entry.last
                and entry.access & mask
                and (entry.type is InterceptType.MMIO) == is_memory
            ):
                return True
        return False
