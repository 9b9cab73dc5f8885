"""What the hypervisor has of its host, as plain objects: each made once, counted, and perhaps no more to be had."""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import replace

from runtime.hypervisor.effects import (
    CloseDoorbell,
    CloseEndpoint,
    CloseReferencePage,
    CloseSlot,
    CloseStatisticsPage,
    CloseVp,
    CloseWatch,
    HostProcessor,
    Page,
    QuietRoute,
    RemoveRoute,
    RouteSpec,
    SetReferencePage,
)
from runtime.hypervisor.interrupt_counts import InterruptCounts
from tests.runtime.plain_synic import PlainSynic

Change = (
    CloseSlot
    | CloseVp
    | CloseDoorbell
    | RemoveRoute
    | QuietRoute
    | CloseReferencePage
    | SetReferencePage
    | CloseWatch
    | CloseStatisticsPage
    | CloseEndpoint
)


class CountedResources:
    """As `runtime.hypervisor.effects.Resources`. Nothing is made twice, and nothing is made of what is not there."""

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}  # id: pages
        self.vps: dict[tuple[int, int], tuple[bytearray, bytearray]] = {}
        self.doorbells: Counter[tuple[int, int]] = Counter()  # how often rung
        self.live_doorbells: set[tuple[int, int]] = set()
        self.routes: dict[int, RouteSpec] = {}
        self.used_routes: set[int] = set()
        self.quiet_routes: set[int] = set()
        self.route_totals: dict[int, InterruptCounts] = {}
        self.interrupt_pages: dict[tuple[int, int], bytearray] = {}
        self.reference_pages: dict[int, int | None] = {}  # when its partition's time began
        self.threads: dict[tuple[int, int], int] = {}  # (pid, thread): ns that it has run
        self.watches: dict[int, int] = {}  # partition: how often raised
        self.slot_bytes: dict[int, dict[int, int]] = {}  # those written, by slot and offset
        self.statistics: dict[int, bytearray] = {}
        self.endpoints: set[int] = set()  # whose second end waits for the port's owner
        self.processor = HostProcessor(logical_processors=2, vendor=1)
        self.fail_after: int | None = None  # how many more resources the host has
        self.now_ns = 0

    def _take(self) -> None:
        if self.fail_after is not None:
            if self.fail_after == 0:
                raise OSError(errno.EMFILE, "no more")
            self.fail_after -= 1

    def create_slot(self, slot: int, pages: int) -> None:
        self._take()
        assert slot not in self.slots
        self.slots[slot] = pages

    def create_vp(self, partition: int, vp: int) -> tuple[Page, Page]:
        self._take()
        assert (partition, vp) not in self.vps
        self.vps[partition, vp] = bytearray(4096), bytearray(4096)
        return self.vps[partition, vp]

    def create_doorbell(self, partition: int, port: int) -> None:
        self._take()
        assert (partition, port) not in self.live_doorbells
        self.live_doorbells.add((partition, port))

    def create_route(self, spec: RouteSpec) -> None:
        self._take()
        assert spec.route not in self.used_routes
        assert (spec.partition, spec.port) in self.live_doorbells
        assert (spec.partition, spec.vp) in self.vps
        self.used_routes.add(spec.route)
        self.routes[spec.route] = spec
        self.route_totals[spec.route] = InterruptCounts()

    def move_route(self, spec: RouteSpec) -> None:
        before = self.routes[spec.route]
        assert (before.partition, before.port) == (spec.partition, spec.port)
        assert (spec.partition, spec.vp) in self.vps
        self.routes[spec.route] = spec

    def route_counts(self, route: int) -> InterruptCounts:
        return replace(self.route_totals[route])

    def kick(self, route: int) -> None:
        """What the router does when the route's sender writes to it."""
        spec, counts = self.routes[route], self.route_totals[route]
        fresh = PlainSynic().flag_set(self.vps[spec.partition, spec.vp][1], spec.flag)
        counts.sent += 1
        counts.count(fresh=fresh, loud=route not in self.quiet_routes)
        if fresh and route not in self.quiet_routes:
            self.doorbells[spec.partition, spec.port] += 1

    def create_interrupt_page(self, partition: int, vp: int) -> Page:
        self._take()
        assert (partition, vp) in self.vps
        assert (partition, vp) not in self.interrupt_pages
        self.interrupt_pages[partition, vp] = bytearray(4096)
        return self.interrupt_pages[partition, vp]

    def create_reference_page(self, partition: int, created_ns: int | None) -> None:
        self._take()
        assert partition not in self.reference_pages
        self.reference_pages[partition] = created_ns

    tsc_hz = 2_000_000_000

    def processor_time_ns(self, pid: int, thread: int) -> int:
        return self.threads.get((pid, thread), 0)

    def has_thread(self, pid: int, thread: int) -> bool:
        return (pid, thread) in self.threads

    def create_watch(self, partition: int) -> None:
        self._take()
        assert partition not in self.watches
        self.watches[partition] = 0

    def create_endpoint(self, endpoint: int) -> None:
        self._take()
        assert endpoint not in self.endpoints
        self.endpoints.add(endpoint)

    def create_statistics_page(self, page: int) -> Page:
        self._take()
        assert page not in self.statistics
        self.statistics[page] = bytearray(4096)
        return self.statistics[page]

    def read_slot(self, slot: int, byte_offset: int, byte_count: int) -> bytes:
        assert byte_offset + byte_count <= self.slots[slot] * 4096
        written = self.slot_bytes.get(slot, {})
        return bytes(written.get(byte, 0) for byte in range(byte_offset, byte_offset + byte_count))

    def write_slot(self, slot: int, byte_offset: int, data: bytes) -> None:
        self._take()
        assert byte_offset + len(data) <= self.slots[slot] * 4096
        self.slot_bytes.setdefault(slot, {}).update(enumerate(data, byte_offset))

    def processor_times_ns(self, lp: int) -> tuple[int, int]:
        assert lp < self.processor.logical_processors
        return self.now_ns // 2, self.now_ns - self.now_ns // 2

    def own_time_ns(self) -> int:
        return self.now_ns // 10

    def change(self, effect: Change) -> None:
        """What was made is set, or given back; nothing is that is not there, or that others still need."""
        match effect:
            case CloseSlot(slot):
                del self.slots[slot]
                self.slot_bytes.pop(slot, None)
            case CloseVp(partition, vp):
                del self.vps[partition, vp]
                self.interrupt_pages.pop((partition, vp), None)
                for spec in self.routes.values():
                    assert (spec.partition, spec.vp) != (partition, vp)
            case CloseDoorbell(partition, port):
                self.live_doorbells.remove((partition, port))
                for spec in self.routes.values():
                    assert (spec.partition, spec.port) != (partition, port)
            case RemoveRoute(route):
                del self.routes[route]
                self.quiet_routes.discard(route)
            case QuietRoute(route, quiet):
                assert route in self.routes
                (self.quiet_routes.add if quiet else self.quiet_routes.discard)(route)
            case CloseReferencePage(partition):
                del self.reference_pages[partition]
            case SetReferencePage(partition, created_ns):
                assert partition in self.reference_pages
                self.reference_pages[partition] = created_ns
            case CloseWatch(partition):
                del self.watches[partition]
            case CloseStatisticsPage(page):
                del self.statistics[page]
            case CloseEndpoint(endpoint):
                self.endpoints.remove(endpoint)
