"""When an armed fault strikes: the knobs of the kernel's fault injection, and a seeded decision for each pass.

A seam that is passed asks its trigger, each time. The same knobs and the same seed give the same decisions, in whatever
process they are made: the generator is SplitMix64, which is a dozen lines in any language.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

ALWAYS: Final = 100  # percent
FOR_EVER: Final = -1
PASSES_MAX: Final = 1 << 31
_MASK: Final = (1 << 64) - 1


class KnobError(ValueError):
    """A knob is outside its bounds. The text says which, and what is allowed."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """The names and the meanings are those of Linux: Documentation/fault-injection."""

    probability: float = ALWAYS  # in percent, of each pass that the other knobs let through
    interval: int = 1  # only every n-th pass
    times: int = FOR_EVER  # at most so often
    space: int = 0  # so many passes go by first

    def __post_init__(self) -> None:
        """Raises KnobError."""
        if not 0 <= self.probability <= ALWAYS:
            raise KnobError(f"probability {self.probability}: want 0 to {ALWAYS} percent")
        if not 1 <= self.interval <= PASSES_MAX:
            raise KnobError(f"interval {self.interval}: want 1 to {PASSES_MAX} passes")
        if not FOR_EVER <= self.times <= PASSES_MAX:
            raise KnobError(f"times {self.times}: want 0 to {PASSES_MAX}, or {FOR_EVER} for no end")
        if not 0 <= self.space <= PASSES_MAX:
            raise KnobError(f"space {self.space}: want 0 to {PASSES_MAX} passes")

    def to_table(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """Raises KnobError: a knob that does not exist, is no number, or is outside its bounds."""
        for name, value in table.items():
            if name not in cls.__slots__:
                raise KnobError(f"no knob is named {name!r}; there are {', '.join(cls.__slots__)}")
            kinds = (int, float) if name == "probability" else (int,)
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise KnobError(f"{name} {value!r}: want a number")
        return cls(**table)


class Trigger:
    """The decisions of one armed fault, in order. For one thread at a time."""

    def __init__(self, knobs: Knobs, seed: int = 0) -> None:
        self._knobs, self._state = knobs, seed & _MASK
        self.passes = self.fired = 0

    def strikes(self) -> bool:
        """Called once for each pass through the seam. True: the fault happens here."""
        knobs = self._knobs
        self.passes += 1
        if self.fired == knobs.times:
            return False
        behind = self.passes - knobs.space
        if behind <= 0 or behind % knobs.interval:
            return False
        if knobs.probability < ALWAYS and self._percent() >= knobs.probability:
            return False
        self.fired += 1
        return True

    @property
    def state(self) -> int:
        """Of its generator: with the two counts, all that a successor needs to go on."""
        return self._state

    def resume(self, passes: int, fired: int, state: int) -> None:
        """Go on where another one of the same knobs stood."""
        self.passes, self.fired, self._state = passes, fired, state & _MASK

    @property
    def is_spent(self) -> bool:
        """It will never strike again."""
        return self.fired == self._knobs.times

    def draw(self, count: int) -> int:
        """A number below `count`, for what a fault leaves to chance, such as which bit flips."""
        return self._next() % count

    def _percent(self) -> float:
        return (self._next() >> 11) * ALWAYS / (1 << 53)

    def _next(self) -> int:
        self._state = (self._state + 0x9E37_79B9_7F4A_7C15) & _MASK
        mixed = self._state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
        return mixed ^ (mixed >> 31)
