"""Statistics pages: one page of counters for the hypervisor, a logical processor, a partition or a VP.

    byte 0   u64  sequence: odd while the hypervisor writes; a reader that meets one, or two values, reads again
    byte 8   u64  1 while the object is there, 0 once it is gone: the counters are then its last
    byte 16  u64  when it was written, in 100 ns units of the host's monotonic clock
    byte 24  u64  counters, in the order of `COUNTERS`

The hypervisor writes a page when it is mapped, every `STATS_INTERVAL_MS` after that, and when its object goes.
Counters that say neither pages nor time count since their object was created. Times are in 100 ns units.
Names and numbers of the object types: Linux include/hyperv/hvhdk_mini.h, hv_stats_object_type.
"""

from __future__ import annotations

import enum
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

STATS_INTERVAL_MS: Final = 100
READS_MAX: Final = 1000  # of a page that is always being written, as no hypervisor of ours does
_HEADER: Final = struct.Struct("<QQQ")
_SEQUENCE: Final = struct.Struct("<Q")
_U64_MAX: Final = 2**64 - 1

assert _HEADER.size == 24

WritablePage = bytearray | mmap.mmap | memoryview


class StatsObject(enum.IntEnum):
    """What a page is about."""

    HYPERVISOR = 0x1
    LOGICAL_PROCESSOR = 0x2
    PARTITION = 0x1_0001
    VP = 0x1_0002


COUNTERS: Final[Mapping[StatsObject, tuple[str, ...]]] = MappingProxyType(
    {
        StatsObject.HYPERVISOR: (
            "logical_processors",
            "partitions",
            "virtual_processors",
            "ports",
            "connections",
            "slots",
            "memory_pages",
            "statistics_pages",
            "hypercalls",
            "hypercalls_refused",
            "run_time",  # of the broker's process
        ),
        StatsObject.LOGICAL_PROCESSOR: (
            "run_time",
            "idle_time",
        ),  # since the host booted; of everything on it
        StatsObject.PARTITION: (
            "state",
            "virtual_processors",
            "children",
            "ports",
            "connections",
            "slots",
            "pages_available",
            "pages_in_use",
            "hypercalls",
            "hypercalls_refused",
            "interrupts_sent",  # messages and events to its ports that are there, but for the direct route
            "messages_waiting",
            "run_time",  # of its process
        ),
        StatsObject.VP: ("running", "messages_waiting", "long_spin_waits"),
    }
)

assert all(_HEADER.size + 8 * len(names) <= 4096 for names in COUNTERS.values())


class TornPage(Exception):
    """The page was being written at every attempt to read it."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """One reading of a page; all its counters are of the same moment."""

    live: bool
    time_100ns: int
    counters: Mapping[str, int]


def write_page(page: WritablePage, time_100ns: int, counters: Sequence[int], *, live: bool = True) -> None:
    """The hypervisor's side. x86 keeps stores in order, so a reader that sees one sequence saw one page."""
    (sequence,) = _SEQUENCE.unpack_from(page, 0)
    _SEQUENCE.pack_into(page, 0, (sequence | 1) & _U64_MAX)
    values = [min(max(value, 0), _U64_MAX) for value in counters]
    struct.pack_into(f"<QQ{len(values)}Q", page, 8, int(live), time_100ns, *values)
    _SEQUENCE.pack_into(page, 0, ((sequence | 1) + 1) & _U64_MAX)


def close_page(page: WritablePage, time_100ns: int) -> None:
    """The object is gone."""
    (sequence,) = _SEQUENCE.unpack_from(page, 0)
    _SEQUENCE.pack_into(page, 0, (sequence | 1) & _U64_MAX)
    struct.pack_into("<QQ", page, 8, 0, time_100ns)
    _SEQUENCE.pack_into(page, 0, ((sequence | 1) + 1) & _U64_MAX)


def read_page(page: bytes | WritablePage, kind: StatsObject) -> Statistics:
    """The mapper's side. Raises: TornPage."""
    names = COUNTERS[kind]
    layout = struct.Struct(f"<QQQ{len(names)}Q")
    for _ in range(READS_MAX):
        sequence, live, time_100ns, *values = layout.unpack_from(page, 0)
        (after,) = _SEQUENCE.unpack_from(page, 0)
        if sequence == after and sequence % 2 == 0:
            return Statistics(bool(live), time_100ns, dict(zip(names, values, strict=True)))
    raise TornPage(f"{READS_MAX} readings of a {kind.name} page")
