"""What one trial found, as plain data, and how it is read from events and histories. No I/O."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from runtime.blast.faults import Fault
from runtime.chaos.history import Ending, History, Outcome
from runtime.chaos.liveness import gaps
from runtime.chaos.register_conflicts import Kind
from runtime.chaos.running_machine import Event
from runtime.chaos.verdict import Verdict
from runtime.config.architecture import MONITOR_SUFFIX, Architecture

NS_PER_MS: Final = 1e6
NOTICED_MS: Final = 25.0  # a wait that stands out is longer than this, and than
QUIET_FACTOR: Final = 2  # times the longest one before the strike
SHARED_WAIT_MS: Final = 100.0  # a bystander that waits for longer shares the target's fate
EXPLAINED_MAX: Final = 3  # wrong blocks of a side that are told of in words; all are counted
DATA_KINDS: Final = (Kind.LOST, Kind.NOT_DURABLE, Kind.TORN, Kind.INVENTED, Kind.MISDIRECTED)
ROLES: Final = (
    "hypervisor",
    "root",
    "driver",
    "monitor",
    "guest",
    "bystander",
    "other driver",
    "other monitor",
)


@dataclass(frozen=True, slots=True)
class Struck:
    """The driver's own record."""

    at_ns: int  # CLOCK_MONOTONIC
    pid: int
    did: Mapping[str, Any]  # what came of it, where it lived to tell


@dataclass(frozen=True, slots=True)
class Death:
    role: str  # of ROLES
    name: str
    reason: str
    after_ms: float  # since the strike


@dataclass(frozen=True, slots=True)
class Seen:
    """By the guests on one side, the target's or the bystanders'."""

    answers: int  # after the strike
    wait_ms: float  # the longest one from the strike on, with one that had no end but the trial's
    quiet_ms: float  # the longest one before the strike: what the host's load alone does
    back_ms: float | None  # from the strike to the end of the last wait that stands out; None: it never ended
    failed: int  # requests that were answered with an error
    wrong: Mapping[str, int]  # blocks with wrong data, by kind
    explained: tuple[str, ...]  # the first of them

    @property
    def serves(self) -> bool:
        return self.back_ms is not None

    @property
    def wrong_blocks(self) -> int:
        return sum(self.wrong.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One fault under one architecture, once."""

    architecture: Architecture
    fault: Fault
    seed: int
    seconds: float
    struck: Struck | None  # None: the fault did not happen, and nothing else counts
    deaths: tuple[Death, ...]  # before the trial ended the load
    machine_down: str  # why the machine ended before it was told to; "": it did not
    target: Seen
    bystander: Seen
    left_behind: tuple[str, ...]
    trouble: str  # why this trial says less than it should; "": it does not

    @property
    def dead(self) -> tuple[str, ...]:
        """Roles."""
        found = {death.role for death in self.deaths}
        return tuple(role for role in ROLES if role in found)

    @property
    def spread(self) -> bool:
        """Whether it went beyond the driver and its own guests: somebody else died, or had to wait."""
        if not self.bystander.serves or not set(self.dead) <= {"driver", "monitor", "guest"}:
            return True
        return self.bystander.wait_ms > SHARED_WAIT_MS

    @property
    def unbounded(self) -> bool:
        """Nothing but the experiment itself stopped the driver from taking more."""
        did = {} if self.struck is None else self.struck.did
        key = "threads_stopped_by" if "threads" in did else "stopped_by"
        return str(did.get(key, "")).startswith("nobody")

    def to_table(self) -> dict[str, Any]:
        return asdict(self) | {"dead": self.dead, "unbounded": self.unbounded}


def deaths_of(
    events: Sequence[Event],
    struck_ns: int,
    until_ns: int,
    target: str,
    guests_on_target: Collection[str],
    drivers: Collection[str],
) -> tuple[Death, ...]:
    """Who ended between the two instants, but for guests that had said that they were through."""

    def role(name: str) -> str:
        if name == "root":
            return "root"
        if name.endswith(MONITOR_SUFFIX):
            own = name.removesuffix(MONITOR_SUFFIX) in guests_on_target
            return "monitor" if own else "other monitor"
        if name in drivers:
            return "driver" if name == target else "other driver"
        return "guest" if name in guests_on_target else "bystander"

    through = {event["partition"] for event in events if event["kind"] == "guest.verified"}
    found = []
    for event in events:
        if event["kind"] not in ("root.exited", "partition.exited"):
            continue
        name = event["partition"] or "root"
        at_ns = event["fields"].get("at_ns") or event["monotonic_ns"]
        if struck_ns <= at_ns < until_ns and name not in through:
            reason = str(event["fields"]["reason"])
            found.append(Death(role(name), name, reason, (at_ns - struck_ns) / NS_PER_MS))
    return tuple(found)


def seen_of(histories: Sequence[History], verdicts: Sequence[Verdict], struck_ns: int, until_ns: int) -> Seen:
    """Of guests on one side, of which the one that fared worst counts.

    Args:
        verdicts: one for each of their disks.
        until_ns: when the trial told them that it was enough, or saw the machine end.
    """
    waits: list[tuple[float, float | None]] = []
    quiet_ms, answers, failed = 0.0, 0, 0
    for history in histories:
        wait_ms, back_ms, before_ms = _wait(history, struck_ns, until_ns)
        waits.append((wait_ms, back_ms))
        quiet_ms = max(quiet_ms, before_ms)
        answers += sum(
            operation.completed_ns is not None and operation.completed_ns >= struck_ns
            for operation in history.operations
        )
        failed += sum(operation.outcome is Outcome.FAILED for operation in history.operations)
    backs = [back for _, back in waits]
    return Seen(
        answers,
        max((wait for wait, _ in waits), default=0.0),
        quiet_ms,
        None if not backs or None in backs else max(back for back in backs if back is not None),
        failed,
        {
            kind.value: found
            for kind in DATA_KINDS
            if (found := sum(verdict.counts.get(kind, 0) for verdict in verdicts))
        },
        tuple(
            violation.text
            for verdict in verdicts
            for violation in verdict.violations
            if violation.kind in DATA_KINDS
        )[:EXPLAINED_MAX],
    )


def _wait(history: History, struck_ns: int, until_ns: int) -> tuple[float, float | None, float]:
    """(longest from the strike on, from the strike until it was over or None, longest before), in ms.

    It was over with the last wait that stands out. None: the guest gave up, or was cut off, or lacks an answer.
    """
    completed = [each.completed_ns for each in history.operations if each.completed_ns is not None]
    last_ns = max(completed, default=history.started_ns)
    waits = list(gaps(history))
    before = max((gap.length_ns for gap in waits if gap.end_ns < struck_ns), default=0)
    ended = [gap for gap in waits if struck_ns <= gap.end_ns <= last_ns]
    longest = max((gap.length_ns for gap in ended), default=0)
    if history.ending is Ending.FINISHED and last_ns >= struck_ns and not _unanswered(history):
        noticed = max(QUIET_FACTOR * before, NOTICED_MS * NS_PER_MS)
        back_ns = max((gap.end_ns - struck_ns for gap in ended if gap.length_ns > noticed), default=0)
        return longest / NS_PER_MS, back_ns / NS_PER_MS, before / NS_PER_MS
    cut_off = history.ending is Ending.NONE  # in mid-flight, with its machine
    ended_ns = until_ns if cut_off else max(history.last_ns, last_ns)
    return max(longest, ended_ns - last_ns) / NS_PER_MS, None, before / NS_PER_MS


def _unanswered(history: History) -> bool:
    return any(each.completed_ns is None for each in history.operations)
