"""A clock that runs wrong, on purpose: by how much, and from when to when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_MILLION: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Drift:
    """So many millionths too fast, or below zero too slow, from one moment to another. Moments of CLOCK_MONOTONIC."""

    since_ns: int
    ppm: int  # above minus one million
    until_ns: int | None = None  # None: for ever

    def added_ns(self, now_ns: int) -> int:
        """What it has made of the time so far."""
        end_ns = now_ns if self.until_ns is None else min(now_ns, self.until_ns)
        return max(end_ns - self.since_ns, 0) * self.ppm // _MILLION

    def moment_ns(self, shown_ns: int) -> int:
        """When a clock that showed CLOCK_MONOTONIC before, shows this; not before."""
        behind_ns = shown_ns - self.since_ns
        if behind_ns <= 0:
            return shown_ns
        moment_ns = self.since_ns - (-behind_ns * _MILLION // (_MILLION + self.ppm))  # rounded up
        if self.until_ns is None or moment_ns <= self.until_ns:
            return moment_ns
        return shown_ns - self.added_ns(self.until_ns)
