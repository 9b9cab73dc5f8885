"""A result that lasts: what was measured, under what conditions, and every round's whole histogram.

    Run         one call of a benchmark: when, which revision, which conditions
      Row       one way to talk, at one payload, waiting kind, placement and load
        Round   one turn of that row: the limit measured just before it, its latencies, what it cost
        Hop     where the time of this row's exchanges went, if it was traced

Rules between fields hold from the moment that a part is made (ValueError). The JSON codec checks types and ranges too:
an unknown key, a missing one or a wrong type is an error with its path. Histograms are mutable by nature: whoever hands
one over lets go of it.
"""

from __future__ import annotations

import base64
import enum
import secrets
import time
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from bus.native import Histogram
from runtime.config.model import WaitingKind
from runtime.exits import CommandError

FORMAT: Final = "partvisor-bench"
VERSION: Final = 1  # of the JSON document
DOCUMENT_BYTES_MAX: Final = 64 << 20
ROWS_MAX: Final = 4096  # of a run
ROUNDS_MAX: Final = 4096  # of a row
HOPS_MAX: Final = 64  # of a row
TEXT_CHARACTERS_MAX: Final = 1000
ID_BYTES: Final = 6
NONE_VISIBLE: Final = "none visible"  # a property that this machine does not show, as a governor inside a VM

Text = Annotated[str, Meta(max_length=TEXT_CHARACTERS_MAX)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z")]
RunId = Annotated[str, Meta(pattern=rf"^[0-9a-f]{{{2 * ID_BYTES}}}\Z")]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
PayloadBytes = Annotated[int, Meta(ge=0, le=1 << 40)]
Duration = Annotated[float, Meta(gt=0, le=1e18)]
Offset = Annotated[float, Meta(ge=0, le=1e18)]


class ResultError(CommandError):
    """A result cannot be read, or is none of ours."""


class Placement(enum.StrEnum):
    """Where the two sides ran."""

    SAME_CPU = "same-cpu"  # both pinned to one
    TWO_CPUS = "two-cpus"  # pinned to one each
    UNPINNED = "unpinned"


class Mode(enum.StrEnum):
    """When the next request starts: after the last reply, or when its time has come."""

    CLOSED = "closed"
    OPEN = "open"  # latency counts from the intended start


class Status(enum.StrEnum):
    OK = "ok"
    NOT_INSTALLED = "not installed"
    NOT_POSSIBLE = "not possible"  # it does not carry so many bytes, or not in this mode
    NOT_THERE_YET = "not there yet"  # in results of a partvisor that lacked it
    FAILED = "failed"


class IdleCpus(enum.StrEnum):
    """What a CPU does that has nothing to run. Halted ones make a wake-up across CPUs expensive."""

    HALT = "halt"
    KEPT_AWAKE = "kept awake"  # something of lowest priority spins on each
    UNKNOWN = "unknown"


class ResultPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every part: keyword-only, frozen, no unknown keys."""


class Round(ResultPart, frozen=True, kw_only=True):
    """One turn of a row. What nobody could count is None, never 0."""

    at_s: Offset  # when it began, since the run's begin
    limit_ns: Duration  # p50 of the limit, measured just before
    latency: Histogram  # ns an exchange; in open mode from the intended start
    exchanges: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    seconds: Duration  # that they took together
    client_cpu_ns: Count | None = None
    server_cpu_ns: Count | None = None
    voluntary_switches: Count | None = None  # both sides together, as the next two
    involuntary_switches: Count | None = None
    wake_ups: Count | None = None
    changed: bool = False  # conditions changed meanwhile: it was taken again and counts in no figure

    def __post_init__(self) -> None:
        if self.latency.count == 0:
            raise ValueError("a round without a latency")


class Hop(ResultPart, frozen=True, kw_only=True):
    """One step of an exchange's way, such as "doorbell", in order of time."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    latency: Histogram  # ns spent in it


class Row(ResultPart, frozen=True, kw_only=True):
    """One way to talk, measured or not; a missing one says why."""

    transport: Name
    group: Annotated[
        str, Meta(min_length=1, max_length=64)
    ]  # its family, such as "sockets": heading and colour
    payload_bytes: PayloadBytes
    waiting: WaitingKind
    placement: Placement
    mode: Mode = Mode.CLOSED
    offered_per_s: Duration | None = None  # open mode alone
    status: Status = Status.OK
    reason: Text | None = None  # why it is not ok
    rounds: Annotated[tuple[Round, ...], Meta(max_length=ROUNDS_MAX)] = ()
    hops: Annotated[tuple[Hop, ...], Meta(max_length=HOPS_MAX)] = ()

    def __post_init__(self) -> None:
        if (self.mode is Mode.OPEN) != (self.offered_per_s is not None):
            raise ValueError("offered_per_s belongs to open mode, and to no other")
        if self.status is Status.OK:
            if not self.counted:
                raise ValueError("a row that is ok has a round whose conditions did not change")
        elif self.rounds or not self.reason:
            raise ValueError("a row that is not ok has a reason and no rounds")

    @property
    def name(self) -> str:
        """Unique in a run, one word: "unix-stream/64/block/two-cpus", open mode with its load at the end."""
        parts = [self.transport, str(self.payload_bytes), self.waiting.value, self.placement.value]
        if self.offered_per_s is not None:
            parts.append(f"{self.offered_per_s:g}-per-s")
        return "/".join(parts)

    @property
    def counted(self) -> tuple[Round, ...]:
        """The rounds whose conditions held: figures are made of these alone."""
        return tuple(one for one in self.rounds if not one.changed)

    @property
    def latency(self) -> Histogram:
        """Of all counted rounds together; a new histogram each time."""
        whole = Histogram()
        for one in self.counted:
            whole.merge(one.latency)
        return whole


class Conditions(ResultPart, frozen=True, kw_only=True):
    """What figures depend on, beside the program. `runtime.measure.conditions` reads them."""

    machine: Text  # the host's name and architecture
    kernel: Text
    cpu_model: Text
    cpus: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(max_length=4096)]  # that were used
    governor: Text  # of their frequency, or NONE_VISIBLE
    clock_source: Text
    scheduler_class: Text  # SCHED_OTHER, ...
    load_before: Offset  # one-minute load average
    idle_cpus: IdleCpus
    idle_driver: Text = NONE_VISIBLE


class Run(ResultPart, frozen=True, kw_only=True):
    """One call of a benchmark."""

    id: RunId
    bench: Name  # "ladder"
    started_unix_ns: Count
    revision: Text  # of git; "-dirty" where files differed; NONE_VISIBLE outside a repository
    versions: dict[str, Text]  # of Python, partvisor and each peer that was measured
    conditions: Conditions
    rows: Annotated[tuple[Row, ...], Meta(max_length=ROWS_MAX)]
    label: Text = ""  # the user's own word for it

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two rows are called {twice}")

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)


def new_id() -> str:
    return secrets.token_hex(ID_BYTES)


def now_unix_ns() -> int:
    return time.time_ns()


class _Document(ResultPart, frozen=True, kw_only=True):
    format: str
    version: int
    run: Run


class _Head(msgspec.Struct, frozen=True):
    """What every version of the document has; the rest is not looked at."""

    format: str = ""
    version: int = 0


def _to_plain(value: Any) -> str:
    if isinstance(value, Histogram):
        return base64.b64encode(value.pack()).decode("ascii")
    raise NotImplementedError(f"{type(value).__name__} has no place in a result")


def _from_plain(kind: type, value: Any) -> Any:
    if kind is Histogram and isinstance(value, str):
        return Histogram.unpack(base64.b64decode(value, validate=True))
    raise ValueError(f"a {kind.__name__} is wanted, as base64")


_ENCODER: Final = msgspec.json.Encoder(enc_hook=_to_plain)
_DECODER: Final = msgspec.json.Decoder(_Document, dec_hook=_from_plain)
_HEAD_DECODER: Final = msgspec.json.Decoder(_Head)


def encode_run(run: Run) -> bytes:
    """One JSON document, one line."""
    return _ENCODER.encode(_Document(format=FORMAT, version=VERSION, run=run))


def decode_run(data: bytes) -> Run:
    """The run of `encode_run`.

    Raises:
        ResultError: not such a document, of a version that we don't know, or one that breaks a rule; says where.
    """
    if len(data) > DOCUMENT_BYTES_MAX:
        raise ResultError(
            f"{len(data)} bytes, at most {DOCUMENT_BYTES_MAX}: this is no result of a benchmark"
        )
    try:
        head = _HEAD_DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ResultError(f"this is no result of a benchmark: {error}") from error
    if head.format != FORMAT:
        raise ResultError(f'this is no result of a benchmark: it lacks "format": "{FORMAT}"')
    if head.version != VERSION:
        raise ResultError(
            f"the result is of version {head.version}, and this partvisor reads {VERSION}: update it"
        )
    try:
        return _DECODER.decode(data).run
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ResultError(f"the result breaks a rule: {error}") from error
