"""Evidence and trials made by hand, for whatever judges or draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.chaos.blocks import BLOCK_BYTES
from runtime.chaos.experiment.evidence import Balance, Evidence
from runtime.chaos.experiment.journal import Fate, Finding, Outcome, Trial
from runtime.chaos.experiment.machine_files import TrialMachine, VerifyingGuest
from runtime.chaos.experiment.schedule import Injection, Moment, Schedule
from runtime.chaos.faults.knobs import Knobs
from runtime.chaos.faults.orders import Order
from runtime.chaos.history import Ending, History, Operation, OperationKind
from runtime.chaos.history import Outcome as Answer

MS = 1_000_000
BEGAN_NS = 1_000 * MS
HEALED_NS = BEGAN_NS + 500 * MS
ENDED_NS = BEGAN_NS + 900 * MS

assert BLOCK_BYTES == 4096


def injection(
    number: int, kind: str = "kill", target: str = "root", after_ms: int = 10, **knobs: Any
) -> Injection:
    return Injection(Order(number, kind, target, {}, Knobs(**knobs), number), Moment(after_ms), None)


def fate(number: int, **changes: Any) -> Fate:
    """One that fired, was noticed, healed and survived."""
    return replace(Fate(number, 10.0, 11.0, 3, 1, 500.0, 12.0, 25.0), **changes)


def event(kind: str, at_ms: float, partition: str | None = None, **fields: Any) -> dict[str, Any]:
    at = BEGAN_NS + round(at_ms * MS)
    return {"kind": kind, "monotonic_ns": at, "partition": partition, "fields": fields}


def request(
    number: int, kind: OperationKind, block: int, at_ms: float, took_ms: float | None = 1.0, **changes: Any
) -> Operation:
    """`took_ms` None: it was never answered."""
    invoked = BEGAN_NS + round(at_ms * MS)
    completed = None if took_ms is None else invoked + round(took_ms * MS)
    answer = None if took_ms is None else Answer.DONE
    return replace(Operation(1, number, kind, block, 1, invoked, completed, answer), **changes)


def history(*operations: Operation, seed: int = 1, ending: Ending = Ending.FINISHED) -> History:
    last = max((one.completed_ns or one.invoked_ns for one in operations), default=BEGAN_NS)
    own = [replace(one, seed=seed) for one in operations]
    return History(seed, 0, 16, 0, own, ending, last)


def steady_load(seed: int = 1, until_ms: float = 900, every_ms: float = 10) -> list[Operation]:
    """One write and one read of it, again and again, each on a block of its own."""
    operations: list[Operation] = []
    at, number = -200.0, 1
    while at < until_ms:
        write = request(number, OperationKind.WRITE, 1, at, seed=seed)
        read = request(
            number + 1, OperationKind.READ, 1, at + every_ms / 2, seed=seed, values=(write.version,)
        )
        operations += [write, read]
        at, number = at + every_ms, number + 2
    return operations


def evidence(
    histories: Mapping[str, History],
    schedule: Schedule = (),
    events: Sequence[Mapping[str, Any]] = (),
    devices: Mapping[str, str] | None = None,
    **changes: Any,
) -> Evidence:
    """Of guests on disk0, unless `devices` says otherwise."""
    guests = tuple(
        VerifyingGuest(name, (devices or {}).get(name, "disk0"), one.seed, range(16), Path(f"/{name}"))
        for name, one in histories.items()
    )
    whole = Evidence(
        machine=TrialMachine(Path("/machine.toml"), guests, {}, ()),
        schedule=schedule,
        fates=tuple(fate(one.order.number) for one in schedule),
        histories=histories,
        values={},
        events=list(events),
        began_ns=BEGAN_NS,
        healed_ns=HEALED_NS,
        ended_ns=ENDED_NS,
        before=Balance(7, 100, 200 << 20),
        after=Balance(7, 100, 200 << 20),
        exit_code=0,
        errors="",
        left_behind=[],
    )
    return replace(whole, **changes)


def trial(number: int, outcome: Outcome = Outcome.PASSED, schedule: Schedule = (), **changes: Any) -> Trial:
    text = () if outcome is Outcome.PASSED else (f"block {number} is <lost> & \x01 gone",)
    whole = Trial(
        number,
        100 + number,
        "",
        schedule,
        tuple(fate(one.order.number) for one in schedule),
        (Finding("history", outcome, text),),
        (14.0 + number,) if schedule else (),
        ((-20.0, 0.4), (0.0, 0.5), (20.0, 14.0), (40.0, 0.6)),
        (
            (-30.0, "root.started", "root"),
            (11.0, "root.exited", "root"),
            (12.0, "root.started", "root"),
            (26.0, "root.restored", "root"),
        ),
        1.5,
    )
    return replace(whole, **changes)
