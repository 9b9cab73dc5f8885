"""Named steps of a server's work at which its process can be made to die, exactly there: see bus/native/seam.h.

Armed by a test, or by `partvisor crash root --at STEP`. The memory outlives the process, so a seam can strike several
processes one after the other, each at its own pass through the step.
"""

import os
import signal
from enum import IntEnum
from typing import Final

SEAM_BYTES: Final = 20
PASSES_MAX: Final = 1_000_000
DEATHS_MAX: Final = 8
_STEP, _PASSES, _PERIOD, _DEATHS, _STRUCK = range(SEAM_BYTES // 4)  # 32-bit words


class Step(IntEnum):
    """bus/native/seam.h says what has been done at each, and what has not."""

    TAKE = 1
    EXECUTE = 2
    COMMIT = 3
    PUBLISH = 4
    RELEASE = 5
    SIGNAL = 6
    SAVE_STATE = 7
    SAVED = 8
    CARRY_OUT = 9

    @property
    def text(self) -> str:
        return self.name.lower().replace("_", "-")

    @classmethod
    def named(cls, text: str) -> "Step":
        """ValueError: no step has that name."""
        for step in cls:
            if step.text == text:
                return step
        raise ValueError(f"no step is named {text!r}; there are {', '.join(step.text for step in cls)}")


class Seam:
    """The memory of one, as this side sees it. Any thread may pass a step; one arms it."""

    def __init__(self, memory: memoryview | None = None) -> None:
        """`memory`: at least SEAM_BYTES, 4-aligned; the same is given to the channels. None: can't strike."""
        self.memory: Final = memoryview(bytearray(SEAM_BYTES)) if memory is None else memory
        self._words: Final = self.memory[:SEAM_BYTES].cast("B").cast("I")

    def arm(self, step: Step, passes: int = 1, deaths: int = 1) -> None:
        """Die when `step` is passed for the `passes`-th time; so do the next processes, `deaths` in all."""
        if not 0 < passes <= PASSES_MAX or not 0 < deaths <= DEATHS_MAX:
            raise ValueError(f"{passes} passes, {deaths} deaths: want 1 to {PASSES_MAX}, 1 to {DEATHS_MAX}")
        self._words[_STEP] = 0  # nobody counts while the numbers change
        self._words[_PASSES] = self._words[_PERIOD] = passes
        self._words[_DEATHS] = deaths
        self._words[_STEP] = step

    def passing(self, step: Step) -> None:
        """Called at each step of that name. Does not return where it strikes."""
        words = self._words
        if words[_STEP] != step:
            return
        left = words[_PASSES]
        words[_PASSES] = (left - 1) & 0xFFFF_FFFF
        if left != 1:
            return
        words[_STRUCK] = step
        words[_PASSES] = words[_PERIOD]
        words[_DEATHS] -= 1
        if words[_DEATHS] == 0:
            words[_STEP] = 0
        self.strike(step)

    def strike(self, step: Step) -> None:
        """Does not return."""
        os.kill(os.getpid(), signal.SIGKILL)

    def disarm(self) -> None:
        """Nobody dies here any more."""
        self._words[_STEP] = 0

    @property
    def passes_left(self) -> int:
        """Of the step, before the next strike."""
        return self._words[_PASSES]

    @property
    def deaths_left(self) -> int:
        return self._words[_DEATHS]

    def take_struck(self) -> Step | None:
        """Where the last process died of it, told once."""
        struck, self._words[_STRUCK] = self._words[_STRUCK], 0
        return Step(struck) if struck else None
