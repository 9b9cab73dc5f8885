"""`partvisor compare`: one config in many variants, in interleaved rounds; what was measured, and what may be said.

Each round boots the machine once in each variant, in an order of its own that the seed decides. The first round also
finds out who sees the data and how much code is trusted, which does not change. A variant that fails is measured no
further, and stays in the result with its reason.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bus.native import Histogram
from runtime.config.document import ConfigError
from runtime.config.loading import load
from runtime.config.model import MachineConfig
from runtime.exits import CommandError
from runtime.measure.architectures import Boot, Findings, LoadFigures, NothingMeasured, measure
from runtime.measure.compare_matrix import Terms, Variant, not_applicable, order_of, terms_of
from runtime.measure.compare_noise import Question, Statement, answer_all
from runtime.measure.results import Conditions, Placement, Status, new_id, now_unix_ns

ROUNDS: Final = 5  # fewer know too little of their own spread
PERCENTS: Final = (50.0, 99.0, 99.9)
_REASON_CHARACTERS_MAX: Final = 500

Progress = Callable[[str], None]
MeasureLimit = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """What to compare, and how."""

    source: str | Path  # of the config
    variants: Sequence[Variant]  # the first one is the config's own
    overrides: Sequence[str] = ()
    rounds: int = ROUNDS
    seed: int = 1
    label: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One boot of one variant."""

    at_s: float  # since the first one
    limit_ns: float | None  # what two C processes needed just before; None: nobody measured it
    boot: Boot

    def load(self, name: str) -> LoadFigures | None:
        return next((each for each in self.boot.loads if each.name == name), None)


@dataclass(slots=True)
class Entry:
    """One variant, while it is measured and afterwards."""

    variant: Variant
    terms: Terms
    status: Status = Status.OK
    reason: str = ""  # why it is not ok
    turns: list[Turn] = field(default_factory=list)

    @property
    def is_measured(self) -> bool:
        return self.status is Status.OK

    @property
    def findings(self) -> Findings | None:
        return next((turn.boot.findings for turn in self.turns if turn.boot.findings is not None), None)

    def figures(self, name: str) -> list[LoadFigures]:
        """Of the load of that name, a turn each."""
        return [found for turn in self.turns if (found := turn.load(name)) is not None]

    def latency(self, name: str) -> Histogram:
        whole = Histogram()
        for each in self.figures(name):
            whole.merge(each.latency)
        return whole

    @property
    def resident_bytes(self) -> list[int]:
        """Of all processes together, a turn each."""
        return [sum(turn.boot.resident_bytes.values()) for turn in self.turns]


@dataclass(frozen=True, slots=True)
class Result:
    """What `partvisor compare` shows."""

    id: str
    source: str
    started_unix_ns: int
    seconds: float
    seed: int
    rounds: int
    label: str
    conditions: Conditions
    placement: Placement
    entries: tuple[Entry, ...]  # the config's own first

    @property
    def own(self) -> Entry:
        return self.entries[0]

    @property
    def load_names(self) -> list[str]:
        return list(dict.fromkeys(each.name for turn in self.own.turns for each in turn.boot.loads))


def compare(
    options: CompareOptions,
    conditions: Conditions,
    progress: Progress = lambda line: None,
    measure_limit: MeasureLimit | None = None,
) -> Result:
    """Measure everything that was asked for.

    Raises:
        ConfigError: the config itself is wrong.
        CommandError: its own variant cannot be measured, so there is nothing to compare with.
        KeyboardInterrupt: no machine is left.
    """
    config = load(options.source, options.overrides)
    entries = [Entry(variant, terms_of(variant, config)) for variant in options.variants]
    machines: dict[int, MachineConfig] = {}
    for index, entry in enumerate(entries):
        found = machine_of(entry.variant, config, options.source, options.overrides)
        if isinstance(found, MachineConfig):
            machines[index] = found
        else:
            entry.status, entry.reason = Status.NOT_POSSIBLE, found[:_REASON_CHARACTERS_MAX]
    if not entries[0].is_measured:
        raise CommandError(f"{options.source}: {entries[0].reason}")
    running = sum(entry.is_measured for entry in entries)
    progress(f"variants: {running}, rounds: {options.rounds}, order by seed {options.seed}")
    started_unix_ns, began = now_unix_ns(), time.monotonic()
    for number in range(options.rounds):
        for place, index in enumerate(order_of(len(entries), number, options.seed)):
            entry = entries[index]
            if entry.is_measured:
                _take_turn(entry, machines[index], number == 0, began, measure_limit, is_own=index == 0)
                progress(_progress_line(number, place, len(entries), options.rounds, began, entry))
    _check_loads(entries)
    return Result(
        id=new_id(),
        source=str(options.source),
        started_unix_ns=started_unix_ns,
        seconds=time.monotonic() - began,
        seed=options.seed,
        rounds=options.rounds,
        label=options.label,
        conditions=conditions,
        placement=placement_of(config),
        entries=tuple(entries),
    )


def _check_loads(entries: Sequence[Entry]) -> None:
    """Every turn of every variant has the same loads, or there is nothing to pair. A variant that has others failed."""
    wanted = {each.name for each in entries[0].turns[0].boot.loads}
    for entry in entries:
        for turn in entry.turns:
            if (found := {each.name for each in turn.boot.loads}) == wanted or not entry.is_measured:
                continue
            reason = f"it reported the loads {sorted(found)}, and not {sorted(wanted)}, as the first one did"
            if entry is entries[0]:
                raise CommandError(f"{entry.terms.name}: {reason}")
            entry.status, entry.reason = Status.FAILED, reason[:_REASON_CHARACTERS_MAX]


def placement_of(config: MachineConfig) -> Placement:
    """Where the config puts guests and root. The hypervisor runs where the kernel puts it."""
    guests = {frozenset(partition.cpus) for partition in config.partitions}
    places = guests | {frozenset(config.root.cpus)}
    if any(len(each) != 1 for each in places):
        return Placement.UNPINNED
    return Placement.SAME_CPU if len(places) == 1 else Placement.TWO_CPUS


def machine_of(
    variant: Variant, config: MachineConfig, source: str | Path, overrides: Sequence[str] = ()
) -> MachineConfig | str:
    """The config of a variant; or, in a line, why there is no such machine."""
    if (reason := not_applicable(variant, config)) is not None:
        return reason
    try:
        return load(source, [*overrides, *variant.overrides(config)])
    except ConfigError as error:
        return error.problems[0].text(str(source)).partition("\n")[0]


def _take_turn(
    entry: Entry,
    machine: MachineConfig,
    survey: bool,
    began: float,
    measure_limit: MeasureLimit | None,
    *,
    is_own: bool,
) -> None:
    at_s = time.monotonic() - began
    limit_ns = None if measure_limit is None else measure_limit()
    try:
        entry.turns.append(Turn(at_s, limit_ns, measure(machine, survey=survey)))
    except NothingMeasured:
        raise  # in every variant the same: the guest does not report
    except CommandError as error:
        if is_own:
            raise
        entry.status = Status.FAILED
        entry.reason = str(error).partition("\n")[0][:_REASON_CHARACTERS_MAX] or type(error).__name__


def _progress_line(number: int, place: int, places: int, rounds: int, began: float, entry: Entry) -> str:
    done = number * places + place + 1
    left_s = (time.monotonic() - began) / done * (rounds * places - done)
    state = "" if entry.is_measured else f" failed: {entry.reason}"
    about = f"; about {left_s:.0f} s to go" if done < rounds * places else ""
    return f"round {number + 1} of {rounds}: {entry.terms.name}{state}{about}"


# -- what may be said ---------------------------------------------------------------------------------------

COLUMNS: Final = ("p50", "p99", "p99.9", "throughput", "CPU per request", "switches per request")
RESIDENT: Final = "resident memory"
_FIGURES: Final = (
    "per_second",
    "cpu_ns_per_request",
    "switches_per_request",
)  # of those behind the percentiles


def statements(result: Result) -> dict[tuple[int, str], list[Statement]]:
    """By variant's index and load: a statement for each column, against the config's own variant. The resident memory
    of a variant stands under the load ""."""
    questions: list[Question] = []
    for index, entry in enumerate(result.entries[1:], start=1):
        if not entry.is_measured:
            continue
        for name in result.load_names:
            questions += _questions_of(index, name, result.own, entry)
        questions.append(Question(index, "", RESIDENT, result.own.resident_bytes, entry.resident_bytes))
    found: dict[tuple[int, str], list[Statement]] = {}
    for question, statement in zip(questions, answer_all(questions, result.seed), strict=True):
        found.setdefault((question.variant, question.load), []).append(statement)
    return found


def _questions_of(index: int, name: str, own: Entry, entry: Entry) -> list[Question]:
    ours, theirs = own.figures(name), entry.figures(name)
    latencies = [[one.latency for one in side] for side in (ours, theirs)]
    found = [
        Question(index, name, column, latencies[0], latencies[1], percent)
        for column, percent in zip(COLUMNS, PERCENTS, strict=False)
    ]
    for column, figure in zip(COLUMNS[len(PERCENTS) :], _FIGURES, strict=True):
        values = [[float(getattr(one, figure)) for one in side] for side in (ours, theirs)]
        found.append(Question(index, name, column, values[0], values[1]))
    return found
