"""`partvisor bench ladder`: one request and its reply over every way for two processes to talk, in one run.

Rounds are interleaved: each measures every row once, beside the limit, so that what drifts drifts for all. Nothing is
left out silently: a row that cannot be measured stands in the result with its reason.
"""

import contextlib
import fnmatch
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from runtime.exits import CommandError
from runtime.measure.conditions import busy_text, read_conditions, read_revision, read_versions
from runtime.measure.keep_awake import kept_awake
from runtime.measure.ladder_hops import with_hops
from runtime.measure.ladder_rows import LIMIT, MachineRow, Machines, all_rows, c_row
from runtime.measure.pace import Pace
from runtime.measure.reference_programs import ReferencePrograms, reference_programs
from runtime.measure.results import (
    IdleCpus,
    Mode,
    Placement,
    Round,
    Row,
    Run,
    Status,
    new_id,
    now_unix_ns,
)
from runtime.measure.sample import Contestant, Order, Sample, SampleFailed
from runtime.measure.sampling import Take, take_sample
from runtime.measure.transport import Impossible, NotInstalled, Transport
from runtime.measure.transport_pair import TransportRow

ROUNDS: Final = 5
SECONDS: Final = 0.1  # of one sample
QUICK_ROUNDS: Final = 1
QUICK_SECONDS: Final = 0.03
PAYLOADS: Final = (64, 4096, 65_536)
LIMIT_SECONDS: Final = 0.01
LIMIT_TRIES_MAX: Final = 5
BESIDE_SAMPLE_S: Final = 0.07  # what a sample takes beside itself: its limits, processes, warming up
LIMIT_EXCHANGES_MIN: Final = 100  # fewer say that the two sides hardly ever ran at once
PEERS: Final = ("pyzmq", "iceoryx2", "unicorn")  # distributions whose versions belong to the conditions


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderOptions:
    """What to measure, and how."""

    cpus: tuple[int, int]
    payloads: Sequence[int] = PAYLOADS
    placements: Sequence[Placement] = (Placement.TWO_CPUS,)
    rates_per_s: Sequence[float] = ()  # open loop at each of them; none: closed
    only: Sequence[str] = ()  # globs of rows; none: all
    awake: bool = False
    rounds: int = ROUNDS
    seconds: float = SECONDS
    transports: Sequence[type[Transport]] = ()  # the user's own
    label: str = ""
    hops: bool = False  # and where the time of an exchange goes, of rows that can be traced


@dataclass(slots=True)
class _Plan:
    """One row of the result while it grows."""

    contestant: Contestant
    head: Row  # without rounds
    order: Order
    rounds: list[Round] = field(default_factory=list)
    status: Status = Status.OK
    reason: str | None = None

    def row(self) -> Row:
        if self.status is Status.OK and not any(not one.changed for one in self.rounds):
            self.status = Status.FAILED
            self.reason = "the limit changed during every sample: run it again when the machine is quiet"
        rounds = tuple(self.rounds) if self.status is Status.OK else ()
        return _changed(self.head, self.status, self.reason, rounds)


def measure(options: LadderOptions, progress: Callable[[str], None] = lambda line: None) -> Run:
    """Measure everything that was asked for.

    Raises:
        CommandError: no C compiler, a CPU that may not be used, or names that fit nothing.
    """
    row_names(options)
    placed = {one: _cpus_of(one, options.cpus) for one in Placement}
    idle = IdleCpus.KEPT_AWAKE if options.awake else IdleCpus.UNKNOWN
    conditions = read_conditions(options.cpus, idle)
    begin_unix_ns, begin = now_unix_ns(), time.monotonic()
    with contextlib.ExitStack() as stack:
        programs = stack.enter_context(reference_programs())
        machines = stack.enter_context(Machines())
        contestants = [*all_rows(programs, machines), *_own(options.transports)]
        plans = list(_plans(contestants, options, placed))
        machines.need(plan.contestant for plan in plans if isinstance(plan.contestant, MachineRow))
        if options.awake:
            stack.enter_context(kept_awake(sorted(set(options.cpus))))
        limit = c_row(programs, LIMIT)

        def limit_of(payload_bytes: int) -> float:
            size = payload_bytes if payload_bytes in options.payloads else min(options.payloads)
            return _limit_ns(limit.measure, size, options.cpus)

        if busy := busy_text(conditions.load_before):
            progress(busy)
        pace = Pace(options.rounds, len(plans), options.seconds + BESIDE_SAMPLE_S, "rows", progress)
        for number in range(options.rounds):
            for index, plan in enumerate(plans):
                pace.tell(number, index)
                _measure_once(plan, limit_of, begin)
    rows = [plan.row() for plan in plans]
    if options.hops:
        rows = with_hops(rows, options.cpus, progress)
    progress(f"{len(rows)} rows in {time.monotonic() - begin:.0f} s")
    return Run(
        id=new_id(),
        bench="ladder",
        started_unix_ns=begin_unix_ns,
        revision=read_revision(),
        versions=read_versions(PEERS),
        conditions=conditions,
        rows=tuple(rows),
        label=options.label,
    )


def row_names(options: LadderOptions) -> list[str]:
    """What `measure` would measure, without measuring. CommandError: nothing has such a name."""
    contestants = [*all_rows(ReferencePrograms(Path(), False), Machines()), *_own(options.transports)]
    placed = {one: _cpus_of(one, options.cpus) for one in Placement}
    names = [plan.head.name for plan in _plans(contestants, options, placed)]
    if not names:
        raise CommandError(
            f"--only {' '.join(options.only)}: no row has such a name; see partvisor bench ladder --list"
        )
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CommandError(
            f"two transports would be called {twice.partition('/')[0]}: give yours another name"
        )
    return names


def _own(transports: Sequence[type[Transport]]) -> list[TransportRow]:
    return [TransportRow.of_class(transport) for transport in transports]


def _cpus_of(placement: Placement, cpus: tuple[int, int]) -> tuple[frozenset[int], frozenset[int]]:
    """Where the client and the server may run."""
    allowed = os.sched_getaffinity(0)
    if missing := set(cpus) - allowed:
        raise CommandError(f"CPU {min(missing)} may not be used; {', '.join(map(str, sorted(allowed)))} may")
    first, second = cpus
    match placement:
        case Placement.SAME_CPU:
            return frozenset({first}), frozenset({first})
        case Placement.TWO_CPUS:
            return frozenset({first}), frozenset({second})
        case Placement.UNPINNED:
            return frozenset(allowed), frozenset(allowed)


def _plans(
    contestants: Collection[Contestant],
    options: LadderOptions,
    placed: dict[Placement, tuple[frozenset[int], frozenset[int]]],
) -> Iterator[_Plan]:
    """Every row that was asked for."""
    terms = [
        (placement, rate) for placement in options.placements for rate in (options.rates_per_s or (None,))
    ]
    for placement, rate in terms:
        for payload in options.payloads:
            for contestant in contestants:
                size = payload
                if contestant.fixed_payload is not None:
                    if payload != options.payloads[0]:
                        continue
                    size = contestant.fixed_payload
                head = _head(contestant, size, placement, rate)
                if _is_wanted(head, options.only):
                    yield _Plan(contestant, head, _order(size, options.seconds, placement, rate, placed))


def _order(
    size: int,
    seconds: float,
    placement: Placement,
    rate: float | None,
    placed: dict[Placement, tuple[frozenset[int], frozenset[int]]],
) -> Order:
    client, server = placed[placement]
    return Order(
        payload_bytes=size,
        seconds=seconds,
        placement=placement,
        client_cpus=client,
        server_cpus=server,
        rate_per_s=rate,
    )


_UNKNOWN: Final = "nobody has measured it"  # of a row before its first sample: never shown


def _head(contestant: Contestant, size: int, placement: Placement, rate: float | None) -> Row:
    return Row(
        transport=contestant.name,
        group=contestant.group,
        payload_bytes=size,
        waiting=contestant.waiting,
        placement=placement,
        mode=Mode.CLOSED if rate is None else Mode.OPEN,
        offered_per_s=rate,
        status=Status.FAILED,
        reason=_UNKNOWN,
    )


def _changed(head: Row, status: Status, reason: str | None, rounds: tuple[Round, ...]) -> Row:
    fields = {name: getattr(head, name) for name in head.__struct_fields__}
    return Row(**fields | {"status": status, "reason": reason, "rounds": rounds})


def _is_wanted(row: Row, only: Sequence[str]) -> bool:
    """By the transport alone, or by the row's whole name."""
    return not only or any(
        fnmatch.fnmatchcase(name, pattern) for pattern in only for name in (row.transport, row.name)
    )


def _limit_ns(measure_limit: Callable[[Order], Sample], size: int, cpus: tuple[int, int]) -> float:
    """p50 of the limit. Where others took a CPU away for most of the time, once more; the best of the tries."""
    order = Order(
        payload_bytes=size,
        seconds=LIMIT_SECONDS,
        placement=Placement.TWO_CPUS,
        client_cpus=frozenset({cpus[0]}),
        server_cpus=frozenset({cpus[1]}),
    )
    best = float("inf")
    for _ in range(LIMIT_TRIES_MAX):
        measured = measure_limit(order).measured
        best = min(best, max(measured.latency.percentile(50), 1))
        if measured.exchanges >= LIMIT_EXCHANGES_MIN:
            break
    return best


def _measure_once(plan: _Plan, limit_of: Callable[[int], float], begin: float) -> None:
    """One turn of a row, if it still has any: a row that failed, or can't be measured, is left alone."""
    contestant, order = plan.contestant, plan.order
    if plan.status is not Status.OK:
        return
    at_s = time.monotonic() - begin
    try:
        takes = take_sample(lambda: limit_of(order.payload_bytes), lambda: contestant.measure(order))
    except NotInstalled as error:
        plan.status, plan.reason = Status.NOT_INSTALLED, str(error)
    except Impossible as error:
        plan.status, plan.reason = Status.NOT_POSSIBLE, str(error)
    except (SampleFailed, OSError) as error:
        plan.status, plan.reason = Status.FAILED, str(error)[:500] or type(error).__name__
    else:
        plan.rounds += [_round_of(take, at_s) for take in takes]


def _round_of(take: Take[Sample], at_s: float) -> Round:
    measured, client, server = take.sample.measured, take.sample.client, take.sample.server
    both = client + server if client is not None and server is not None else None
    return Round(
        at_s=at_s,
        limit_ns=take.limit_ns,
        latency=measured.latency,
        exchanges=measured.exchanges,
        seconds=measured.seconds,
        client_cpu_ns=client.cpu_ns if client is not None else None,
        server_cpu_ns=server.cpu_ns if server is not None else None,
        voluntary_switches=both.voluntary_switches if both is not None else None,
        involuntary_switches=both.involuntary_switches if both is not None else None,
        wake_ups=both.voluntary_switches if both is not None else None,  # each sleep ended in one
        changed=take.changed,
    )


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
