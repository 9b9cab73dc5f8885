"""What `partvisor run --trace` needs of the platform: trace memory for every process, and a file of it at the end.

Each process gets memory of its own, so none can see or spoil what another stamped. The platform keeps every descriptor,
and reads when all of them have ended, or when it is asked to.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from bus.native import monotonic_ns, tsc_is_invariant, tsc_sample
from bus.trace import STAMPS, MalformedTrace, TraceReader, create_trace
from runtime.abi import FILES_PER_PROGRAM_MAX
from runtime.config.model import MachineConfig, PartitionConfig
from runtime.machine.events import EventLog
from runtime.reserved_names import HYPERVISOR, ROOT
from runtime.trace_file import Capture, Moment, Process


def now(uses_tsc: bool) -> Moment:
    """The same moment on both clocks."""
    if uses_tsc:
        ticks, ns = tsc_sample()
        return Moment(ticks, ns)
    ns = monotonic_ns()
    return Moment(ns, ns)


class MachineTrace:
    """The traces of one machine. Made before anything runs."""

    def __init__(self, config: MachineConfig, stamps: int = STAMPS) -> None:
        self._uses_tsc = tsc_is_invariant()
        self._stamps = stamps
        self._begin = now(self._uses_tsc)
        self._readers: dict[str, TraceReader] = {}
        self.drivers: Final = config.drivers
        for name in (HYPERVISOR, ROOT, *config.drivers, *_with_room(config.partitions)):
            fd = create_trace(f"trace-{name}", uses_tsc=self._uses_tsc, stamps=stamps)
            self._readers[name] = TraceReader(fd, stamps=stamps)

    def descriptor(self, name: str) -> int | None:
        """Ours to keep. None: that partition is not traced."""
        return self._readers[name].fd if name in self._readers else None

    def of_root(self) -> dict[str, int]:
        """What each process of the root gets: its own, and those of its driver partitions, to be handed on."""
        return {name: self._readers[name].fd for name in (ROOT, *self.drivers)}

    def fileno(self) -> int:
        """Of the hypervisor's."""
        return self._readers[HYPERVISOR].fd

    def capture(self) -> Capture:
        """What there is by now. A process that broke its trace has none."""
        end, processes = now(self._uses_tsc), []
        for name, reader in self._readers.items():
            with contextlib.suppress(MalformedTrace):
                tracks = tuple(reader.tracks())
                processes.append(Process(name, tuple(reader.names()), tracks, reader.untracked))
        return Capture(self._begin, end, tuple(processes))

    def write(self, path: Path, log: EventLog) -> None:
        """That it cannot be kept is an event, no more."""
        try:
            path.write_bytes(self.capture().encode())
        except OSError as error:
            log.append("machine.no_trace", reason=str(error))
        else:
            log.append("machine.trace", path=str(path))

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()


def _with_room(partitions: Sequence[PartitionConfig]) -> Iterator[str]:
    """Those whose birth, and that of all above them, has room for one more file. A parent gets all files below it."""
    parents = {partition.name: partition.parent for partition in partitions}
    handed = dict.fromkeys(parents, 0)  # files, and one more for a parent, which says what they are

    def line_of(name: str) -> list[str]:
        return [name, *line_of(parents[name])] if name in parents else []

    for partition in partitions:
        for name in line_of(partition.name):
            handed[name] += len(partition.files)
    for parent in set(parents.values()) - {ROOT}:
        handed[parent] += 1
    for name in parents:
        if all(handed[each] < FILES_PER_PROGRAM_MAX for each in line_of(name)):
            for each in line_of(name):
                handed[each] += 1
            yield name


@contextlib.contextmanager
def machine_trace(
    config: MachineConfig, path: Path | None, stamps: int = STAMPS
) -> Iterator[MachineTrace | None]:
    """None without a path."""
    if path is None:
        yield None
        return
    trace = MachineTrace(config, stamps)
    try:
        yield trace
    finally:
        trace.close()
