"""What the checker says, in numbers for scripts and in lines for people."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from runtime.chaos.blocks import SUSPECTS, value_text
from runtime.chaos.history import Operation, OperationKind
from runtime.chaos.liveness import Gap, Hang
from runtime.chaos.register_conflicts import BEGINNING, NEVER, Access, Conflict, Kind, Reason

EXPLAINED_MAX: Final = 20  # violations that a verdict keeps; all are counted
_NS_PER_S: Final = 1_000_000_000


class Judgement(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"  # nothing was read back: nothing was shown


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that must not be, in one line."""

    kind: Kind
    block: int | None  # None: it is about a request as a whole
    at_ns: int  # when it could be seen first
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    operations: int
    completed: int
    failed: int  # completed with an error
    unfinished: int  # no completion was observed, or one that does not say what happened
    reads: int
    writes: int
    durable_writes: int  # of them, with FUA
    flushes: int
    discards: int
    values: int  # that were compared: blocks read by guests, or found in the image
    blocks: int  # different ones that took part
    guests: int
    counts: Mapping[Kind, int]  # of violations
    violations: tuple[Violation, ...]  # the first ones, in the order of time
    longest_gap: Gap | None
    longest_operation_ns: int
    elapsed_ns: int  # first to last record

    @property
    def judgement(self) -> Judgement:
        if any(self.counts.values()):
            return Judgement.FAILED
        return Judgement.PASSED if self.values else Judgement.INCONCLUSIVE

    @property
    def passed(self) -> bool:
        return self.judgement is Judgement.PASSED


def summary(verdict: Verdict) -> dict[str, Any]:
    """Plain numbers and texts, for JSON."""
    gap = verdict.longest_gap
    names = (
        "operations", "completed", "failed", "unfinished", "reads", "writes", "durable_writes", "flushes", "discards",
        "values", "blocks", "guests",
    )  # fmt: skip
    return {
        "judgement": verdict.judgement.value,
        **{name: getattr(verdict, name) for name in names},
        "violations": {kind.value: verdict.counts.get(kind, 0) for kind in Kind},
        "longest_gap_ms": None if gap is None else gap.length_ns / 1e6,
        "longest_operation_ms": verdict.longest_operation_ns / 1e6,
        "elapsed_s": verdict.elapsed_ns / _NS_PER_S,
        "explanations": [violation.text for violation in verdict.violations],
    }


class Narrator:
    """Turns conflicts into lines; times are seconds since `origin_ns`."""

    def __init__(self, origin_ns: int) -> None:
        self._origin = origin_ns

    def time(self, instant_ns: int) -> str:
        if instant_ns <= BEGINNING:
            return "the beginning"
        return "never" if instant_ns >= NEVER else f"{(instant_ns - self._origin) / _NS_PER_S:.6f}"

    def access(self, access: Access) -> str:
        span = f"[{self.time(access.start)}, {self.time(access.end)}]"
        if access.power_cut:
            return f"the power cut at {self.time(access.end)} (seen by {access})"
        return f"{access} {span}" if isinstance(access.source, Operation) else str(access)

    def conflict(self, block: int, conflict: Conflict) -> Violation:
        value, since, until, other = conflict.value, conflict.since, conflict.until, conflict.other
        seen = max(access.start for access in (since, until, other) if access is not None)
        match conflict.reason:
            case Reason.PIECES:
                text = f"{self.access(since)} returned a torn block"
            case Reason.UNWRITTEN:
                what = "brought" if value in SUSPECTS else "returned"
                why = "" if value in SUSPECTS else ", which nobody wrote there"
                text = f"{self.access(since)} {what} {value_text(value)}{why}"
            case Reason.EARLY:
                assert other is not None
                text = f"{self.access(since)} returned {value_text(value)} before {self.access(other)} began"
            case Reason.TWO_SURVIVORS:
                text = f"{self.access(since)} returned {value_text(value)}, but the power cut had left another value"
            case Reason.FORGOTTEN:
                text = (
                    f"{self.access(since)} was to survive, yet {self.access(until)} left "
                    f"{value_text(conflict.other_value or 0)}, which is older"
                )
            case Reason.NO_DISCARD:
                assert other is not None
                text = (
                    f"{self.access(other)} found zeros, though {value_text(value)} was there before "
                    f"({self.access(until)}) and no discard came between"
                )
            case Reason.BETWEEN:
                assert other is not None
                text = (
                    f"{self.access(since)} and {self.access(until)} show {value_text(value)} there all the time "
                    f"between them, yet {self.access(other)} {_did(other)} {value_text(conflict.other_value or 0)}"
                )
        return Violation(conflict.kind, block, seen, f"block {block}: {text}")

    def hang(self, hang: Hang) -> Violation:
        if hang.operation is None:
            text = f"guest {hang.seed}: {hang.text}, at {self.time(hang.at_ns)}"
        else:
            text = f"{hang.operation}, begun at {self.time(hang.at_ns)}, {hang.text}"
        return Violation(Kind.HUNG, None, hang.at_ns, text)


def _did(access: Access) -> str:
    """The verb for what an access did to a value."""
    source = access.source
    if access.power_cut:
        return "left"
    if not isinstance(source, Operation) or source.kind == OperationKind.READ:
        return "returned"
    return "wrote"


def first(violations: Iterable[Violation]) -> tuple[Violation, ...]:
    """The ones to explain."""
    return tuple(sorted(violations, key=lambda violation: violation.at_ns)[:EXPLAINED_MAX])
