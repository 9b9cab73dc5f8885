"""What partitions are made of on this host: memfds, eventfds, routes. The real `effects.Resources`.

Descriptors are the scarce thing. Some are kept back, so that the broker itself can always receive a call,
answer it and watch a process, whatever its callers have used up.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from bus import native
from bus.memory import PAGE_BYTES, REQUIRED_SEALS, MemorySlot
from runtime.hypervisor.cpu_time import has_thread, processor_time_ns
from runtime.hypervisor.effects import (
    CloseDoorbell,
    CloseEndpoint,
    CloseReferencePage,
    CloseSlot,
    CloseStatisticsPage,
    CloseVp,
    CloseWatch,
    DropFiles,
    HostEffect,
    HostProcessor,
    Page,
    QuietRoute,
    RaiseLine,
    RaiseWatch,
    RemoveRoute,
    RingDoorbell,
    RouteSpec,
    SetReferencePage,
)
from runtime.hypervisor.host_processors import HostProcessors
from runtime.hypervisor.interrupt_counts import InterruptCounts
from runtime.hypervisor.reference_clock import ReferenceClock
from runtime.hypervisor.replies import (
    DoorbellHandle,
    EndpointHandle,
    FilesHandle,
    Handle,
    InterruptPageHandle,
    KickHandle,
    ReferencePageHandle,
    SlotHandle,
    StatisticsHandle,
    VpHandle,
    WatchHandle,
)

TRACED_ROUTE: Final = 1 << 62  # bus/trace.py says the same; it is not loaded here
DESCRIPTORS_RESERVED: Final = 512  # two full calls, spawning, and a pidfd and a socket for each new process


@dataclass(frozen=True, slots=True)
class _VpMemory:
    sim: MemorySlot
    sief: MemorySlot
    line_fd: int

    def close(self) -> None:
        self.sim.close()
        self.sief.close()
        os.close(self.line_fd)


class Host:
    """Owns every descriptor that the state machine knows by an id."""

    def __init__(self) -> None:
        self._descriptors_max = _raise_descriptor_limit() - DESCRIPTORS_RESERVED
        self._slots: dict[int, int] = {}
        self._vps: dict[tuple[int, int], _VpMemory] = {}
        self._doorbells: dict[tuple[int, int], int] = {}
        self._kicks: dict[int, int] = {}  # by route
        self._interrupt_pages: dict[tuple[int, int], MemorySlot] = {}
        self._reference_pages: dict[int, MemorySlot] = {}
        self.clock: Final = ReferenceClock()
        self._watches: dict[int, int] = {}
        self._statistics: dict[int, MemorySlot] = {}
        self._processors: Final = HostProcessors()
        self._endpoints: dict[tuple[int, bool], int] = {}  # by id, and whether it is the end that waits
        self._files: dict[int, list[int]] = {}
        self._lent_files: dict[int, list[int]] = {}
        self._router = native.Router()
        self._trace: native.Trace | None = None

    def has_room_for(self, fds: Iterable[int]) -> bool:
        """Whether descriptors that came with a call leave the reserve alone. New ones have the lowest number
        free, so the number tells how many are open."""
        return all(fd < self._descriptors_max for fd in fds)

    def _room(self, fd: int) -> int:
        if fd >= self._descriptors_max:
            os.close(fd)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return fd

    # -- Resources -----------------------------------------------------------------------------------------

    def create_slot(self, slot: int, pages: int) -> None:
        fd = self._room(os.memfd_create(f"slot-{slot}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        try:
            os.ftruncate(fd, pages * PAGE_BYTES)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, REQUIRED_SEALS)
        except OSError:
            os.close(fd)
            raise
        self._slots[slot] = fd

    def create_vp(self, partition: int, vp: int) -> tuple[Page, Page]:
        line_fd = self._eventfd()
        pages: list[MemorySlot] = []
        try:
            for kind in ("sim", "sief"):
                page = MemorySlot.create(1, 0, f"{kind}-{partition}-{vp}")
                pages.append(page)
                if not self.has_room_for([page.fd]):
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        except OSError:
            for page in pages:
                page.close()
            os.close(line_fd)
            raise
        sim, sief = pages
        self._vps[partition, vp] = _VpMemory(sim, sief, line_fd)
        return sim.memory, sief.memory

    def create_doorbell(self, partition: int, port: int) -> None:
        self._doorbells[partition, port] = self._eventfd()

    def create_route(self, spec: RouteSpec) -> None:
        kick_fd = self._eventfd()
        try:
            self._router.add(
                spec.route,
                kick_fd,
                self._vps[spec.partition, spec.vp].sief.memory,
                spec.flag,
                self._doorbells[spec.partition, spec.port],
            )
        except BaseException:
            os.close(kick_fd)
            raise
        self._kicks[spec.route] = kick_fd
        if self._trace is not None:
            self._trace.name(
                TRACED_ROUTE | spec.route, spec.partition << 32 | spec.port, f"route {spec.route}"
            )

    def trace(self, fd: int) -> None:
        """Stamp every kick from now on into this memory. ValueError: it is no trace."""
        self._trace = native.Trace(mmap.mmap(fd, os.fstat(fd).st_size))
        self._router.trace(self._trace)

    def create_watch(self, partition: int) -> None:
        # Non-blocking: its owner waits in an event loop. It owns the file anyway, so this binds nobody.
        self._watches[partition] = self._eventfd(os.EFD_NONBLOCK)

    def create_endpoint(self, endpoint: int) -> None:
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = [end.detach() for end in ends]
        if not self.has_room_for(fds):
            for fd in fds:
                os.close(fd)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self._endpoints[endpoint, False], self._endpoints[endpoint, True] = fds

    def create_statistics_page(self, page: int) -> Page:
        self._statistics[page] = self._page(f"statistics-{page}", peers_may_write=False)
        return self._statistics[page].memory

    def create_interrupt_page(self, partition: int, vp: int) -> Page:
        self._interrupt_pages[partition, vp] = page = self._page(f"interrupts-{partition}-{vp}")
        return page.memory

    def create_reference_page(self, partition: int, created_ns: int | None) -> None:
        page = self._page(f"reference-{partition}", peers_may_write=False)
        self._reference_pages[partition] = page
        self.clock.add(partition, page.memory, created_ns)

    def _page(self, name: str, *, peers_may_write: bool = True) -> MemorySlot:
        page = MemorySlot.create(1, 0, name, peers_may_write=peers_may_write)
        if not self.has_room_for([page.fd]):
            page.close()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return page

    def move_route(self, spec: RouteSpec) -> None:
        page = self._vps[spec.partition, spec.vp].sief.memory
        self._router.move(spec.route, page, spec.flag)

    def route_counts(self, route: int) -> InterruptCounts:
        counted = self._router.statistics(route)
        # A doorbell that is full was rung already, and nobody has looked.
        merged = counted["merged"] + counted["blocked"]
        return InterruptCounts(counted["sent"], merged, counted["suppressed"], counted["delivered"])

    @property
    def tsc_hz(self) -> int:
        return self.clock.tsc_hz

    def processor_time_ns(self, pid: int, thread: int) -> int:
        return processor_time_ns(pid, thread)

    def has_thread(self, pid: int, thread: int) -> bool:
        return has_thread(pid, thread)

    def read_slot(self, slot: int, byte_offset: int, byte_count: int) -> bytes:
        try:
            return os.pread(self._slots[slot], byte_count, byte_offset)
        except OSError:
            return b""

    def write_slot(self, slot: int, byte_offset: int, data: bytes) -> None:
        os.pwrite(self._slots[slot], data, byte_offset)

    @property
    def processor(self) -> HostProcessor:
        return self._processors.identity

    def processor_times_ns(self, lp: int) -> tuple[int, int]:
        return self._processors.times_ns(lp)

    def own_time_ns(self) -> int:
        return time.process_time_ns()

    def ring_at(self, route: int, fd: int) -> None:
        """Where the router rings from now on. LookupError: there is no such route."""
        self._router.ring_at(route, fd)

    def doorbell_fd(self, partition: int, port: int) -> int | None:
        return self._doorbells.get((partition, port))

    def line_fd(self, partition: int, vp: int) -> int:
        return self._vps[partition, vp].line_fd

    def _eventfd(self, flags: int = 0) -> int:
        return self._room(os.eventfd(0, os.EFD_CLOEXEC | flags))

    # -- effects -------------------------------------------------------------------------------------------

    def carry_out(self, effect: HostEffect) -> None:
        # A full counter already says all that one more could; a peer that filled it must not make us wait.
        match effect:
            case RaiseLine(partition, vp):  # the most frequent first: cases are tried in turn
                native.eventfd_signal(self._vps[partition, vp].line_fd)
            case RingDoorbell(partition, port):
                native.eventfd_signal(self._doorbells[partition, port])
            case CloseSlot(slot):
                os.close(self._slots.pop(slot))
            case CloseVp(partition, vp):
                self._vps.pop((partition, vp)).close()
                if (page := self._interrupt_pages.pop((partition, vp), None)) is not None:
                    page.close()
            case CloseDoorbell(partition, port):
                os.close(self._doorbells.pop((partition, port)))
            case RemoveRoute(route):
                self._router.remove(route)  # returns once its thread is out of it: only then may it close
                os.close(self._kicks.pop(route))
            case QuietRoute(route, quiet):
                self._router.quiet(route, quiet)
            case CloseReferencePage(partition):
                self.clock.remove(partition)
                self._reference_pages.pop(partition).close()
            case SetReferencePage(partition, created_ns, drift):
                self.clock.set(partition, created_ns, drift)
            case CloseWatch(partition):
                os.close(self._watches.pop(partition))
            case CloseStatisticsPage(page):
                self._statistics.pop(page).close()
            case CloseEndpoint(endpoint):
                for waiting in (False, True):
                    if (fd := self._endpoints.pop((endpoint, waiting), None)) is not None:
                        os.close(fd)
            case DropFiles(partition):
                self._drop_files(partition)
            case RaiseWatch(partition):
                native.eventfd_signal(self._watches[partition])

    def keep_files(self, partition: int, fds: list[int]) -> None:
        """Takes them over."""
        self._files[partition] = fds

    def objects(self) -> Iterator[tuple[str, tuple[int, ...], int]]:
        """All that partitions may be handed: what it is, its ids as the state machine has them, our descriptor."""
        yield from (("slot", (slot,), fd) for slot, fd in self._slots.items())
        for at, memory in self._vps.items():
            yield from (
                ("sim", at, memory.sim.fd),
                ("sief", at, memory.sief.fd),
                ("line", at, memory.line_fd),
            )
        yield from (("doorbell", at, fd) for at, fd in self._doorbells.items())
        yield from (("kick", (route,), fd) for route, fd in self._kicks.items())
        yield from (("vectors", at, page.fd) for at, page in self._interrupt_pages.items())
        yield from (("reference", (partition,), page.fd) for partition, page in self._reference_pages.items())
        yield from (("watch", (partition,), fd) for partition, fd in self._watches.items())
        yield from (("statistics", (page,), slot.fd) for page, slot in self._statistics.items())
        yield from (("endpoint", at, fd) for at, fd in self._endpoints.items())
        for partition, fds in self._lent_files.items():
            yield from (("lent", (partition,), fd) for fd in fds)

    def lend_files(self, partition: int, fds: list[int]) -> None:
        """As `keep_files`, but each process of this partition is born with them, and they stay ours."""
        self._lent_files[partition] = fds

    def _drop_files(self, partition: int) -> None:
        for fd in self._files.pop(partition, ()):
            os.close(fd)

    # -- replies -------------------------------------------------------------------------------------------

    @contextmanager
    def descriptors(self, handles: tuple[Handle, ...]) -> Iterator[list[int]]:
        """What a reply's handles stand for, while it is being sent."""
        fds: list[int] = []
        passing: list[int] = []  # ours no longer, once sent
        try:
            for handle in handles:
                match handle:
                    case SlotHandle(slot, writable):
                        fd = self._slots[slot]
                        if not writable:
                            passing.append(fd := _read_only(fd))
                        fds.append(fd)
                    case VpHandle(partition, vp):
                        memory = self._vps[partition, vp]
                        fds += (memory.sim.fd, memory.sief.fd, memory.line_fd)
                    case DoorbellHandle(partition, port):
                        fds.append(self._doorbells[partition, port])
                    case KickHandle(route):
                        fds.append(self._kicks[route])
                    case InterruptPageHandle(partition, vp):
                        fds.append(self._interrupt_pages[partition, vp].fd)
                    case ReferencePageHandle(partition):
                        passing.append(fd := _read_only(self._reference_pages[partition].fd))
                        fds.append(fd)
                    case WatchHandle(partition):
                        fds.append(self._watches[partition])
                    case StatisticsHandle(page):
                        passing.append(fd := _read_only(self._statistics[page].fd))
                        fds.append(fd)
                    case EndpointHandle(endpoint, waiting):
                        passing.append(fd := self._endpoints.pop((endpoint, waiting)))
                        fds.append(fd)
                    case FilesHandle(partition):
                        files = self._files.pop(partition, [])
                        passing += files
                        fds += [*self._lent_files.get(partition, ()), *files]
            yield fds
        finally:
            for fd in passing:
                os.close(fd)


def _read_only(fd: int) -> int:
    """Another open file of the same memory, which cannot be mapped for writing."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def _raise_descriptor_limit() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 1 << 20)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
