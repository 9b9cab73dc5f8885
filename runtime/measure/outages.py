"""What a guest saw of one replacement of the root, and how the time was spent. No I/O.

All times are of CLOCK_MONOTONIC, which the processes of a host share.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

PERCENTS: Final = (50, 90, 99, 100)
PHASES: Final = ("detect", "hand over", "wake", "restore", "first completion")  # one after the other
REMAINDER: Final = ("replay", "serve")  # of the successor's start; the first completion falls into it


@dataclass(frozen=True, slots=True)
class Replacement:
    """One end of a root, or of a driver, and its successor's beginning, in ns."""

    killed_ns: int  # just before the signal, or the request
    exited_ns: int  # the broker has reaped the old one
    started_ns: int  # the broker answers the new one
    born_ns: int  # it runs
    restored_ns: int  # saved state read, devices open, rings attached
    replayed_ns: int  # nothing that the old one left is undone
    serving_ns: int  # every channel has its thread
    completed_ns: int  # the first completion that the new one gave the guest
    outage_ns: int  # the guest's longest time without a completion, around all this
    quiet_ns: int  # the same before, for as long as nothing happened: what the host's load alone does

    @property
    def phases_ns(self) -> dict[str, int]:
        """PHASES, which add up to the time from the kill to the first completion; then REMAINDER."""
        marks = (
            self.killed_ns,
            self.exited_ns,
            self.started_ns,
            self.born_ns,
            self.restored_ns,
            self.completed_ns,
        )
        durations = {
            phase: after - before for phase, before, after in zip(PHASES, marks[:-1], marks[1:], strict=True)
        }
        durations["replay"] = self.replayed_ns - self.restored_ns
        durations["serve"] = self.serving_ns - self.replayed_ns
        return durations


def longest_gap(times: Sequence[int], from_ns: int, until_ns: int) -> tuple[int, int]:
    """(begin, end) of the longest stretch between two consecutive times that has anything of [from, until] in it.

    ValueError: the times do not reach from before `from_ns` to after `until_ns`.
    """
    if not times or times[0] > from_ns or times[-1] < until_ns:
        raise ValueError(f"no times around [{from_ns}, {until_ns}]")
    gaps = ((begin, end) for begin, end in itertools.pairwise(times) if end >= from_ns and begin <= until_ns)
    return max(gaps, key=lambda gap: gap[1] - gap[0])


def percentile(values: Sequence[int], percent: int) -> int:
    """The smallest value that so many percent of all are not above; 100: the largest. Of at least one."""
    ordered = sorted(values)
    return ordered[max(-(-len(ordered) * percent // 100) - 1, 0)]


def distribution_ms(values_ns: Sequence[int]) -> dict[str, float]:
    """{"p50": ..., "p90": ..., "p99": ..., "max": ...} in ms."""
    return {
        "max" if percent == 100 else f"p{percent}": round(percentile(values_ns, percent) / 1e6, 2)
        for percent in PERCENTS
    }


def summarize(replacements: Sequence[Replacement]) -> dict[str, Any]:
    """Distributions over at least one replacement: the outage, each phase, and the quiet before."""
    phases: Mapping[str, list[int]] = {
        phase: [one.phases_ns[phase] for one in replacements] for phase in (*PHASES, *REMAINDER)
    }
    return {
        "kills": len(replacements),
        "outage_ms": distribution_ms([one.outage_ns for one in replacements]),
        "first_completion_ms": distribution_ms([one.completed_ns - one.killed_ns for one in replacements]),
        "quiet_gap_ms": distribution_ms([one.quiet_ns for one in replacements]),
        "split_ms": {phase: distribution_ms(values) for phase, values in phases.items()},
    }
