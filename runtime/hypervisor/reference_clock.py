"""Reference TSC pages: written so that each partition's clock agrees with its TIME_REF_COUNT.

The TSC is measured against CLOCK_MONOTONIC, which the host disciplines and the TSC does not follow. So every
REFRESH_MS the pages get a new scale, aimed at where CLOCK_MONOTONIC will be at the next refresh. The offset makes
the new line start where the old one is: a page's time never goes back, and never jumps.

Where the processor or the kernel does not vouch for the TSC, pages are not valid and guests ask the register.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bus import native
from runtime.hypervisor.drift import Drift
from runtime.hypervisor.effects import Page

REFRESH_MS: Final = 1_000
MEASURED_NS_MIN: Final = 5_000_000  # a rate from less than this would be a guess
STEER_PPM_MAX: Final = 500  # as fast as the host's own discipline may turn its clock
_CLOCK_SOURCES: Final = Path("/sys/devices/system/clocksource/clocksource0/available_clocksource")
_UNITS_PER_S: Final = 10_000_000
_NS_PER_S: Final = 1_000_000_000


@dataclass(slots=True)
class _Line:
    """time = ((tsc * scale) >> 64) + offset, in 100 ns of CLOCK_MONOTONIC; a page's offset differs by its start."""

    scale: int
    offset: int

    def at(self, tsc: int) -> int:
        return (tsc * self.scale >> 64) + self.offset


@dataclass(slots=True)
class _ReferencePage:
    memory: Page
    created_ns: int | None  # None: this partition's time stands still
    drift: Drift | None = None  # a fault on purpose
    drifted: _Line | None = None  # what stands in a page that has drifted, ever


def is_reliable() -> bool:
    """Whether processor and kernel both stand by the TSC."""
    try:
        kernel_agrees = "tsc" in _CLOCK_SOURCES.read_text().split()
    except OSError:
        kernel_agrees = True  # it does not say
    return native.tsc_is_invariant() and kernel_agrees


class ReferenceClock:
    """Owns the line, not the pages."""

    def __init__(self) -> None:
        self.wanted: Callable[[], None] = lambda: None  # called when there is a first page to be refreshed
        self._reliable: Final = is_reliable()
        self._first: Final = native.tsc_sample()
        self._last = self._first
        self._line: _Line | None = None  # None: not measured for long enough, or not to be relied on
        self._pages: dict[int, _ReferencePage] = {}

    @property
    def tsc_hz(self) -> int:
        """0: not to be relied on, or not known yet."""
        return self._rate(self._first, native.tsc_sample()) if self._reliable else 0

    @property
    def has_pages(self) -> bool:
        return bool(self._pages)

    def add(self, partition: int, memory: Page, created_ns: int | None) -> None:
        is_first = not self._pages
        self._pages[partition] = page = _ReferencePage(memory, created_ns)
        if is_first:  # nobody has looked after the line
            self._line = None
            self.refresh()
            self.wanted()
        self._write(page)

    def set(self, partition: int, created_ns: int | None, drift: Drift | None = None) -> None:
        page = self._pages[partition]
        page.created_ns, page.drift = created_ns, drift
        self._write(page)

    def remove(self, partition: int) -> None:
        del self._pages[partition]

    def refresh(self) -> None:
        """Look at both clocks, and steer."""
        if not self._reliable:
            return
        sample = native.tsc_sample()
        tsc, now_ns = sample
        since = self._last if self._line is not None else self._first
        if (hz := self._rate(since, sample)) == 0:
            return
        self._last = sample
        now = now_ns // 100
        if self._line is None:
            scale = (_UNITS_PER_S << 64) // hz
            self._line = _Line(scale, now - (tsc * scale >> 64))
        else:
            here = self._line.at(tsc) + 1  # one more: rounding must not turn it back
            horizon = REFRESH_MS * _UNITS_PER_S // 1_000
            most = horizon * STEER_PPM_MAX // 1_000_000
            wanted = horizon + min(max(now - here, -most), most)
            scale = (wanted * _UNITS_PER_S << 64) // (hz * horizon)
            self._line = _Line(scale, here - (tsc * scale >> 64))
        for page in self._pages.values():
            self._write(page)

    @staticmethod
    def _rate(before: tuple[int, int], after: tuple[int, int]) -> int:
        """Hz. 0: they are not far enough from each other."""
        passed_ns = after[1] - before[1]
        return (after[0] - before[0]) * _NS_PER_S // passed_ns if passed_ns >= MEASURED_NS_MIN else 0

    def _write(self, page: _ReferencePage) -> None:
        if self._line is None or page.created_ns is None:
            page.drifted = None
            native.reference_page_write(page.memory, 0, 0)
        else:
            line = _Line(self._line.scale, self._line.offset - page.created_ns // 100)
            if page.drift is not None or page.drifted is not None:
                line = page.drifted = self._drifting(page, line)
            native.reference_page_write(page.memory, line.scale, line.offset)

    def _drifting(self, page: _ReferencePage, line: _Line) -> _Line:
        """The line of a clock that runs wrong, or did: what stood in the page may be ahead by what it ran until we
        came. Then it goes on slower, so that the next refresh finds it right; it is never turned back."""
        assert self._line is not None
        tsc = native.tsc_sample()[0]
        wanted, scale = line.at(tsc), line.scale
        if (drift := page.drift) is not None:
            now_ns = self._line.at(tsc) * 100
            wanted += drift.added_ns(now_ns) // 100
            if drift.until_ns is None or now_ns < drift.until_ns:
                scale += scale * drift.ppm // 1_000_000
        if page.drifted is not None and (ahead := page.drifted.at(tsc) - wanted) > 0:
            wanted += ahead
            horizon = REFRESH_MS * _UNITS_PER_S // 1_000
            scale -= scale * min(ahead, horizon // 2) // horizon
        return _Line(scale, wanted - (tsc * scale >> 64))
