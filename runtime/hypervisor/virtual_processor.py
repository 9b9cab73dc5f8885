"""What the machine keeps of a virtual processor, and of a guest's registers that all its VPs share.

Source: TLFS, SynIC MSRs at reset.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from runtime.abi import CRASH_REGISTERS, SINT_MASKED, SINTS_PER_VP, TIMERS_PER_VP
from runtime.hypervisor.effects import Page
from runtime.hypervisor.intercept_state import ProcessorState
from runtime.hypervisor.message import Message
from runtime.hypervisor.synthetic_timers import SyntheticTimer

_ENABLE: Final = 1


@dataclass(slots=True)
class GuestRegisters:
    """What the guest writes about itself, once for all its VPs; we only keep it."""

    os_id: int = 0
    reference_tsc: int = 0
    crash: list[int] = field(default_factory=lambda: [0] * CRASH_REGISTERS)
    crash_reports: int = 0  # of the process that runs now


@dataclass(slots=True)
class VirtualProcessor:
    """A thread of a partition's process, with a SynIC of its own."""

    index: int
    sim_page: Page
    sief_page: Page
    running: bool = False
    long_spin_waits: int = 0  # that it has told us of
    scontrol: int = 0
    simp: int = 0
    siefp: int = 0
    sints: list[int] = field(default_factory=lambda: [SINT_MASKED] * SINTS_PER_VP)
    queues: list[deque[Message]] = field(default_factory=lambda: [deque() for _ in range(SINTS_PER_VP)])
    timers: list[SyntheticTimer] = field(
        default_factory=lambda: [SyntheticTimer() for _ in range(TIMERS_PER_VP)]
    )
    requested: int = 0  # vectors, before anyone claimed the page of them
    interrupt_page: Page | None = None
    intercept: ProcessorState = field(default_factory=ProcessorState)
    thread: int = 0  # id of the thread that runs it; 0: it has not told us

    @property
    def takes_messages(self) -> bool:
        return bool(self.scontrol & self.simp & _ENABLE)

    @property
    def takes_events(self) -> bool:
        return bool(self.scontrol & self.siefp & _ENABLE)
