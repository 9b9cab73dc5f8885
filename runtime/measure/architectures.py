"""One boot of a machine, measured: what its guests' loads came to, what that cost in every process, and who was there.

    boot = measure(load("configs/compare.toml", ["machine.architecture=hosted"]), survey=True)

The guests say when a load begins and what came of it (`partitions.measuring`). Between the two, what every process of
the machine has used is read from /proc: here, outside of all of them. Rounds are interleaved by the caller: what
disturbs the host then disturbs every architecture.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bus.native import Histogram
from bus.trace import STAMPS
from runtime.config.model import MachineConfig
from runtime.exits import CommandError, ExitCode
from runtime.loaded_code import ASK_VARIABLE
from runtime.loaded_code import EVENT as CODE_EVENT
from runtime.machine.events import Event
from runtime.machine.launch import run_in_foreground
from runtime.measure import data_access
from runtime.measure.data_access import HYPERVISOR, Survey
from runtime.measure.process_usage import Usage, thread_times_ns
from runtime.measure.resident_memory import resident_bytes
from runtime.measure.trusted_code import CodeBytes, ProcessCode, added_in_turn, added_up, mapped_code
from runtime.measure.workload_report import BEGINS_EVENT, ENDS_EVENT, WorkloadReport, load_name
from runtime.reserved_names import ROOT

_WORDS_KEPT: Final = 3  # lines of what partitions printed last, when something fails
_WORDS_CHARACTERS_MAX: Final = 300


class NothingMeasured(CommandError):
    """The machine ran, and no guest reported a load."""


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """One load of one boot; of several guests that report one of this name, all together."""

    name: str
    guests: tuple[str, ...]
    transfer_bytes: int
    depth: int
    operations: int
    seconds: float  # of the slowest
    latency: Histogram
    usage: Mapping[str, Usage]  # of each process, by its partition, from the first begin to the last end
    threads: Mapping[int, int] = field(
        default_factory=dict
    )  # ns of each of the root's, if they were asked for

    @property
    def per_second(self) -> float:
        return self.operations / self.seconds

    @property
    def total(self) -> Usage:
        return sum(self.usage.values(), Usage())

    @property
    def cpu_ns_per_request(self) -> float:
        """Of all processes together."""
        return self.total.cpu_ns / self.operations

    @property
    def switches_per_request(self) -> float:
        total = self.total
        return (total.voluntary_switches + total.involuntary_switches) / self.operations


@dataclass(frozen=True, slots=True)
class Findings:
    """What does not change from round to round: who sees the data, and how much code is trusted with it."""

    survey: Survey
    trusted: tuple[str, ...]  # processes: those that see the data, the root and the hypervisor
    code: (
        CodeBytes | None
    )  # of them together; None: one of them did not say what it loaded, or may not be seen
    code_of: Mapping[str, CodeBytes]  # of each process that said so
    code_added: Mapping[str, CodeBytes]  # of the trusted ones, in their order: what those before it have not


@dataclass(frozen=True, slots=True)
class Boot:
    loads: tuple[LoadFigures, ...]
    resident_bytes: Mapping[str, int]  # of each process, during the last load
    findings: Findings | None  # if they were asked for


@dataclass(slots=True)
class _OpenLoad:
    """Between its first guest's begin and its last one's end."""

    before: Mapping[str, Usage]
    threads_before: Mapping[int, int]
    reports: dict[str, WorkloadReport] = field(default_factory=dict)
    after: Mapping[str, Usage] = field(default_factory=dict)
    threads_after: Mapping[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Watch:
    """Listens to a machine, and looks at its processes when its guests say so."""

    config: MachineConfig
    wants_survey: bool
    wants_threads: bool = False
    pids: dict[str, int] = field(default_factory=dict)
    loads: dict[str, _OpenLoad] = field(default_factory=dict)
    resident: Mapping[str, int] = field(default_factory=dict)
    survey: Survey | None = None
    surveyed_twice: bool = False
    mapped: dict[str, dict[str, int]] = field(default_factory=dict)
    modules: dict[str, list[str]] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    error: CommandError | None = None

    def hear(self, event: Event, encoded: bytes) -> None:
        if self.error is not None:
            return
        try:
            self._hear(event)
        except CommandError as error:  # the machine runs on to its end
            self.error = error

    def _hear(self, event: Event) -> None:
        match event.kind:
            case "root.started":
                self.pids[ROOT] = int(event.fields["pid"])
            case "hypervisor.started":
                self.pids[HYPERVISOR] = int(event.fields["pid"])
            case "partition.started" if event.fields["pid"] != self.pids.get(HYPERVISOR):
                self.pids[str(event.partition)] = int(event.fields["pid"])
            case kind if kind == BEGINS_EVENT:
                self._begins(event.fields)
            case kind if kind == ENDS_EVENT:
                self._ended(str(event.partition), event.fields)
            case kind if kind == CODE_EVENT:
                self._take_code(event.fields)
            case "output":
                self.words.append(str(event.fields.get("text")))

    def _begins(self, fields: Mapping[str, Any]) -> None:
        with contextlib.suppress(ValueError):  # its end will be refused
            self.loads.setdefault(load_name(fields), _OpenLoad(self._usage(), self._threads()))
        if self.wants_survey and self.survey is None:
            self.survey = self._survey()
            for name, pid in self.pids.items():
                with contextlib.suppress(OSError):
                    self.mapped[name] = mapped_code(pid)

    def _survey(self) -> Survey:
        guests = [self.config.path_of(partition.name) for partition in self.config.partitions]
        backing = [device.path for device in self.config.root.devices if device.path is not None]
        return data_access.survey(self.pids, guests, backing)

    def _usage(self) -> dict[str, Usage]:
        return {name: Usage.of_process(pid) for name, pid in self.pids.items()}

    def _threads(self) -> dict[int, int]:
        return thread_times_ns(self.pids[ROOT]) if self.wants_threads else {}

    def _ended(self, guest: str, fields: Mapping[str, Any]) -> None:
        after, threads = self._usage(), self._threads()
        report = WorkloadReport.from_fields(guest, fields)
        if report.mismatches:
            raise CommandError(
                f"{guest}: {report.mismatches} answers in {report.name!r} were not what they had to be"
            )
        if (load := self.loads.get(report.name)) is None or guest in load.reports:
            raise CommandError(f"{guest} reported the end of {report.name!r} twice, or no begin of it")
        load.reports[guest], load.after, load.threads_after = report, after, threads
        self.resident = resident_bytes(self.pids, HYPERVISOR)
        if self.survey is not None and not self.surveyed_twice:  # now everything has been used once
            self.survey, self.surveyed_twice = self.survey.with_more(self._survey()), True

    def _take_code(self, fields: Mapping[str, Any]) -> None:
        """From whoever: a process speaks for the pid that it has, and a guest's word is used for nothing."""
        names = {pid: name for name, pid in self.pids.items()}
        folders = fields.get("folders")
        if (name := names.get(fields.get("pid", 0))) is None or not isinstance(folders, dict):
            return
        files = [f"{folder}/{file}" for folder, inside in folders.items() for file in inside]
        self.modules.setdefault(name, []).extend(files)

    @property
    def last_words(self) -> str:
        """What partitions printed last, for an error's one line."""
        said = " ".join(" ".join(self.words[-_WORDS_KEPT:]).split())
        return f"; a partition said: {said[-_WORDS_CHARACTERS_MAX:]}" if said else ""

    def findings(self) -> Findings | None:
        if self.survey is None:
            return None
        trusted = tuple(dict.fromkeys([HYPERVISOR, ROOT, *self.survey.seen_by]))
        known = {
            name: ProcessCode.of(self.modules[name], mapped)
            for name, mapped in self.mapped.items()
            if name in self.modules
        }
        codes = [known[name] for name in trusted if name in known]
        whole = len(codes) == len(trusted) and self.survey.is_complete
        return Findings(
            self.survey,
            trusted,
            added_up(codes) if whole else None,
            {name: added_up([code]) for name, code in known.items()},
            dict(zip(trusted, added_in_turn(codes), strict=True)) if whole else {},
        )


def measure(
    machine: MachineConfig,
    *,
    survey: bool = False,
    threads: bool = False,
    trace: Path | None = None,
    trace_stamps: int = STAMPS,
) -> Boot:
    """Boot it and let its guests do what they do, to the end.

    Args:
        survey: find out who sees the data, too, and how much code is trusted. It disturbs nothing that is measured.
        threads: find out what each of the root's threads has used, too.
        trace: where the stamps of all hops go at the end, `trace_stamps` of each thread at most.

    Raises:
        NothingMeasured: no guest reported a load.
        CommandError: it did not start or failed, or a guest got an answer that was wrong.
        KeyboardInterrupt: nothing of it is left.
    """
    watch = _Watch(machine, survey, threads)
    try:
        with _asked_for_code() if survey else contextlib.nullcontext():
            ended = run_in_foreground(machine, watch.hear, trace=trace, trace_stamps=trace_stamps)
    except CommandError as error:
        raise watch.error or CommandError(f"{error}{watch.last_words}") from error
    if ended == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if watch.error is not None:
        raise watch.error
    loads = tuple(
        _figures(name, load)
        for name, load in watch.loads.items()
        if load.reports  # one that has only begun was cut short: the machine failed
    )
    if not loads:
        raise NothingMeasured(
            "no guest reported a load: let it do its work within partition.measuring(...), see docs/isolation.md"
            + watch.last_words
        )
    if ended != ExitCode.DONE:
        raise CommandError(f"the machine failed{watch.last_words}; see: partvisor run")
    return Boot(loads, watch.resident, watch.findings())


def _figures(name: str, load: _OpenLoad) -> LoadFigures:
    reports = list(load.reports.values())
    latency = Histogram()
    for report in reports:
        latency.merge(report.latency)
    return LoadFigures(
        name=name,
        guests=tuple(load.reports),
        transfer_bytes=reports[0].transfer_bytes,
        depth=reports[0].depth,
        operations=sum(report.operations for report in reports),
        seconds=max(report.seconds for report in reports),
        latency=latency,
        usage={
            process: used.since(load.before.get(process, Usage())) for process, used in load.after.items()
        },
        threads={
            thread: max(ns - load.threads_before.get(thread, 0), 0)
            for thread, ns in load.threads_after.items()
        },
    )


@contextlib.contextmanager
def _asked_for_code() -> Iterator[None]:
    """Processes of machines that begin within say at their end what they have loaded."""
    os.environ[ASK_VARIABLE] = "1"
    try:
        yield
    finally:
        del os.environ[ASK_VARIABLE]
