"""What a guest asked of its disk and what it was told, in a file that survives the death of anyone.

One record of a fixed size for each invocation, written before the request is submitted, and one for each completion,
written after it was observed. The records go into a file that is mapped shared and was given its full size before:

* A store into the mapping is in the kernel's page cache, so SIGKILL of the guest, or of the whole machine, loses
  nothing that was stored. (A power cut of the host would. A buffered file would lose its buffer.)
* It needs no system call, so keeping the history hardly changes what is measured.
* Its space was allocated before: a full file system is an error at the start, not a SIGBUS later.

The last record may be half-written. Each carries a CRC-32C, so such a one is seen and left out: an invocation that was
cut there was not yet submitted, and a completion that was cut there counts as never observed; both are true enough
for every verdict. Anything wrong before the last record makes the whole history unusable, loudly.

    file     header (64 bytes), then records of 32 + 8 * blocks_max bytes, then zeros
    record   crc u32 | kind u8 | detail u8 | count u16 | number u64 | time_ns u64 | first_block u64 | value u64 ...
             INVOKED    detail: the operation; count: blocks
             COMPLETED  detail: the outcome; count: errno; values: what a read found in each of its blocks
             ENDED      detail: 1 where the guest gave up waiting; nothing follows

All little-endian; times are CLOCK_MONOTONIC, the same clock for all processes of a host, so histories of several
guests and of several boots can be laid side by side.

It stands in the runtime, below the partitions: the guest writes it and the checker reads it.
"""

import errno
import mmap
import os
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from bus.native import crc32c
from runtime.chaos.blocks import SEED_MAX, version_of

BLOCKS_PER_REQUEST_MAX: Final = 64
OPERATIONS_MAX: Final = 1 << 26

_HEADER: Final = struct.Struct("<8sHHIQQQQQ4xI")
_MAGIC: Final = b"PVHIST\r\n"
_FORMAT: Final = 1
_RECORD: Final = struct.Struct("<IBBHQQQ")
_HEAD_AFTER_CRC: Final = struct.Struct("<BBHQQQ")
_CRC_BYTES: Final = 4

_ZEROS: Final = bytes(1 << 20)

assert _HEADER.size == 64
assert _RECORD.size == 32 == _HEAD_AFTER_CRC.size + _CRC_BYTES


class HistoryError(Exception):
    """The file can't be a history, or can't be written as one. The text says why."""


class OperationKind(IntEnum):
    READ = 1
    WRITE = 2
    FLUSH = 3
    DISCARD = 4
    WRITE_DURABLE = 5  # with FUA: on the medium before it completes


class Outcome(IntEnum):
    DONE = 0
    FAILED = 1  # the server said so: it may have happened before, in part or as a whole, but not afterwards
    UNKNOWN = 2  # nobody will say: as if it had never completed


class _Record(IntEnum):
    INVOKED = 1
    COMPLETED = 2
    ENDED = 3


class Ending(IntEnum):
    NONE = -1  # the guest was killed, or still runs
    FINISHED = 0
    GAVE_UP = 1  # something did not complete while the guest was willing to wait


_KINDS: Final = {int(kind): kind for kind in OperationKind}  # a look-up costs less than the enum's own
_OUTCOMES: Final = {int(outcome): outcome for outcome in Outcome}


@dataclass(slots=True)
class Operation:
    """One request. `completed_ns` and `outcome` are None where no completion was observed."""

    seed: int  # of the guest
    number: int  # in the guest's history, from 1
    kind: OperationKind
    first_block: int  # FLUSH: 0, and no blocks
    blocks: int
    invoked_ns: int
    completed_ns: int | None = None
    outcome: Outcome | None = None
    error: int = 0  # errno
    values: tuple[int, ...] = ()  # of a READ that was DONE: one for each block

    @property
    def version(self) -> int:
        """What this operation, a WRITE of either kind, writes."""
        return version_of(self.seed, self.number)

    def __str__(self) -> str:
        return f"{self.kind.name.lower().replace('_', ' ')} {self.seed}:{self.number}"


@dataclass(slots=True)
class History:
    """One guest, one boot. Operations in the order of their invocation."""

    seed: int
    first_block: int
    blocks: int  # of the disk, from first_block on, that the guest may touch
    started_ns: int
    operations: list[Operation]
    ending: Ending = Ending.NONE
    last_ns: int = 0  # of the last record
    torn: bool = False  # the last record was half-written


class Keeper(Protocol):
    """What keeps a history while it is made: a file that survives (HistoryWriter), or a simulator's memory."""

    invoked: int

    def invoke(self, kind: int, first_block: int, blocks: int) -> int: ...
    def complete(self, number: int, outcome: int, error: int = 0, values: tuple[int, ...] = ()) -> None: ...
    def end(self, *, gave_up: bool = False) -> None: ...


class HistoryWriter:
    """The guest's side. One thread."""

    def __init__(
        self,
        descriptor: int,
        *,
        seed: int,
        first_block: int,
        blocks: int,
        blocks_max: int,
        operations_max: int,
    ) -> None:
        """Give the file behind `descriptor`, which must be empty, its full size, and map it.

        Args:
            descriptor: open for reading and writing; stays the caller's, and may be closed at once.
            blocks_max: of one request; makes the size of a record.

        Raises:
            HistoryError: the file is not empty (an earlier run's history is never overwritten), is not
                open for both, or has no room. It may have been made longer, but holds no record.
        """
        if not 0 < seed <= SEED_MAX or not 0 < blocks_max <= BLOCKS_PER_REQUEST_MAX:
            raise ValueError(f"seed {seed} or blocks_max {blocks_max} is out of range")
        if not 0 < operations_max <= OPERATIONS_MAX:
            raise ValueError(f"operations_max {operations_max}: want 1 to {OPERATIONS_MAX}")
        self._record_bytes = _RECORD.size + 8 * blocks_max
        self._room = operations_max
        self._pack = struct.Struct(f"{_HEAD_AFTER_CRC.format}{blocks_max}Q").pack
        self._store = struct.Struct(f"<I{self._record_bytes - _CRC_BYTES}s").pack_into
        self._padding = tuple((0,) * (blocks_max - used) for used in range(blocks_max + 1))
        size = _HEADER.size + (2 * operations_max + 1) * self._record_bytes
        try:
            if os.fstat(descriptor).st_size:
                raise HistoryError("the history's file is not empty: give each run an empty one")
            os.posix_fallocate(descriptor, 0, size)
            self._memory = mmap.mmap(descriptor, size)
        except PermissionError as error:
            raise HistoryError(
                'the history needs a file that is open for both: mode = "read-write"'
            ) from error
        except OSError as error:
            hint = "; give it a mode that allows writing" if error.errno == errno.EBADF else ""
            raise HistoryError(f"no room for a history of {size} bytes: {error.strerror}{hint}") from error
        header = _HEADER.pack(
            _MAGIC, _FORMAT, blocks_max, 0, seed, first_block, blocks, time.monotonic_ns(), operations_max, 0
        )
        covered = header[:-_CRC_BYTES]
        self._memory[: _HEADER.size] = covered + struct.pack("<I", crc32c(covered))
        self._next = _HEADER.size
        self.invoked = 0  # how many; the number of the last one

    @property
    def room(self) -> int:
        """How many more operations fit."""
        return self._room - self.invoked

    def invoke(self, kind: int, first_block: int, blocks: int) -> int:
        """Note that this operation is about to be submitted; its number. HistoryError: no room."""
        if self.invoked >= self._room:
            raise HistoryError("the history is full")
        self.invoked = number = self.invoked + 1
        self._append(_Record.INVOKED, kind, blocks, number, first_block, ())
        return number

    def complete(self, number: int, outcome: int, error: int = 0, values: tuple[int, ...] = ()) -> None:
        """Note a completion that was just observed."""
        self._append(_Record.COMPLETED, outcome, error, number, 0, values)

    def end(self, *, gave_up: bool = False) -> None:
        """Nothing more will come. Without this record a reader knows that the guest was cut off."""
        self._append(_Record.ENDED, int(gave_up), 0, 0, 0, ())

    def close(self) -> None:
        self._memory.close()

    def _append(
        self, kind: int, detail: int, count: int, number: int, first_block: int, values: tuple[int, ...]
    ) -> None:
        now = time.monotonic_ns()
        record = self._pack(
            kind, detail, count, number, now, first_block, *values, *self._padding[len(values)]
        )
        self._store(self._memory, self._next, crc32c(record), record)
        self._next += self._record_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_history(path: str | os.PathLike[str]) -> History:
    """Read a history, finished or cut off.

    Raises:
        HistoryError: not a history, or damaged anywhere but in its last record.
        OSError: the file can't be read.
    """
    content = Path(path).read_bytes()
    if len(content) < _HEADER.size:
        raise HistoryError(f"{path}: {len(content)} bytes; no guest began a history there")
    magic, form, blocks_max, _, seed, first_block, blocks, started_ns, _, crc = _HEADER.unpack_from(content)
    if magic != _MAGIC or crc != crc32c(content[: _HEADER.size - _CRC_BYTES]):
        raise HistoryError(f"{path}: no guest began a history there")
    if form != _FORMAT or not 0 < blocks_max <= BLOCKS_PER_REQUEST_MAX:
        raise HistoryError(f"{path}: format {form} with {blocks_max} blocks a request; want format {_FORMAT}")
    history = History(seed, first_block, blocks, started_ns, [], last_ns=started_ns)
    try:
        for kind, detail, count, number, now, first, values in _records(content, blocks_max, history):
            _take(history, kind, detail, count, number, now, first, values)
    except HistoryError as error:
        raise HistoryError(f"{path}: {error}") from error
    return history


def _records(
    content: bytes, blocks_max: int, history: History
) -> Iterator[tuple[int, int, int, int, int, int, tuple[int, ...]]]:
    """Up to the first record that is not whole; behind that one there must be zeros only."""
    view = memoryview(content)
    layout = struct.Struct(f"{_RECORD.format}{blocks_max}Q")
    size = layout.size
    whole = len(content) - (len(content) - _HEADER.size) % size
    at = _HEADER.size
    for crc, kind, detail, count, number, now, first, *values in layout.iter_unpack(view[at:whole]):
        if crc != crc32c(view[at + _CRC_BYTES : at + size]):
            break
        yield kind, detail, count, number, now, first, tuple(values)
        at += size
    history.torn = not are_zeros(content, at, at + size)
    if not are_zeros(content, at + size, len(content)):
        raise HistoryError(f"damaged at byte {at}, and more follows")


def are_zeros(content: bytes, start: int, stop: int) -> bool:
    """A file has room for far more than most runs note, so this looks at most of it: many bytes at a time."""
    stop = min(stop, len(content))
    whole = range(start, stop - len(_ZEROS), len(_ZEROS))
    rest = whole[-1] + len(_ZEROS) if whole else start
    return all(content.startswith(_ZEROS, at) for at in whole) and not content[rest:stop].strip(b"\0")


def _take(
    history: History,
    kind: int,
    detail: int,
    count: int,
    number: int,
    now: int,
    first: int,
    values: Sequence[int],
) -> None:
    operations = history.operations
    if now < history.last_ns or history.ending is not Ending.NONE:
        raise HistoryError(f"a record at {now} ns comes too late in the file")
    history.last_ns = now
    try:
        match kind:
            case _Record.INVOKED:
                if number != len(operations) + 1:
                    raise HistoryError(f"invocation {number} follows {len(operations)}")
                operations.append(Operation(history.seed, number, _KINDS[detail], first, count, now))
            case _Record.COMPLETED:
                if not 0 < number <= len(operations) or operations[number - 1].completed_ns is not None:
                    raise HistoryError(f"completion of {number}, which is not in flight")
                operation = operations[number - 1]
                operation.completed_ns, operation.outcome, operation.error = now, _OUTCOMES[detail], count
                if operation.kind == OperationKind.READ and detail == Outcome.DONE:
                    operation.values = tuple(values[: operation.blocks])
            case _Record.ENDED:
                history.ending = Ending(detail)
            case _:
                raise HistoryError(f"a record of kind {kind}")
    except (ValueError, KeyError) as error:
        raise HistoryError(f"a record of kind {kind} with {error}") from error
