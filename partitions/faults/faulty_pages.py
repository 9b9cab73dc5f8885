"""A guest's pages as its server finds them, or not: in the place of `GpaMap`, while a fault of them is armed."""

import contextlib
from collections.abc import Iterable
from typing import Any, Final, Protocol, cast

from bus.native import GpaMap
from partitions.faults.armed import Armed
from partitions.faults.page_stalls import PageStalls
from runtime.chaos.faults.ring_kinds import MEMORY_STALL

PAGE_KINDS: Final = frozenset({"memory-revoked", "memory-slow", MEMORY_STALL})


class Faults(Protocol):
    @property
    def stalls(self) -> PageStalls: ...
    def struck(self, kinds: Iterable[str]) -> list[Armed]: ...


class FaultyPages:
    def __init__(self, pages: GpaMap, faults: Faults) -> None:
        self.beneath: Final = pages
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self.beneath, name)

    def views(self, byte_offset: int, byte_count: int, pfns: bytes, write: bool) -> list[memoryview]:
        """As GpaMap's. LookupError: they are not mapped, or are said not to be."""
        stalled_s = 0.0
        for armed in self._faults.struck(PAGE_KINDS):
            match armed.kind:
                case "memory-revoked":
                    raise LookupError("the pages were taken away: a fault on purpose")
                case "memory-slow":
                    armed.healed.wait(armed.delay_s)
                case _:
                    stalled_s = armed.delay_s
        views = self.beneath.views(byte_offset, byte_count, pfns, write)
        if stalled_s and views:
            # Not where the pages are stalled already, or where the guest lends none that could be written.
            with contextlib.suppress(OSError, LookupError):
                writable = views if write else self.beneath.views(byte_offset, byte_count, pfns, True)
                self._faults.stalls.stall(writable, stalled_s)
        return views


def beneath(pages: GpaMap) -> GpaMap:
    """For C, which knows no other."""
    return cast(GpaMap, getattr(pages, "beneath", pages))
