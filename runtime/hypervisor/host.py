"""What partitions are made of on this host: memfds, eventfds, routes. The real `effects.Resources`.

Descriptors are the scarce thing. Some are kept back, so that the broker itself can always receive a call,
answer it and watch a process, whatever its callers have used up.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from bus import native
from bus.memory import PAGE_BYTES, REQUIRED_SEALS, MemorySlot
from runtime.hypervisor.effects import (
    CloseDoorbell,
    CloseSlot,
    CloseVp,
    CloseWatch,
    DropFiles,
    HostEffect,
    Page,
    RaiseLine,
    RaiseWatch,
    RemoveRoute,
    RingDoorbell,
    RouteSpec,
)
from runtime.hypervisor.replies import (
    DoorbellHandle,
    FilesHandle,
    Handle,
    KickHandle,
    SlotHandle,
    VpHandle,
    WatchHandle,
)

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
        self._watches: dict[int, int] = {}
        self._files: dict[int, list[int]] = {}
        self._lent_files: dict[int, list[int]] = {}
        self._router = native.Router()

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

    def create_watch(self, partition: int) -> None:
        # Non-blocking: its owner waits in an event loop. It owns the file anyway, so this binds nobody.
        self._watches[partition] = self._eventfd(os.EFD_NONBLOCK)

    def _eventfd(self, flags: int = 0) -> int:
        return self._room(os.eventfd(0, os.EFD_CLOEXEC | flags))

    # -- effects -------------------------------------------------------------------------------------------

    def carry_out(self, effect: HostEffect) -> None:
        # A full counter already says all that one more could; a peer that filled it must not make us wait.
        match effect:
            case CloseSlot(slot):
                os.close(self._slots.pop(slot))
            case CloseVp(partition, vp):
                self._vps.pop((partition, vp)).close()
            case CloseDoorbell(partition, port):
                os.close(self._doorbells.pop((partition, port)))
            case RemoveRoute(route):
                self._router.remove(route)  # returns once its thread is out of it: only then may it close
                os.close(self._kicks.pop(route))
            case CloseWatch(partition):
                os.close(self._watches.pop(partition))
            case DropFiles(partition):
                self._drop_files(partition)
            case RaiseLine(partition, vp):
                native.eventfd_signal(self._vps[partition, vp].line_fd)
            case RingDoorbell(partition, port):
                native.eventfd_signal(self._doorbells[partition, port])
            case RaiseWatch(partition):
                native.eventfd_signal(self._watches[partition])

    def keep_files(self, partition: int, fds: list[int]) -> None:
        """Takes them over."""
        self._files[partition] = fds

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
                    case WatchHandle(partition):
                        fds.append(self._watches[partition])
                    case FilesHandle(partition):
                        files = self._files.pop(partition, [])
                        passing += files
                        fds += [*self._lent_files.get(partition, ()), *files]
            yield fds
        finally:
            for fd in passing:
                os.close(fd)

    def route_statistics(self, route: int) -> dict[str, int]:
        return self._router.statistics(route)


def _read_only(fd: int) -> int:
    """Another open file of the same memory, which cannot be mapped for writing."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def _raise_descriptor_limit() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 1 << 20)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
