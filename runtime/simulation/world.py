"""What the state machine believes to exist: memory, interrupt lines, routes and processes, made of plain objects.

It carries effects out and refuses those that make no sense, such as closing what is not there. SynIC pages are real,
and so are the atomics that work on them.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from bus import native
from runtime.abi import FLAGS_PER_SINT, PAGE_BYTES, ROOT_PARTITION
from runtime.hypervisor import effects as fx
from runtime.hypervisor.effects import Effect, HostProcessor, Page, RouteSpec
from runtime.hypervisor.interrupt_counts import InterruptCounts
from runtime.simulation.violation import Violation, hold

LOGICAL_PROCESSORS: Final = 2
TSC_HZ: Final = 2_000_000_000


class World:
    """The `Resources` and `SynicOperations` of a simulated machine."""

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}  # id: pages
        self.vps: dict[int, dict[int, tuple[bytearray, bytearray]]] = {}  # by partition: SIM and SIEF page
        self.doorbells: dict[int, set[int]] = {}  # by partition: ports
        self.routes: dict[int, RouteSpec] = {}
        self.quiet_routes: set[int] = set()
        self.interrupt_pages: dict[tuple[int, int], bytearray] = {}  # by partition, VP
        self.reference_pages: set[int] = set()
        self.statistics_pages: set[int] = set()
        self.stopped: set[int] = set()  # partitions whose process is suspended
        self.pending: Counter[int] = Counter()  # calls that get their reply later, by partition
        self.watches: set[int] = set()
        self.endpoints: set[int] = set()  # that were made; whose second end was claimed is not looked at
        self.files: dict[int, int] = {}
        self.starting: dict[int, None] = {}  # in the order of the spawns
        self.running: set[int] = {ROOT_PARTITION}
        self.doomed: dict[int, None] = {}  # killed, not reaped yet
        self.timers_ns: dict[int, int] = {}  # by partition: when to look at its heartbeat
        self.vp_timer_ns: int | None = None  # when to look at the VPs' timers
        self.statistics_timer_ns: int | None = None
        self.now_ns = 0
        self.halted: str | None = None
        self.root_files = 0
        self.fail_at = 0  # the n-th resource from now is refused
        # What happened in this step
        self.delivered: list[
            tuple[int, int, int, int, int, bytes]
        ] = []  # partition, VP, SINT, type, sender, payload
        self.flagged: list[tuple[int, int, int]] = []  # partition, VP, SINT
        self.raised: set[tuple[int, int]] = set()  # interrupt lines
        self.rung: set[int] = set()  # partitions whose port doorbells rang
        self.closed_slots: list[int] = []
        self.closed_vps: list[tuple[int, int]] = []
        self._page_owners: dict[int, tuple[int, int]] = {}  # by id() of a page: partition, VP

    def begin_step(self, fail_at: int) -> None:
        self.fail_at = fail_at
        self.delivered.clear()
        self.flagged.clear()
        self.raised.clear()
        self.rung.clear()
        self.closed_slots.clear()
        self.closed_vps.clear()

    # -- Resources -----------------------------------------------------------------------------------------

    def _take(self) -> None:
        if self.fail_at:
            self.fail_at -= 1
            if not self.fail_at:
                raise OSError(errno.EMFILE, "no more")

    def create_slot(self, slot: int, pages: int) -> None:
        self._take()
        hold(slot not in self.slots, "resource made twice", slot)
        self.slots[slot] = pages

    def create_vp(self, partition: int, vp: int) -> tuple[Page, Page]:
        self._take()
        vps = self.vps.setdefault(partition, {})
        hold(vp not in vps, "resource made twice", (partition, vp))
        pages = vps[vp] = bytearray(PAGE_BYTES), bytearray(PAGE_BYTES)
        for page in pages:
            self._page_owners[id(page)] = (partition, vp)
        return pages

    def create_doorbell(self, partition: int, port: int) -> None:
        self._take()
        ports = self.doorbells.setdefault(partition, set())
        hold(port not in ports, "resource made twice", (partition, port))
        ports.add(port)

    def create_route(self, spec: RouteSpec) -> None:
        self._take()
        hold(spec.route not in self.routes, "resource made twice", spec)
        hold(spec.port in self.doorbells.get(spec.partition, ()), "route without a doorbell", spec)
        hold(spec.vp in self.vps.get(spec.partition, ()), "route without a processor", spec)
        self.routes[spec.route] = spec

    def move_route(self, spec: RouteSpec) -> None:
        before = self.routes[spec.route]
        hold((before.partition, before.port) == (spec.partition, spec.port), "a route changed its port", spec)
        hold(spec.vp in self.vps.get(spec.partition, ()), "route without a processor", spec)
        self.routes[spec.route] = spec

    def route_counts(self, route: int) -> InterruptCounts:
        hold(route in self.routes, "counts of a route that is gone", route)
        return InterruptCounts()  # nobody kicks here: that happens without the state machine

    def create_interrupt_page(self, partition: int, vp: int) -> Page:
        self._take()
        hold((partition, vp) not in self.interrupt_pages, "resource made twice", (partition, vp))
        hold(vp in self.vps.get(partition, ()), "page of a processor that is gone", (partition, vp))
        page = self.interrupt_pages[partition, vp] = bytearray(PAGE_BYTES)
        return page

    def create_reference_page(self, partition: int, created_ns: int | None) -> None:
        self._take()
        hold(partition not in self.reference_pages, "resource made twice", partition)
        self.reference_pages.add(partition)

    def create_statistics_page(self, page: int) -> Page:
        self._take()
        hold(page not in self.statistics_pages, "resource made twice", page)
        self.statistics_pages.add(page)
        return bytearray(PAGE_BYTES)

    def read_slot(self, slot: int, byte_offset: int, byte_count: int) -> bytes:
        hold(byte_offset + byte_count <= self.slots[slot] * PAGE_BYTES, "read beyond a slot", slot)
        return bytes(byte_count)

    def write_slot(self, slot: int, byte_offset: int, data: bytes) -> None:
        self._take()
        hold(byte_offset + len(data) <= self.slots[slot] * PAGE_BYTES, "write beyond a slot", slot)

    # What the host measures: made up from the virtual clock.

    tsc_hz = TSC_HZ
    processor = HostProcessor(logical_processors=LOGICAL_PROCESSORS, vendor=1)

    def processor_time_ns(self, pid: int, thread: int) -> int:
        return self.now_ns // 4

    def has_thread(self, pid: int, thread: int) -> bool:
        return thread == pid

    def processor_times_ns(self, lp: int) -> tuple[int, int]:
        hold(lp < LOGICAL_PROCESSORS, "time of a processor that is not there", lp)
        return self.now_ns // 2, self.now_ns - self.now_ns // 2

    def own_time_ns(self) -> int:
        return self.now_ns // 10

    def create_endpoint(self, endpoint: int) -> None:
        self._take()
        hold(endpoint not in self.endpoints, "resource made twice", endpoint)
        self.endpoints.add(endpoint)

    def create_watch(self, partition: int) -> None:
        self._take()
        hold(partition not in self.watches, "resource made twice", partition)
        self.watches.add(partition)

    # -- SynicOperations -----------------------------------------------------------------------------------

    def synic_post(
        self, sim_page: Page, sint: int, message_type: int, sender: int, payload: bytes, /
    ) -> bool:
        if not native.synic_post(sim_page, sint, message_type, sender, payload):
            return False
        partition, vp = self._page_owners[id(sim_page)]
        self.delivered.append((partition, vp, sint, message_type, sender, payload))
        return True

    def flag_set(self, sief_page: Page, flag: int, /) -> bool:
        if not native.flag_set(sief_page, flag):
            return False
        if (where := self._page_owners.get(id(sief_page))) is not None:  # else an interrupt page
            self.flagged.append((*where, flag // FLAGS_PER_SINT))
        return True

    def flag_take(self, sief_page: Page, flag: int, /) -> bool:
        return native.flag_take(sief_page, flag)

    # -- effects -------------------------------------------------------------------------------------------

    def carry_out(self, effects: list[Effect], files: int = 0) -> None:
        for effect in effects:
            hold(self.halted is None, "effect after the end", effect)
            if isinstance(effect, fx.KeepFiles):
                hold(files > 0 and effect.partition not in self.files, "files kept that nobody sent", effect)
                self.files[effect.partition] = files
            else:
                try:
                    EFFECTS[type(effect)](self, effect)
                except (LookupError, AssertionError) as error:
                    raise Violation("effect on what is not there", repr(effect)) from error

    def _close_slot(self, effect: fx.CloseSlot) -> None:
        del self.slots[effect.slot]
        self.closed_slots.append(effect.slot)

    def _close_vp(self, effect: fx.CloseVp) -> None:
        for page in self.vps[effect.partition].pop(effect.vp):
            del self._page_owners[id(page)]
        self.interrupt_pages.pop((effect.partition, effect.vp), None)
        where = (effect.partition, effect.vp)
        self.closed_vps.append(where)
        for spec in self.routes.values():
            hold((spec.partition, spec.vp) != where, "route to a processor that is gone", spec)

    def _close_doorbell(self, effect: fx.CloseDoorbell) -> None:
        self.doorbells[effect.partition].remove(effect.port)
        where = (effect.partition, effect.port)
        for spec in self.routes.values():
            hold((spec.partition, spec.port) != where, "route to a port that is gone", spec)

    def _remove_route(self, effect: fx.RemoveRoute) -> None:
        del self.routes[effect.route]
        self.quiet_routes.discard(effect.route)

    def _quiet_route(self, effect: fx.QuietRoute) -> None:
        assert effect.route in self.routes
        (self.quiet_routes.add if effect.quiet else self.quiet_routes.discard)(effect.route)

    def _close_reference_page(self, effect: fx.CloseReferencePage) -> None:
        self.reference_pages.remove(effect.partition)

    def _set_reference_page(self, effect: fx.SetReferencePage) -> None:
        assert effect.partition in self.reference_pages

    def _close_statistics_page(self, effect: fx.CloseStatisticsPage) -> None:
        self.statistics_pages.remove(effect.page)

    def _close_endpoint(self, effect: fx.CloseEndpoint) -> None:
        self.endpoints.remove(effect.endpoint)

    def _refresh_statistics(self, effect: fx.RefreshStatistics) -> None:
        assert self.statistics_timer_ns is None
        self.statistics_timer_ns = self.now_ns + effect.after_ms * 1_000_000

    def _arm_timers(self, effect: fx.ArmTimers) -> None:
        self.vp_timer_ns = effect.when_ns

    def _suspend(self, effect: fx.SuspendPartition) -> None:
        assert effect.partition in self.running
        assert effect.suspended is (effect.partition not in self.stopped)
        self.stopped ^= {effect.partition}

    def _complete_call(self, effect: fx.CompleteCall) -> None:
        self.pending[effect.partition] -= 1
        assert self.pending[effect.partition] >= 0

    def _close_watch(self, effect: fx.CloseWatch) -> None:
        self.watches.remove(effect.partition)

    def _drop_files(self, effect: fx.DropFiles) -> None:
        del self.files[effect.partition]

    def _raise_line(self, effect: fx.RaiseLine) -> None:
        assert effect.vp in self.vps[effect.partition]
        self.raised.add((effect.partition, effect.vp))

    def _ring_doorbell(self, effect: fx.RingDoorbell) -> None:
        assert effect.port in self.doorbells[effect.partition]
        self.rung.add(effect.partition)

    def _raise_watch(self, effect: fx.RaiseWatch) -> None:
        assert effect.partition in self.watches

    def _spawn(self, effect: fx.SpawnPartition | fx.LoadDriver) -> None:
        assert effect.partition not in self.starting
        assert effect.partition not in self.running
        self.starting[effect.partition] = None

    def _kill(self, effect: fx.KillPartition) -> None:
        assert effect.partition in self.starting or effect.partition in self.running
        self.doomed[effect.partition] = None

    def _replace_root(self, effect: fx.ReplaceRoot) -> None:
        assert ROOT_PARTITION not in self.starting
        assert ROOT_PARTITION not in self.running
        self.starting[ROOT_PARTITION] = None
        if self.root_files:
            assert ROOT_PARTITION not in self.files
            self.files[ROOT_PARTITION] = self.root_files

    def _check_heartbeat(self, effect: fx.CheckHeartbeat) -> None:
        self.timers_ns[effect.partition] = self.now_ns + effect.after_ms * 1_000_000

    def _announce(self, effect: fx.Announce) -> None:
        pass

    def _halt(self, effect: fx.Halt) -> None:
        self.halted = effect.reason


EFFECTS: Final[Mapping[type[Any], Callable[[World, Any], None]]] = MappingProxyType(
    {
        fx.CloseSlot: World._close_slot,
        fx.CloseVp: World._close_vp,
        fx.CloseDoorbell: World._close_doorbell,
        fx.RemoveRoute: World._remove_route,
        fx.QuietRoute: World._quiet_route,
        fx.CloseReferencePage: World._close_reference_page,
        fx.SetReferencePage: World._set_reference_page,
        fx.CloseStatisticsPage: World._close_statistics_page,
        fx.CloseEndpoint: World._close_endpoint,
        fx.RefreshStatistics: World._refresh_statistics,
        fx.ArmTimers: World._arm_timers,
        fx.SuspendPartition: World._suspend,
        fx.CompleteCall: World._complete_call,
        fx.CloseWatch: World._close_watch,
        fx.DropFiles: World._drop_files,
        fx.RaiseLine: World._raise_line,
        fx.RingDoorbell: World._ring_doorbell,
        fx.RaiseWatch: World._raise_watch,
        fx.SpawnPartition: World._spawn,
        fx.LoadDriver: World._spawn,
        fx.KillPartition: World._kill,
        fx.ReplaceRoot: World._replace_root,
        fx.CheckHeartbeat: World._check_heartbeat,
        fx.Announce: World._announce,
        fx.Halt: World._halt,
    }
)
