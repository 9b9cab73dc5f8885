"""Guest physical address spaces as tables: rows of slots, without overlaps."""

from __future__ import annotations

from bisect import bisect_right, insort
from dataclasses import dataclass, field
from typing import Final

from runtime.abi import GPFN_MAX, SLOT_PAGES_MAX, HvStatus, MapFlags
from runtime.hypervisor.replies import Refused

_ACCESS: Final = MapFlags.READ | MapFlags.WRITE


@dataclass(slots=True)
class Slot:
    """One memfd of whole pages."""

    id: int
    owner: int  # partition that pays
    pages: int
    mappers: list[tuple[int, int]] = field(default_factory=list)  # (partition, gpfn) of each foreign entry


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a partition's table."""

    gpfn: int
    pages: int
    slot: int
    access: MapFlags
    own: bool  # the entry that the owner's pool pays for, rather than a mapping of it

    @property
    def end(self) -> int:
        return self.gpfn + self.pages


@dataclass(slots=True)
class GpaSpace:
    """Entries by GPFN, without overlaps."""

    entries: dict[int, Entry] = field(default_factory=dict)
    bases: list[int] = field(default_factory=list)  # sorted keys of `entries`

    def add(self, entry: Entry) -> None:
        insort(self.bases, entry.gpfn)
        self.entries[entry.gpfn] = entry

    def remove(self, gpfn: int) -> Entry:
        self.bases.remove(gpfn)
        return self.entries.pop(gpfn)

    def touching(self, gpfn: int, pages: int) -> list[Entry]:
        """Every entry that shares a page with the range, ascending."""
        place = max(bisect_right(self.bases, gpfn) - 1, 0)
        found = []
        for base in self.bases[place:]:
            if base >= gpfn + pages:
                break
            if self.entries[base].end > gpfn:
                found.append(self.entries[base])
        return found

    def covering(self, gpfn: int, pages: int) -> list[Entry]:
        """As `touching`. Refused if one page of the range is not mapped."""
        found, reached = self.touching(gpfn, pages), gpfn
        for entry in found:
            if entry.gpfn > reached:
                break
            reached = entry.end
        if reached < gpfn + pages:
            raise Refused(HvStatus.INVALID_PARAMETER)
        return found


def check_range(gpfn: int, pages: int) -> None:
    if not 0 < pages <= SLOT_PAGES_MAX or gpfn > GPFN_MAX - pages + 1:
        raise Refused(HvStatus.INVALID_PARAMETER)


def check_access(flags: int) -> MapFlags:
    """Reading, or reading and writing: nothing else has a meaning."""
    if flags & ~int(_ACCESS) or not flags & MapFlags.READ:
        raise Refused(HvStatus.INVALID_PARAMETER)
    return MapFlags(flags)
