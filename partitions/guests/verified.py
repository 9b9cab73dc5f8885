"""A guest that tries its disk and keeps a history of it: random reads, writes, flushes and discards, many in flight.

Every block says what it is (runtime.chaos.blocks), every request and every answer is noted in a file that survives
whoever is killed (runtime.chaos.history), and runtime.chaos.checker decides afterwards whether the disk was one.

A buffer is used again at once when its request has completed, most recently used first: a server that touches a
guest's pages after it has answered does visible harm.

    [[partition]]
    program = "partitions.guests.verified:main"
    args = { device = "disk0", seed = 1, blocks = 1024, depth = 32, seconds = 10 }
    [[partition.file]]
    name = "history"           # must be there and be empty
    mode = "read-write"

args: device; seed (its own for each guest and boot of one disk); blocks of 4 KiB, from first_block on; depth
(requests in flight); operations or seconds; blocks_max (of one request); mix = { read, write, flush, discard } in
percent; durable (percent of the writes that have FUA); patience_s (how long it waits for an answer); history (the
file's name).
"""

import random
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from partitions.child import Partition
from partitions.storage.buffers import Buffer
from partitions.storage.disk import MAX_IN_FLIGHT, Disk
from partitions.storage.errors import DiskClosedError, DiskError, DiskTimeoutError
from partitions.storage.requests import Ticket
from runtime.chaos.blocks import BLOCK_BYTES, SEED_MAX, SUSPECTS, BlockRun, value_text, version_of
from runtime.chaos.history import (
    BLOCKS_PER_REQUEST_MAX,
    OPERATIONS_MAX,
    HistoryWriter,
    Keeper,
    OperationKind,
    Outcome,
)

OPERATIONS_PER_SECOND_MAX: Final = 60_000  # what a history has room for where only the seconds are given
PATIENCE_S: Final = 30.0
RUNNING_AFTER: Final = 100  # completions, until the load counts as running
PROGRESS_S: Final = 0.25  # between two reports, in the long run
PROGRESS_S_MIN: Final = 0.01  # at first: somebody may wait for the load to run
TURNS_BETWEEN_LOOKS: Final = 64  # at the clock
SUSPECTS_REPORTED_MAX: Final = 5
_READ, _WRITE, _FLUSH, _DISCARD, _WRITE_DURABLE = OperationKind  # plain names: looked up for every request

Report = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do; see the module for each. ValueError where that makes no sense."""

    seed: int
    blocks: int
    first_block: int = 0
    depth: int = 32
    operations: int
    seconds: float | None = None
    blocks_max: int = 4
    read: float = 50  # percent of the operations
    write: float = 40
    flush: float = 2
    discard: float = 8
    durable: float = 5  # percent of the writes
    patience_s: float = PATIENCE_S

    def __post_init__(self) -> None:
        limits = {
            "seed": SEED_MAX,
            "blocks_max": min(self.blocks, BLOCKS_PER_REQUEST_MAX),
            "depth": MAX_IN_FLIGHT,
            "operations": OPERATIONS_MAX,
        }
        for name, limit in limits.items():
            if not 0 < getattr(self, name) <= limit:
                raise ValueError(f"{name} {getattr(self, name)}: want 1 to {limit}")
        shares = (self.read, self.write, self.flush, self.discard)
        if min(shares) < 0 or round(sum(shares), 6) != 100:
            raise ValueError(f"mix {shares}: want percentages that make 100")
        if not 0 <= self.durable <= 100:
            raise ValueError(f"durable {self.durable}: want a percentage")

    @classmethod
    def from_args(cls, args: Mapping[str, Any]) -> Self:
        """KeyError, ValueError: an argument is missing or makes no sense."""
        given = {name: args[name] for name in cls.__slots__ if name in args} | dict(args.get("mix", {}))
        if "operations" not in given:
            given["operations"] = min(
                int(float(args["seconds"]) * OPERATIONS_PER_SECOND_MAX) + 1, OPERATIONS_MAX
            )
        return cls(**given)


@dataclass(frozen=True, slots=True)
class Result:
    operations: int
    seconds: float
    suspects: int  # blocks read that were not whole, or not what was asked for
    failed: int
    gave_up: bool  # something did not complete in time, or the channel was closed

    @property
    def operations_per_second(self) -> float:
        return self.operations / self.seconds


class _Slot:
    """One request at a time, with pages of its own."""

    __slots__ = ("_load", "blocks", "buffer", "finished", "first_block", "kind", "number", "run", "ticket")

    def __init__(self, load: "VerifiedLoad", disk: Disk, blocks_max: int) -> None:
        self._load = load
        self.buffer = disk.allocate(blocks_max * BLOCK_BYTES)
        self.run: Final = BlockRun(self.buffer.view[: blocks_max * BLOCK_BYTES])
        self.kind = self.number = self.first_block = self.blocks = 0
        self.ticket: Ticket | None = None
        self.finished = self._finish  # bound once: it goes with each request

    def let_go(self) -> None:
        """It holds itself by that: nobody uses it any more."""
        del self.finished

    def _finish(self) -> None:
        self._load.finish(self)


class VerifiedLoad:
    """The load on one disk. One thread; `run` once."""

    def __init__(self, disk: Disk, history: Keeper, plan: Plan, report: Report | None = None) -> None:
        """ValueError: the disk is too small, or can't discard while the plan wants it to."""
        if (plan.first_block + plan.blocks) * BLOCK_BYTES > disk.size_bytes:
            raise ValueError(f"the disk has {disk.size_bytes // BLOCK_BYTES} blocks, too few for the plan")
        if plan.discard and not disk.description.can_discard:
            raise ValueError("this disk can't discard: set mix.discard = 0")
        self._disk, self._history, self._plan = disk, history, plan
        self._report = report or (lambda *_, **__: None)
        self._random = random.Random(plan.seed).random
        self._free = [_Slot(self, disk, plan.blocks_max) for _ in range(plan.depth)]
        self._flying: deque[Ticket] = deque()
        self._read_below = plan.read
        self._durable_below = plan.read + plan.write * plan.durable / 100
        self._write_below = plan.read + plan.write
        self._discard_below = self._write_below + plan.discard
        self._suspects = self._failed = self._completed = 0
        self._over = self._enough = False

    def end_soon(self) -> None:
        """Have `run` submit nothing more, and end when nothing is in flight. A signal handler may call it."""
        self._enough = True

    def run(self) -> Result:
        """Until the plan is done or the disk no longer answers; whatever happens is in the history."""
        self._disk.timeout_s = self._plan.patience_s
        began, gave_up = time.monotonic(), False
        try:
            for _ in self._turns(began):
                while not self._free:
                    self._await_oldest()
                self._issue(self._free.pop())
            while self._flying:
                self._await_oldest()
        except (DiskTimeoutError, DiskClosedError) as error:
            gave_up = True
            self._report(
                "verified_gave_up", error=f"{type(error).__name__}: {error}", in_flight=self._disk.in_flight
            )
        self._history.end(gave_up=gave_up)
        self._over = True
        return Result(self._completed, time.monotonic() - began, self._suspects, self._failed, gave_up)

    def _turns(self, began: float) -> Iterator[int]:
        """One for each operation, until the time is over; says now and then how far it is."""
        seconds = self._plan.seconds
        ends = float("inf") if seconds is None else began + seconds
        next_report, pause_s = began, PROGRESS_S_MIN
        for turn in range(self._plan.operations):
            if turn % TURNS_BETWEEN_LOOKS == 0:
                now = time.monotonic()
                if now >= ends or self._enough:
                    return
                if now >= next_report and self._completed >= RUNNING_AFTER:
                    self._report("verified_progress", operations=self._completed, suspects=self._suspects)
                    next_report, pause_s = now + pause_s, min(2 * pause_s, PROGRESS_S)
            yield turn

    def _await_oldest(self) -> None:
        """A server answers in order, so with the oldest come most of those that can come."""
        ticket = self._flying.popleft()
        if not ticket.done:
            try:
                self._disk.wait(ticket)
            except (DiskTimeoutError, DiskClosedError):
                raise
            except DiskError:
                pass  # this one request failed, as `finish` has noted

    def _issue(self, slot: _Slot) -> None:
        """Draw one operation, note it, submit it."""
        plan, draw, history, run = self._plan, self._random, self._history, slot.run
        submit: Callable[[int, Buffer, int], Ticket]
        share = draw() * 100
        blocks = 1 + int(draw() * plan.blocks_max)
        first = plan.first_block + int(draw() * (plan.blocks - blocks + 1))
        if share < self._read_below:
            kind, submit = _READ, self._disk.submit_read
            run.spoil(blocks)
        elif share < self._write_below:
            durable = share < self._durable_below
            kind = _WRITE_DURABLE if durable else _WRITE
            submit = self._submit_durable if durable else self._disk.submit_write
            run.fill(first, blocks, version_of(plan.seed, history.invoked + 1))
        elif share < self._discard_below:
            kind, submit = _DISCARD, self._disk.submit_discard
        else:
            kind, first, blocks = _FLUSH, 0, 0
            submit = self._submit_flush
        slot.kind, slot.first_block, slot.blocks = kind, first, blocks
        slot.number = number = history.invoke(kind, first, blocks)
        try:
            ticket = submit(first * BLOCK_BYTES, slot.buffer, blocks * BLOCK_BYTES)
        except (DiskClosedError, DiskTimeoutError) as error:
            history.complete(number, Outcome.UNKNOWN, error.errno)
            raise
        slot.ticket, ticket.on_done = ticket, slot.finished
        self._flying.append(ticket)

    def _submit_flush(self, _offset: int, _buffer: Buffer, _length: int) -> Ticket:
        return self._disk.submit_flush()

    def _submit_durable(self, offset: int, buffer: Buffer, length: int) -> Ticket:
        return self._disk.submit_write(offset, buffer, length, durable=True)

    def finish(self, slot: _Slot) -> None:
        """The disk calls this as it takes in the completion of what `slot` asked for."""
        ticket, history = slot.ticket, self._history
        assert ticket is not None
        if self._over:  # what the load no longer waited for has no place behind the history's end
            return
        if (error := ticket.error) is None:
            if slot.kind == _READ:
                values = slot.run.values(slot.first_block, slot.blocks)
                history.complete(slot.number, Outcome.DONE, 0, values)
                if max(values) in SUSPECTS:
                    self._suspect(slot, values)
            else:
                history.complete(slot.number, Outcome.DONE)
        else:
            unknown = isinstance(error, DiskClosedError)
            history.complete(slot.number, Outcome.UNKNOWN if unknown else Outcome.FAILED, error.errno)
            self._failed += 1
        self._completed += 1
        slot.ticket = None  # which knows the slot: so it goes when nobody waits any more
        self._free.append(slot)

    def _suspect(self, slot: _Slot, values: tuple[int, ...]) -> None:
        """What the history has no room for: what stood in the block."""
        for index, value in enumerate(values):
            if value in SUSPECTS:
                self._suspects += 1
                if self._suspects <= SUSPECTS_REPORTED_MAX:
                    self._report(
                        "verified_suspect",
                        operation=slot.number,
                        block=slot.first_block + index,
                        found=value_text(value),
                        content=slot.run.describe(index),
                    )


def main(partition: Partition) -> int:
    """1: a block was not what it should be, a request failed, or the disk stopped answering. SIGTERM: enough."""
    plan = Plan.from_args(partition.args)
    data_bytes = plan.depth * plan.blocks_max * BLOCK_BYTES
    history_fd = partition.files[str(partition.args.get("history", "history"))]
    with (
        HistoryWriter(
            history_fd,
            seed=plan.seed,
            first_block=plan.first_block,
            blocks=plan.blocks,
            blocks_max=plan.blocks_max,
            operations_max=plan.operations,
        ) as history,
        partition.open_disk(str(partition.args["device"]), data_bytes) as disk,
    ):
        load = VerifiedLoad(disk, history, plan, partition.report)
        signal.signal(signal.SIGTERM, lambda *_: load.end_soon())
        result = load.run()
    partition.report("verified", **asdict(result), operations_per_second=round(result.operations_per_second))
    return int(result.suspects > 0 or result.failed > 0 or result.gave_up)
