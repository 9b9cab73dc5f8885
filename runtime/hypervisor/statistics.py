"""Statistics pages: who has mapped which, and what stands in them. Their layout is `runtime.statistics`.

A page belongs to its mapper, which pays for it, and is written from the machine's state: at the map, then on a
timer for as long as anybody has one. Mapping a page again gives its descriptor again, as a root's successor
needs it.

Source: TLFS, HvCallMapStatsPage, HvCallUnmapStatsPage.
"""

from __future__ import annotations

from runtime.abi import STATS_PAGE_PAGES, STATS_PAGES_PER_PARTITION_MAX, HvStatus
from runtime.hypervisor.effects import CloseStatisticsPage, RefreshStatistics
from runtime.hypervisor.machine import Call, CallCount, Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.replies import DONE, Refused, Reply, StatisticsHandle
from runtime.hypervisor.statistics_page import StatsKey, StatsPage
from runtime.statistics import STATS_INTERVAL_MS, StatsObject, close_page, write_page


def map_stats_page(call: Call, *, type: int, index: int) -> Reply:
    machine, mapper = call.machine, call.caller
    key = _key(call, type, index)
    if (known := mapper.stats_pages.get(key)) is None:
        if len(mapper.stats_pages) >= STATS_PAGES_PER_PARTITION_MAX:
            raise Refused(HvStatus.NO_RESOURCES)
        mapper.pool.require(STATS_PAGE_PAGES)
        number = machine.next_stats_page
        known = StatsPage(number, machine.resources.create_statistics_page(number))
        machine.next_stats_page += 1
        mapper.pool.charge(STATS_PAGE_PAGES)
        mapper.stats_pages[key] = known
        _write(machine, key, known)
        if not machine.statistics_timer:
            machine.statistics_timer = True
            machine.effects.append(RefreshStatistics(STATS_INTERVAL_MS))
    return Reply(values={"interval_ms": STATS_INTERVAL_MS}, handles=(StatisticsHandle(known.id),))


def unmap_stats_page(call: Call, *, type: int, index: int) -> Reply:
    key = _key(call, type, index, must_exist=False)
    if key not in call.caller.stats_pages:
        raise Refused(HvStatus.NOT_FOUND)
    _release(call.machine, call.caller, key)
    return DONE


def _key(call: Call, type: int, index: int, *, must_exist: bool = True) -> StatsKey:
    try:
        kind = StatsObject(type)
    except ValueError:
        raise Refused(HvStatus.INVALID_PARAMETER) from None
    if kind is StatsObject.LOGICAL_PROCESSOR:
        if index >= call.machine.resources.processor.logical_processors:
            raise Refused(HvStatus.INVALID_LP_INDEX)
        return StatsKey(kind, index=index)
    if kind is StatsObject.VP:
        if must_exist and index not in call.target.vps:
            raise Refused(HvStatus.INVALID_VP_INDEX)
        return StatsKey(kind, call.target.id, index)
    if index:
        raise Refused(HvStatus.INVALID_PARAMETER)
    return StatsKey(kind) if kind is StatsObject.HYPERVISOR else StatsKey(kind, call.target.id)


def refresh(machine: Machine) -> None:
    """The interval is over. No timer is left once nobody has a page."""
    machine.statistics_timer = False
    for mapper in machine.partitions.values():
        for key, page in mapper.stats_pages.items():
            machine.statistics_timer = True
            _write(machine, key, page)
    if machine.statistics_timer:
        machine.effects.append(RefreshStatistics(STATS_INTERVAL_MS))


def release_pages_of(machine: Machine, mapper: Partition) -> None:
    """The mapper is gone."""
    for key in list(mapper.stats_pages):
        _release(machine, mapper, key)


def release_pages_about(machine: Machine, partition: int, vp: int | None = None) -> None:
    """The partition, or one VP of it, is gone: its pages say so for good, and cost their mappers nothing more."""
    if not machine.statistics_timer:
        return  # nobody has any page
    for mapper in machine.partitions.values():
        for key in list(mapper.stats_pages):
            about_vp = key.kind is StatsObject.VP
            if key.partition == partition and (vp is None or (about_vp and key.index == vp)):
                close_page(mapper.stats_pages[key].page, machine.now_ns // 100)
                _release(machine, mapper, key)


def _release(machine: Machine, mapper: Partition, key: StatsKey) -> None:
    page = mapper.stats_pages.pop(key)
    mapper.pool.refund(STATS_PAGE_PAGES)
    machine.effects.append(CloseStatisticsPage(page.id))


def _write(machine: Machine, key: StatsKey, page: StatsPage) -> None:
    write_page(page.page, machine.now_ns // 100, _counters(machine, key))


def _counters(machine: Machine, key: StatsKey) -> tuple[int, ...]:
    match key.kind:
        case StatsObject.HYPERVISOR:
            return _of_hypervisor(machine)
        case StatsObject.LOGICAL_PROCESSOR:
            run_ns, idle_ns = machine.resources.processor_times_ns(key.index)
            return run_ns // 100, idle_ns // 100
        case StatsObject.PARTITION:
            return _of_partition(machine, machine.partitions[key.partition])
        case _:
            vp = machine.partitions[key.partition].vps[key.index]
            return int(vp.running), sum(map(len, vp.queues)), vp.long_spin_waits


def _of_hypervisor(machine: Machine) -> tuple[int, ...]:
    everyone = machine.partitions.values()
    return (
        machine.resources.processor.logical_processors,
        len(everyone),
        sum(len(each.vps) for each in everyone),
        sum(len(each.ports) for each in everyone),
        sum(len(each.connections) for each in everyone),
        len(machine.slots),
        machine.memory_pages,
        sum(len(each.stats_pages) for each in everyone),
        machine.calls.made,
        machine.calls.refused,
        machine.resources.own_time_ns() // 100,
    )


def _of_partition(machine: Machine, partition: Partition) -> tuple[int, ...]:
    calls = machine.calls_of.get(partition.id, CallCount())
    return (
        int(partition.state),
        len(partition.vps),
        len(partition.children),
        len(partition.ports),
        len(partition.connections),
        len(partition.gpa.entries),
        partition.pool.available,
        partition.pool.in_use,
        calls.made,
        calls.refused,
        sum(port.counts.sent for port in partition.ports.values()),
        sum(port.buffers_used for port in partition.ports.values()),
        machine.resources.processor_time_ns(partition.pid, 0) // 100 if partition.pid is not None else 0,
    )
