"""Shares and caps by the kernel's cgroups, version 2 or 1, where this process may make some.

    partvisor-PARENT-PID-START of the broker, so that a leftover can be told from a live machine's
        g2                     the group of partition 2: its cpu.weight and cpu.max
            own                its process
            g5                 the group of its child
                own

Version 2 allows processes in leaves only; the same tree does for version 1. Cgroups know no reserve, and no cap below
one percent. An empty cgroup stays until somebody removes it: the kernel does not (version 1 could start a program for
that, a setting of the whole host, which is not ours to change). So we remove ours at the end; if we cannot, the
platform's janitor does; and whoever makes one removes those of brokers that are no more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from runtime.abi import WHOLE_PROCESSOR
from runtime.hypervisor.processes import WatchedProcess
from runtime.hypervisor.scheduling import Decision
from runtime.hypervisor.scheduling_account import Member
from runtime.hypervisor.scheduling_mechanisms import MechanismFailed, SchedulerKind
from runtime.hypervisor.scheduling_shares import Shares

CAP_MIN: Final = WHOLE_PROCESSOR // 100  # the kernel's least quota is 1 ms, of a period of
PERIOD_US: Final = 100_000
_V1_SHARES_PER_WEIGHT: Final = 10.24  # 100 is the usual 1024
_V1_SHARES: Final = (2, 262_144)
_NAME: Final = re.compile(r"partvisor-[0-9]+-([0-9]+)-([0-9]+)")
_MOUNTS: Final = Path("/proc/self/mounts")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")


def can_do(shares: Shares) -> bool:
    return not shares.reserve and (not shares.is_capped or shares.cap >= CAP_MIN)


class Cgroups:
    """One machine's tree below `parent`."""

    needs_slices: Final = False

    def __init__(self, kind: SchedulerKind, parent: Path) -> None:
        """Raises MechanismFailed: it cannot be made there."""
        self.name: Final = kind.value
        self._v2: Final = kind is SchedulerKind.CGROUP2
        self._parent: Final = parent
        self._top: Final = parent / f"partvisor-{os.getppid()}-{os.getpid()}-{_start_of(os.getpid())}"
        self._members: dict[int, Member] = {}
        self._placed: dict[int, int] = {}  # pids, by partition
        remove_leftovers(parent)
        try:
            if self._v2:
                self._enable(parent)
            self._top.mkdir()
            if self._v2:
                self._enable(self._top)
            elif not (self._top / "cpu.shares").exists():
                raise OSError(errno.ENOTSUP, "no cpu controller")
        except OSError as error:
            self.close()
            raise MechanismFailed(f"{self.name}: {parent}: {error.strerror}") from error

    def set_members(self, members: Sequence[Member], processes: Mapping[int, WatchedProcess]) -> None:
        wanted = {member.id: member for member in members}
        depth = {member.id: len(_path(member, wanted)) for member in members}
        try:
            for member in sorted(members, key=lambda each: depth[each.id]):
                folder = self._folder(member, wanted)
                if member.id not in self._members:
                    (folder / "own").mkdir(parents=True, exist_ok=True)
                    if self._v2:
                        self._enable(folder)
            self._set_weights(wanted)
            self._set_caps(wanted, depth)
            for member in members:
                process = processes.get(member.id)
                if member.has_work and process is not None and self._placed.get(member.id) != process.pid:
                    with contextlib.suppress(ProcessLookupError):
                        _write(self._folder(member, wanted) / "own" / "cgroup.procs", process.pid)
                    self._placed[member.id] = process.pid
        except OSError as error:
            raise MechanismFailed(f"{self.name}: {error.filename}: {error.strerror}") from error
        gone = [member for member in self._members.values() if member.id not in wanted]
        for member in sorted(gone, key=lambda each: -len(_path(each, self._members))):
            self._remove(self._folder(member, self._members))
        self._members = wanted

    def carry_out(self, decision: Decision) -> None:
        """The kernel does."""

    def let_all(self) -> None:
        """A cap holds nobody for longer than its period."""

    def forget(self, partition: int) -> None:
        self._placed.pop(partition, None)

    def close(self) -> None:
        if self._top.exists():
            self._remove(self._top)

    def _folder(self, member: Member, members: Mapping[int, Member]) -> Path:
        return self._top.joinpath(*(f"g{each}" for each in _path(member, members)))

    def _set_weights(self, wanted: Mapping[int, Member]) -> None:
        """Of each group among its siblings, and of own work among the children's groups."""
        for member in wanted.values():
            before = self._members.get(member.id)
            if before is None or before.shares.weight != member.shares.weight:
                for folder in (self._folder(member, wanted), self._folder(member, wanted) / "own"):
                    self._weigh(folder, member.shares.weight)
        tops = [member for member in wanted.values() if member.parent is None]
        if (
            tops and wanted.keys() != self._members.keys()
        ):  # as much as they would have had without us, together
            self._weigh(self._top, 100 * len(tops))

    def _weigh(self, folder: Path, weight: int) -> None:
        if self._v2:
            _write(folder / "cpu.weight", min(weight, 10_000))
        else:
            least, most = _V1_SHARES
            _write(folder / "cpu.shares", min(max(round(weight * _V1_SHARES_PER_WEIGHT), least), most))

    def _set_caps(self, wanted: Mapping[int, Member], depth: Mapping[int, int]) -> None:
        """Version 1 wants no child's quota above its parent's at any moment: so first all off, from the leaves up."""
        caps = {
            each.id: (each.shares.cap, each.vps if each.shares.is_capped else 0) for each in wanted.values()
        }
        before = {
            each.id: (each.shares.cap, each.vps if each.shares.is_capped else 0)
            for each in self._members.values()
        }
        default = (WHOLE_PROCESSOR, 0)
        if all(caps[each] == before.get(each, default) for each in caps):
            return
        downwards = sorted(wanted.values(), key=lambda each: (depth[each.id], each.id))
        if not self._v2:
            for member in reversed(downwards):
                if before.get(member.id, default) != default:
                    _write(self._folder(member, wanted) / "cpu.cfs_quota_us", -1)
        effective: dict[int | None, float] = {None: float("inf")}
        for member in downwards:
            cap = member.shares.cap_of(member.vps) if member.shares.is_capped else float("inf")
            effective[member.id] = min(cap, effective[member.parent])
            folder = self._folder(member, wanted)
            quota = round(effective[member.id] * PERIOD_US) if member.shares.is_capped else None
            if self._v2:
                _write(folder / "cpu.max", f"{quota or 'max'} {PERIOD_US}")
            elif quota is not None:
                _write(folder / "cpu.cfs_period_us", PERIOD_US)
                _write(folder / "cpu.cfs_quota_us", quota)

    def _enable(self, folder: Path) -> None:
        if "cpu" not in (folder / "cgroup.subtree_control").read_text().split():
            _write(folder / "cgroup.subtree_control", "+cpu")

    def _remove(self, folder: Path) -> None:
        """Whoever is still in there goes on in our own cgroup."""
        for inside in [*_below(folder), folder]:
            with contextlib.suppress(OSError):
                for pid in (inside / "cgroup.procs").read_text().split():
                    with contextlib.suppress(OSError):
                        _write(self._home() / "cgroup.procs", pid)
            with contextlib.suppress(OSError):
                inside.rmdir()

    def _home(self) -> Path:
        return self._parent


def places() -> Iterator[tuple[SchedulerKind, Path]]:
    """Where cgroups with a cpu controller could be made, the newer version first; whether we may, trying shows."""
    own = {}
    try:
        for line in _MEMBERSHIP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own[controllers] = path.lstrip("/")
        mounts = [line.split()[:4] for line in _MOUNTS.read_text().splitlines()]
    except OSError:  # a kernel without them
        return
    for _, place, kind, _ in mounts:
        if kind == "cgroup2":
            here = Path(place) / own.get("", "")
            with contextlib.suppress(OSError):
                if "cpu" in (here / "cgroup.controllers").read_text().split() and os.access(here, os.W_OK):
                    yield SchedulerKind.CGROUP2, here
    for _, place, kind, options in mounts:
        if kind == "cgroup" and "cpu" in options.split(","):
            mine = next((path for names, path in own.items() if "cpu" in names.split(",")), "")
            here = Path(place) / mine
            if os.access(here, os.W_OK) and (here / "cpu.shares").exists():
                yield SchedulerKind.CGROUP1, here


def cgroups_of(platform_pid: int) -> list[str]:
    """Patterns that match whatever the broker of that platform may make."""
    return [str(place / f"partvisor-{platform_pid}-*") for _, place in places()]


def remove_leftovers(parent: Path) -> list[Path]:
    """Cgroups of brokers that are dead; what could not be removed stays. Returns those that are gone."""
    removed = []
    for folder in sorted(parent.glob("partvisor-*-*-*")):
        match = _NAME.fullmatch(folder.name)
        if match is None or _start_of(int(match[1])) == int(match[2]):
            continue
        for inside in [*_below(folder), folder]:
            with contextlib.suppress(OSError):
                inside.rmdir()
        if not folder.exists():
            removed.append(folder)
    return removed


def _path(member: Member, members: Mapping[int, Member]) -> list[int]:
    """Ids from the top group down to this one."""
    path = [member.id]
    while member.parent is not None:
        member = members[member.parent]
        path.insert(0, member.id)
    return path


def _below(folder: Path) -> list[Path]:
    """All cgroups in it, the innermost first."""
    found = [Path(place) for place, _, _ in os.walk(folder, topdown=False)]
    return [place for place in found if place != folder]


def _start_of(pid: int) -> int | None:
    """When a process began, in ticks since boot: with its pid, a name that nobody else ever has. None: it is dead."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _write(file: Path, value: object) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    except OSError as error:
        error.filename = str(file)
        raise
    finally:
        os.close(fd)
