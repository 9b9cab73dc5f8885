"""A comparison as a run of the result store, so that `partvisor bench list`, `show` and `compare` know it.

A row is a load in a variant: its latencies, what it cost, the limit just before. Who sees the data and what is trusted
are no figures of a row: `partvisor compare --json` and `--html` keep those.
"""

import re
from typing import Final

from runtime.config.model import WaitingKind
from runtime.measure.architectures import LoadFigures
from runtime.measure.compare_run import Entry, Result, Turn
from runtime.measure.conditions import read_revision, read_versions
from runtime.measure.process_usage import Usage
from runtime.measure.results import Round, Row, Run

BENCH: Final = "compare"
_NAME_CHARACTERS_MAX: Final = 64


def to_run(result: Result) -> Run:
    """ValueError: nobody measured the limit, which a stored round must have."""
    names = result.load_names
    rows = [
        _row(result, entry, name, number)
        for number, name in enumerate(names)
        for entry in result.entries
        if entry.is_measured
    ]
    rows += [_missing(result, entry) for entry in result.entries if not entry.is_measured]
    return Run(
        id=result.id,
        bench=BENCH,
        started_unix_ns=result.started_unix_ns,
        revision=read_revision(),
        versions=read_versions(),
        conditions=result.conditions,
        rows=tuple(rows),
        label=result.label,
    )


def _row(result: Result, entry: Entry, load: str, number: int) -> Row:
    return Row(
        transport=_transport(entry, load if len(result.load_names) > 1 else "", number),
        group=load,
        payload_bytes=entry.figures(load)[0].transfer_bytes,
        waiting=_waiting(entry),
        placement=result.placement,
        rounds=tuple(_round(turn, found) for turn in entry.turns if (found := turn.load(load)) is not None),
    )


def _missing(result: Result, entry: Entry) -> Row:
    return Row(
        transport=entry.terms.slug,  # with the waiting: no measured row is called so
        group="not measured",
        payload_bytes=0,
        waiting=_waiting(entry),
        placement=result.placement,
        status=entry.status,
        reason=entry.reason,
    )


def _transport(entry: Entry, load: str, number: int) -> str:
    """ "hosted.direct", with the load behind it where there are several: "hosted.direct.4-KiB-reads". The waiting
    stands in a field of its own."""
    terms = entry.terms
    words = [part for part in (terms.architecture, terms.route) if part != "-"]
    if load:
        words.append(re.sub(r"[^A-Za-z0-9]+", "-", load).strip("-") or str(number))
    name = ".".join(words)
    return name if len(name) <= _NAME_CHARACTERS_MAX else f"{name[: _NAME_CHARACTERS_MAX - 4]}.{number}"


def _waiting(entry: Entry) -> WaitingKind:
    """A process that sleeps in the kernel blocks; devices that differ are called adaptive."""
    if entry.terms.waiting == "-":
        return WaitingKind.BLOCK
    try:
        return WaitingKind(entry.terms.waiting)
    except ValueError:
        return WaitingKind.ADAPTIVE


def _round(turn: Turn, load: LoadFigures) -> Round:
    if turn.limit_ns is None:
        raise ValueError("a stored round needs the limit that was measured just before it")
    guests = sum((used for name, used in load.usage.items() if name in load.guests), Usage())
    others = sum((used for name, used in load.usage.items() if name not in load.guests), Usage())
    total = guests + others
    return Round(
        at_s=turn.at_s,
        limit_ns=turn.limit_ns,
        latency=load.latency,
        exchanges=load.operations,
        seconds=load.seconds,
        client_cpu_ns=guests.cpu_ns,
        server_cpu_ns=others.cpu_ns,
        voluntary_switches=total.voluntary_switches,
        involuntary_switches=total.involuntary_switches,
        wake_ups=total.voluntary_switches,
    )
