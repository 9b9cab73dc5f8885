"""How fast a neighbour was in any window of time: from its history, or from its samples."""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from runtime.chaos.history import History

_SAMPLE: Final = struct.Struct("<QQ")
_NS_PER_S: Final = 1_000_000_000


class Pace(Protocol):
    def per_second(self, begun_ns: int, ended_ns: int) -> float: ...


@dataclass(frozen=True, slots=True)
class HistoryPace:
    """Completions, one by one."""

    completed_ns: Sequence[int]  # ascending

    @classmethod
    def of(cls, history: History) -> "HistoryPace":
        return cls(sorted(each.completed_ns for each in history.operations if each.completed_ns is not None))

    def per_second(self, begun_ns: int, ended_ns: int) -> float:
        count = bisect_left(self.completed_ns, ended_ns) - bisect_left(self.completed_ns, begun_ns)
        return count * _NS_PER_S / (ended_ns - begun_ns)


@dataclass(frozen=True, slots=True)
class SampledPace:
    """So many exchanges were done at so many instants; between two of them they count as evenly spread."""

    at_ns: Sequence[int]  # ascending
    done: Sequence[int]

    @classmethod
    def of(cls, path: Path) -> "SampledPace":
        """A record that was not written whole is left out."""
        data = path.read_bytes()
        records = list(_SAMPLE.iter_unpack(data[: len(data) // _SAMPLE.size * _SAMPLE.size]))
        return cls([at for at, _ in records], [done for _, done in records])

    def per_second(self, begun_ns: int, ended_ns: int) -> float:
        return (self._at(ended_ns) - self._at(begun_ns)) * _NS_PER_S / (ended_ns - begun_ns)

    def _at(self, instant_ns: int) -> float:
        after = bisect_right(self.at_ns, instant_ns)
        if after == 0:
            return 0
        if after == len(self.at_ns):
            return self.done[-1]
        before_ns, next_ns = self.at_ns[after - 1], self.at_ns[after]
        part = (instant_ns - before_ns) / (next_ns - before_ns)
        return self.done[after - 1] + part * (self.done[after] - self.done[after - 1])
