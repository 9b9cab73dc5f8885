"""Scales: from a value to where it stands on an axis, 0 to 1, and which values get a mark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

_FEW_DECADES: Final = 2.2  # below, 2 and 5 have marks of their own
_UNITS: Final = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))
_STEPS: Final = (1, 2, 2.5, 5, 10)


class Scale(Protocol):
    def position(self, value: float) -> float:
        """0 to 1; values outside stand on the nearer end."""

    def ticks(self) -> Sequence[float]:
        """Values with a mark and a text."""

    def minor_ticks(self) -> Sequence[float]:
        """Values with a faint line only."""


@dataclass(frozen=True, slots=True)
class LinearScale:
    """From `low` to `high`, which differ."""

    low: float
    high: float
    ticks_wanted: int = 5

    def position(self, value: float) -> float:
        return _clamped((value - self.low) / (self.high - self.low))

    def ticks(self) -> list[float]:
        raw = (self.high - self.low) / self.ticks_wanted
        unit = 10 ** math.floor(math.log10(raw))
        step = next(factor * unit for factor in _STEPS if factor * unit >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]

    def minor_ticks(self) -> list[float]:
        return []


@dataclass(frozen=True, slots=True)
class LogScale:
    """From `low` to `high`, both above 0 and different."""

    low: float
    high: float

    def position(self, value: float) -> float:
        if value <= self.low:
            return 0.0
        return _clamped(math.log(value / self.low) / math.log(self.high / self.low))

    def ticks(self) -> list[float]:
        few = math.log10(self.high / self.low) < _FEW_DECADES
        return self._multiples((1, 2, 5) if few else (1,))

    def minor_ticks(self) -> list[float]:
        return self._multiples(tuple(range(1, 10)))

    def _multiples(self, factors: Sequence[int]) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = (factor * 10.0**decade for decade in decades for factor in factors)
        return [value for value in values if self.low * 0.9999 <= value <= self.high * 1.0001]


@dataclass(frozen=True, slots=True)
class PercentileScale:
    """As HdrHistogram draws it: each nine takes as much room as the one before. 0 stands at the left end."""

    nines: float  # the right end: 3 is 99.9 %

    def position(self, value: float) -> float:
        if value >= 100:
            return 1.0
        return _clamped(-math.log10(1 - value / 100) / self.nines)

    def ticks(self) -> list[float]:
        values = [0.0, 50.0, 90.0] + [100 - 10.0**-digits for digits in range(math.ceil(self.nines) - 1)]
        return [value for value in values if -math.log10(1 - value / 100) <= self.nines + 1e-9]

    def minor_ticks(self) -> list[float]:
        return [value for value in (25.0, 75.0, 95.0, 99.5) if -math.log10(1 - value / 100) <= self.nines]


def log_scale_around(values: Sequence[float], room: float = 1.15) -> LogScale:
    """One that holds all of these, with a little room; those at or below 0 stand at its end. Of at least one."""
    above = [value for value in values if value > 0] or [1.0]
    return LogScale(min(above) / room, max(above) * room)


def duration(ns: float) -> str:
    """ "640 ns", "1.25 µs": three digits that count."""
    for size, unit in _UNITS:
        if abs(ns) >= size * 0.9995 or size == 1.0:
            return f"{three_digits(ns / size)} {unit}"
    raise AssertionError("the last unit takes everything")


def three_digits(value: float) -> str:
    """1234 as "1,234", 12.34 as "12.3", 0.001234 as "0.00123"."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(2 - math.floor(math.log10(abs(value)) + 1e-9), 0)
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _clamped(position: float) -> float:
    return min(max(position, 0.0), 1.0)
