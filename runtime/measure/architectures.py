"""One config under each architecture: what a request costs there, and whom.

    for number in range(5):
        for architecture in Architecture:
            samples.append(measure("configs/some.toml", architecture))

The config's guest is `partitions.guests.disk_load`: it checks each block that it reads, and says when a load begins
and what came of it. Between the two, what every process of the machine has used is read from /proc, here, outside of
all of them. Rounds are to be interleaved by the caller: what disturbs the host then disturbs every architecture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from runtime.architecture import Architecture
from runtime.config import load
from runtime.events import Event
from runtime.exits import CommandError, ExitCode
from runtime.launch import run_in_foreground
from runtime.measure.process_usage import Usage

_OWN_FIELDS: Final = {
    "name",
    "transfer_bytes",
    "depth",
    "operations",
    "seconds",
    "p50_ns",
    "p99_ns",
    "p999_ns",
}


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """One load of the guest. Latencies are 0 where single requests were not timed."""

    name: str
    transfer_bytes: int
    depth: int
    operations: int
    seconds: float
    p50_ns: int
    p99_ns: int
    p999_ns: int
    usage: Mapping[str, Usage]  # of each process, by its partition; the broker is "hypervisor"

    @property
    def operations_per_second(self) -> float:
        return self.operations / self.seconds

    @property
    def cpu_ns_per_request(self) -> float:
        """Of all processes together."""
        return sum(usage.cpu_ns for usage in self.usage.values()) / self.operations

    @property
    def switches_per_request(self) -> float:
        total = sum(usage.voluntary_switches + usage.involuntary_switches for usage in self.usage.values())
        return total / self.operations


@dataclass(frozen=True, slots=True)
class ArchitectureSample:
    """One boot."""

    architecture: Architecture
    loads: tuple[LoadFigures, ...]
    resident_bytes: Mapping[str, int]  # of each process, during the last load
    opened_file: tuple[str, ...]  # processes that had the first disk's backing file open


@dataclass(slots=True)
class _Watch:
    """Listens to a machine, and looks at its processes when its guest says so."""

    backing: Path | None
    pids: dict[str, int] = field(default_factory=dict)
    before: dict[str, Usage] = field(default_factory=dict)
    loads: list[LoadFigures] = field(default_factory=list)
    resident: dict[str, int] = field(default_factory=dict)
    opened: tuple[str, ...] = ()
    mismatches: int = 0
    words: list[str] = field(default_factory=list)

    def hear(self, event: Event, encoded: bytes) -> None:
        match event.kind:
            case "root.started":
                self.pids["root"] = int(event.fields["pid"])
            case "hypervisor.started":
                self.pids["hypervisor"] = int(event.fields["pid"])
            case "partition.started" if event.fields["pid"] != self.pids.get("hypervisor"):
                self.pids[str(event.partition)] = int(event.fields["pid"])
            case "guest.disk_load_begins":
                if self.backing is not None:
                    self.opened = tuple(
                        name for name, pid in self.pids.items() if _has_open(pid, self.backing)
                    )
                self.before = self._usage()
            case "guest.disk_load":
                self._ended(event.fields)
            case "output":
                self.words.append(str(event.fields.get("text")))

    def _usage(self) -> dict[str, Usage]:
        return {name: Usage.of_process(pid) for name, pid in self.pids.items()}

    def _ended(self, fields: Mapping[str, Any]) -> None:
        after = self._usage()
        usage = {name: used.since(self.before.get(name, Usage())) for name, used in after.items()}
        self.loads.append(LoadFigures(**{name: fields[name] for name in _OWN_FIELDS}, usage=usage))
        self.mismatches += int(fields["mismatches"])
        self.resident = {name: _resident_bytes(pid) for name, pid in self.pids.items()}


def measure(
    config: str | Path, architecture: Architecture, overrides: Sequence[str] = ()
) -> ArchitectureSample:
    """Boot the machine of a config under that architecture, and let its guest do what it does, to the end.

    Raises CommandError: it did not start, or its guest read a block that was not what it had written.
    """
    machine = load(config, (*overrides, f"machine.architecture={architecture}"))
    disks = [device.path for device in machine.root.devices if device.path is not None]
    watch = _Watch(disks[0] if disks else None)
    if run_in_foreground(machine, watch.hear) == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if watch.mismatches:
        raise CommandError(f"{architecture}: {watch.mismatches} blocks did not have the CRC that was written")
    if not watch.loads:
        raise CommandError(f"{architecture}: the guest measured nothing: {' '.join(watch.words[-3:])}")
    return ArchitectureSample(architecture, tuple(watch.loads), watch.resident, watch.opened)


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


def _has_open(pid: int, file: Path) -> bool:
    try:
        links = [entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return file.resolve() in links
