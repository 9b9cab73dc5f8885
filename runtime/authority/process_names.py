"""Who the processes of a machine are, by what the hypervisor says of its partitions and the config asks for."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from runtime.authority.proc_files import Census
from runtime.authority.vocabulary import JANITOR, PLATFORM, USER_NETWORK, programs_of

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tables:
    """What the hypervisor and the root say."""

    partitions: Sequence[Row]  # id, name, pid, ...
    objects: Sequence[Row]
    processes: Mapping[str, int]  # pid by role
    memory: Mapping[str, Sequence[Row]] = field(default_factory=dict)  # by owner: device, gpfn, pages


class ProcessNames:
    """One name for each process, those that nobody knows included."""

    def __init__(self, census: Census, tables: Tables, expected: Collection[str]) -> None:
        """`expected`: processes beside the hypervisor's partitions that the config asks for, by name."""
        self._names = {pid: role for role, pid in tables.processes.items()} | {census.platform: PLATFORM}
        self._partitions: dict[int, int] = {}
        for row in tables.partitions:
            pid = row["pid"]
            if pid is not None and pid not in self._names:  # a resident driver has the hypervisor's
                self._names[pid], self._partitions[pid] = str(row["name"]), row["id"]
        self.strangers: Final[list[str]] = []  # that nobody knows
        for pid, comm in sorted(census.names.items()):
            if pid not in self._names:
                helper = self._helper(census, pid, comm)
                if helper == JANITOR or helper in expected:
                    self._names[pid] = helper
                else:
                    self._names[pid] = f"{comm} (pid {pid})"
                    self.strangers.append(self._names[pid])

    def of(self, pid: int) -> str:
        """Also of one that is no more, or is not of this machine. Not positive: the kernel says that it has ended."""
        return self._names.get(pid, "one that has ended" if pid <= 0 else f"pid {pid}")

    def partition_of(self, pid: int) -> int | None:
        """Its partition's id; None: it is no partition's process."""
        return self._partitions.get(pid)

    def _helper(self, census: Census, pid: int, comm: str) -> str:
        """What it would be, if the config asked for such a process; "" is none."""
        if census.parents[pid] == census.platform:
            return JANITOR if comm == "sh" else USER_NETWORK if comm.startswith(USER_NETWORK) else ""
        while pid in census.parents and pid != census.platform:
            pid = census.parents[pid]
            if pid in self._partitions:
                return programs_of(self._names[pid])
        return ""
