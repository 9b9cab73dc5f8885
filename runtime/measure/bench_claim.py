"""`partvisor bench claim`: is guest-to-guest communication orders of magnitude slower than a microkernel's IPC?

Every round measures every way once, in turns, and a factor is that of each round's own two figures. What it stands for
is in runtime.measure.claim_ways, how it is decided in runtime.measure.claim_decision.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from runtime.config.sizes import format_size
from runtime.drawing.scales import three_digits
from runtime.exits import CommandError
from runtime.measure.claim_decision import (
    ORDER_OF_MAGNITUDE,
    Answer,
    Cell,
    Key,
    Makeup,
    Overall,
    Peers,
    compare,
    makeup,
    overall,
)
from runtime.measure.claim_ways import (
    GUEST_WAYS,
    LINK,
    LINK_BY_HYPERVISOR,
    PAYLOADS,
    PROCESS_WAYS,
    SIGNAL_BYTES,
    SWITCH,
    Column,
    columns,
)
from runtime.measure.conditions import busy_text
from runtime.measure.goals import conditions
from runtime.measure.pace import Pace
from runtime.reports import print_json, print_record, print_table

CLAIM: Final = (
    "guest-to-guest communication is orders of magnitude slower than IPC between processes of a microkernel"
)
ROUNDS: Final = 12
QUICK_ROUNDS: Final = 6  # fewer say nothing about where a median lies
SECONDS: Final = 0.03  # of one sample
QUICK_SECONDS: Final = 0.005
EXIT_MEASURED: Final = 0
EXIT_NOT_MEASURED: Final = 3
BESIDE_SAMPLE_S: Final = 0.02  # what a sample takes beside itself: processes, warming up
_WORDS: Final = {
    Overall.TRUE: "TRUE {here}: all {all} comparisons reach {order:g} times.",
    Overall.FALSE: "FALSE {here}: none of {all} comparisons reaches {order:g} times, nor does any interval.",
    Overall.DEPENDS: "IT DEPENDS {here}: {yes} of {all} comparisons reach {order:g} times, {no} do not.",
    Overall.UNDECIDED: "UNDECIDED {here}: the intervals of {undecided} of {all} comparisons include {order:g} times,"
    " and the others all say the same.",
}
_ALL: Final = "on this machine"
_SOME: Final = "on this machine, of what it can compare"
_LEFT_OUT: Final = f"{SWITCH}, {Peers.RUNNING}: it takes four CPUs, one for each that runs"
_READ_SO: Final = (
    "Each comparison has the same bytes, and peers in the same state. Its factor is a median over rounds, and it",
    f"reaches {ORDER_OF_MAGNITUDE:g} times if all of its 95 % interval does. That is one order of magnitude, not two.",
    "No microkernel runs here: send/receive/reply is SOCK_SEQPACKET, a process switch is a futex over shared memory,",
    "both of this kernel. Guests are processes: no exit of a real virtual machine is in it. Ways in C are held against",
    "guests in Python, which is in the claim's favour.",
)
_PARTS_SHOWN: Final = 2
_HOPS: Final = {
    SWITCH: "the hop: the root is woken and copies",
    LINK_BY_HYPERVISOR: "the hop: the hypervisor is woken",
}


def measure(found: Sequence[Column], rounds: int, seconds: float) -> dict[Key, list[float]]:
    """Raises CommandError."""
    figures: dict[Key, list[float]] = {column.key: [] for column in found}
    pace = Pace(rounds, len(found), seconds + BESIDE_SAMPLE_S, "figures", _say)
    for number in range(rounds):
        for index, column in enumerate(found):
            pace.tell(number, index)
            figures[column.key].append(column.measure(seconds))
    return figures


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def makeups(figures: Mapping[Key, Sequence[float]]) -> list[Makeup]:
    """Of every way between guests with peers that sleep, and of the link with peers that run."""
    return [
        makeup(figures, key, LINK, LINK, SIGNAL_BYTES, _HOPS.get(key.way, ""))
        for key in figures
        if key.way in GUEST_WAYS and key.payload_bytes != SIGNAL_BYTES and _can_be_split(key)
    ]


def _can_be_split(key: Key) -> bool:
    """Running figures are of two CPUs: from one CPU's, nothing of theirs can be taken away."""
    return key.peers is Peers.WOKEN_TWO_CPUS or (key.peers is Peers.RUNNING and key.way in (LINK, SWITCH))


def verdict_text(cells: Sequence[Cell], made_of: Sequence[Makeup]) -> list[str]:
    """A few lines for people. Figures are those of `cells`."""
    counts = {answer: sum(cell.answer is answer for cell in cells) for answer in Answer}
    whole = any(cell.guests.way == SWITCH and cell.guests.peers is Peers.RUNNING for cell in cells)
    lines = [f'"{CLAIM}"', ""]
    lines.append(
        _WORDS[overall(cells)].format(
            here=_ALL if whole else _SOME,
            order=ORDER_OF_MAGNITUDE,
            all=len(cells),
            yes=counts[Answer.YES],
            no=counts[Answer.NO],
            undecided=counts[Answer.UNDECIDED],
        )
    )
    for way in GUEST_WAYS:
        for peers in Peers:
            mine = [cell for cell in cells if (cell.guests.way, cell.guests.peers) == (way, peers)]
            if mine:
                least, most = min(cell.factor.value for cell in mine), max(cell.factor.value for cell in mine)
                yes = sum(cell.answer is Answer.YES for cell in mine)
                lines.append(
                    f"  {way}, {peers}: {three_digits(least)} to {three_digits(most)} times; {yes} of {len(mine)} reach"
                    f" {ORDER_OF_MAGNITUDE:g}"
                )
    if not whole:
        lines.append(f"  not measured: {_LEFT_OUT}")
    lines += _READ_SO
    lines.append("The largest parts of a round trip between guests:")
    for made in made_of:
        parts = ", ".join(f"{part.name} {made.share(part):.0%}" for part in made.largest[:_PARTS_SHOWN])
        size = format_size(made.key.payload_bytes)
        lines.append(f"  {made.key.way}, {made.key.peers}, {size}, {made.total_ns / 1000:.3g} us: {parts}")
    return lines


def _cell_row(cell: Cell, *, text: bool) -> dict[str, Any]:
    return {
        "between guests": cell.guests.way,
        "between processes": cell.processes.way,
        "peers": str(cell.guests.peers),
        "payload_bytes": cell.guests.payload_bytes,
        "guests_ns": round(cell.guests_ns),
        "processes_ns": round(cell.processes_ns),
        "factor": cell.factor.text() if text else cell.factor.to_json(),
        "orders_of_magnitude": str(cell.answer),
    }


def _makeup_row(made: Makeup) -> dict[str, Any]:
    return {
        "between guests": made.key.way,
        "peers": str(made.key.peers),
        "payload_bytes": made.key.payload_bytes,
        "total_ns": round(made.total_ns),
        "parts": {part.name: part.ns.to_json() for part in made.parts},
        "largest": made.largest[0].name,
    }


def run(*, quick: bool = False, as_json: bool = False, cpus: tuple[int, int] | None = None) -> int:
    """Measure, decide, print. Exit code 0 whatever the verdict; EXIT_NOT_MEASURED if there is none."""
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)
    allowed = sorted(os.sched_getaffinity(0))
    pair = cpus or (allowed[0], allowed[min(1, len(allowed) - 1)])
    about = conditions(pair)
    try:
        if pair[0] == pair[1]:
            raise CommandError("peers that run at the same time need two CPUs: see --cpus")
        with columns(pair) as found:
            if busy := busy_text(about["load_before"]):
                _say(busy)
            figures = measure(found, rounds, seconds)
    except CommandError as error:
        print(f"partvisor: could not measure: {error}", file=sys.stderr)
        return EXIT_NOT_MEASURED
    cells = compare(figures, GUEST_WAYS, PROCESS_WAYS)
    signalling = [cell for cell in cells if cell.guests.payload_bytes == SIGNAL_BYTES]
    judged = [cell for cell in cells if cell.guests.payload_bytes != SIGNAL_BYTES]
    made_of = makeups(figures)
    about |= {"rounds": rounds, "seconds": seconds, "signal_bytes": SIGNAL_BYTES, "payloads": list(PAYLOADS)}
    if as_json:
        print_json(
            {
                "claim": CLAIM,
                "verdict": str(overall(judged)),
                "text": verdict_text(judged, made_of),
                "cells": [_cell_row(cell, text=False) for cell in judged],
                "signalling": [_cell_row(cell, text=False) for cell in signalling],
                "made_of": [_makeup_row(made) for made in made_of],
                "rounds_ns": [
                    {
                        "way": key.way,
                        "peers": str(key.peers),
                        "payload_bytes": key.payload_bytes,
                        "ns": values,
                    }
                    for key, values in figures.items()
                ],
                "conditions": about,
            }
        )
        return EXIT_MEASURED
    print("signalling: a message with next to nothing in it")
    print_table([_cell_row(cell, text=True) for cell in signalling], "nothing was measured")
    print("\nthe same with a payload, there and back")
    print_table([_cell_row(cell, text=True) for cell in judged], "nothing was measured")
    print("\nwhat a round trip between guests is made of: medians, and where they lie with 95 %")
    print_table(
        [
            {
                "between guests": made.key.way,
                "peers": str(made.key.peers),
                "payload_bytes": made.key.payload_bytes,
                "part": part.name,
                "of_ns": round(made.total_ns),
                "ns": part.ns.text(),
            }
            for made in made_of
            for part in made.parts
        ],
        "nothing was measured",
    )
    print()
    print("\n".join(verdict_text(judged, made_of)))
    print()
    print_record(about | {"load_after": round(os.getloadavg()[0], 2)})
    return EXIT_MEASURED
