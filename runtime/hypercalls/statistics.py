"""Statistics pages and processor times. One family of `runtime.hypercalls.caller`."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Self

from runtime.abi import PAGE_BYTES, PARTITION_SELF, HypercallCode
from runtime.hypercalls.connection import HypercallSocket, Result, closing_on_error
from runtime.statistics import Statistics, StatsObject, read_page


class StatisticsPage:
    """A page that the hypervisor keeps current, mapped here for reading. `close` it, or use it in a `with`."""

    def __init__(self, kind: StatsObject, fd: int) -> None:
        """Takes the descriptor over."""
        self.kind = kind
        try:
            self._page = mmap.mmap(fd, PAGE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(fd)

    def read(self) -> Statistics:
        """All counters of one moment. Raises: TornPage."""
        return read_page(self._page, self.kind)

    def close(self) -> None:
        self._page.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class ProcessorTime:
    """In 100 ns units."""

    global_time: int  # of the host's monotonic clock
    local_run_time: int  # that the processor was not idle, since the host booted


class StatisticsCalls(HypercallSocket):
    """See `runtime.hypercalls.caller.HypercallPort`."""

    def map_stats_page(
        self, kind: StatsObject, index: int = 0, partition: int = PARTITION_SELF
    ) -> StatisticsPage:
        """A page of the hypervisor's, of logical processor `index`, of `partition`, or of VP `index` of it."""
        result = self._stats(HypercallCode.MAP_STATS_PAGE, kind, index, partition)
        with closing_on_error(result.fds):
            fd = result.one_fd()
        return StatisticsPage(kind, fd)

    def unmap_stats_page(self, kind: StatsObject, index: int = 0, partition: int = PARTITION_SELF) -> None:
        """It is written no more, and its page comes back to the pool."""
        self._stats(HypercallCode.UNMAP_STATS_PAGE, kind, index, partition)

    def _stats(self, code: HypercallCode, kind: StatsObject, index: int, partition: int) -> Result:
        return self.call(code, partition=partition, type=int(kind), index=index)

    def get_logical_processor_run_time(self, lp: int) -> ProcessorTime:
        result = self.call(HypercallCode.GET_LOGICAL_PROCESSOR_RUN_TIME, lp=lp)
        return ProcessorTime(result.integer("global_time"), result.integer("local_run_time"))
