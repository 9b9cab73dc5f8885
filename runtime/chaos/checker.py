"""The judge: do these histories show a disk that lost, tore, invented or forgot anything?

    verdict = check([read_history(path) for path in paths], image=dict(enumerate(image_values(fd, 0, blocks))))

What is decided:

* Each block is a register (see `registers`): every acknowledged write and discard is there, in an order that respects
  the clock, over all guests and boots. A request that nobody saw complete may take effect at any later time, for a
  successor may find it in the ring and execute it; once acknowledged it may not be applied again over a later one.
* A request that failed may have taken effect before its failure was reported, and not after.
* At a `Cut` the machine ended at once: what was in flight then took effect before, or never. Where the power went too,
  a block holds one value that it had at or after the beginning of the last flush that completed: what had completed
  before a flush began is durable, whatever came later may be gone. Nor may it be a value from before a durable write
  (FUA) of this block that completed.
* Every read returned whole blocks that were written, there and before it ended.
* Every invocation completed within the bound, unless the run was cut short on purpose.

Guests that write the same blocks must have different seeds, as a seed makes versions unique; so must boots.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from runtime.chaos.blocks import NUMBER_BITS, SUSPECTS, ZEROS
from runtime.chaos.history import Ending, History, Operation, OperationKind, Outcome
from runtime.chaos.liveness import hangs, longest_gap
from runtime.chaos.register_conflicts import BEGINNING, NEVER, Access, Conflict, Kind, Reason
from runtime.chaos.registers import Register
from runtime.chaos.verdict import Narrator, Verdict, Violation, first

BOUND_S: Final = 10.0
_NS_PER_S: Final = 1_000_000_000


class CheckError(ValueError):
    """The histories can't belong together: a mistake of whoever gathered them, not a finding about the disk."""


@dataclass(frozen=True, slots=True, order=True)
class Cut:
    """The machine ended at once, and every request in flight with it."""

    time_ns: int  # CLOCK_MONOTONIC, after the last process was gone and before the next boot began
    power: bool = False  # the disk's volatile cache is gone as well


def check(
    histories: Sequence[History],
    *,
    bound_s: float = BOUND_S,
    cuts: Sequence[Cut] = (),
    killed: Collection[int] = (),
    initial: Mapping[int, int] | None = None,
    image: Mapping[int, int] | None = None,
    tearing: bool = False,
) -> Verdict:
    """Judge everything that was recorded about one disk.

    Args:
        histories: of all guests and boots that wrote to it.
        bound_s: within which every request must complete.
        cuts: when machines were ended on purpose. What was in flight then need not have completed.
        killed: seeds of guests that were killed on purpose while their machine went on.
        initial: block to value before the first of them, of other seeds; a block that is not named was zeros.
        image: block to value after all of them, read from the disk itself.
        tearing: a read may be torn by another guest's write of the same block. Linux promises no more for
            files that several threads read and write; one channel alone is served in order and never tears.

    Raises:
        CheckError: a seed was used twice, or a history goes on after a cut.
    """
    _refuse_strangers(histories, cuts, initial or {})
    disk = _Disk(sorted(cuts), initial or {})
    for history in histories:
        disk.take_history(history)
    if image is not None:
        disk.take_image(image, 1 + max([BEGINNING, *(history.last_ns for history in histories)]))
    narrator = Narrator(min((history.started_ns for history in histories), default=0))
    found = [narrator.conflict(block, conflict) for block, conflict in disk.conflicts(tearing)]
    for history in histories:
        cut = next((cut.time_ns for cut in sorted(cuts) if cut.time_ns >= history.last_ns), None)
        cut = None if history.ending is Ending.FINISHED else cut
        found += map(narrator.hang, hangs(history, int(bound_s * _NS_PER_S), cut, killed))
    return _sum_up(histories, disk, found)


class _Disk:
    """All accesses, sorted by the power cuts between them and then by block."""

    def __init__(self, cuts: Sequence[Cut], initial: Mapping[int, int]) -> None:
        self._cut_times = [cut.time_ns for cut in cuts]
        self._power_times = [cut.time_ns for cut in cuts if cut.power]
        self._initial = initial
        self._epochs = [defaultdict[int, Register](Register) for _ in range(len(self._power_times) + 1)]
        self._flushed = [BEGINNING] * len(self._epochs)  # begin of the last flush that completed
        self.values = 0

    @property
    def blocks(self) -> int:
        return len(set().union(*self._epochs))

    def take_history(self, history: History) -> None:
        for operation in history.operations:
            epoch = bisect_right(self._power_times, operation.invoked_ns)
            registers = self._epochs[epoch]
            done = operation.outcome is Outcome.DONE
            blocks = range(operation.first_block, operation.first_block + operation.blocks)
            match operation.kind:
                case OperationKind.READ:
                    if done and operation.completed_ns is not None:
                        access = Access(operation.invoked_ns, operation.completed_ns, operation)
                        for block, value in zip(blocks, operation.values, strict=True):
                            registers[block].read(value, access)
                        self.values += len(blocks)
                case OperationKind.WRITE | OperationKind.WRITE_DURABLE:
                    access, version = self._change(operation), operation.version
                    for block in blocks:
                        registers[block].write(version, access)
                case OperationKind.DISCARD:
                    access = self._change(operation)
                    for block in blocks:
                        registers[block].discard(access)
                case OperationKind.FLUSH:
                    if done:
                        self._flushed[epoch] = max(self._flushed[epoch], operation.invoked_ns)

    def _change(self, operation: Operation) -> Access:
        """When a write or discard may have taken effect."""
        start, end, outcome = operation.invoked_ns, operation.completed_ns, operation.outcome
        if end is None or outcome is Outcome.UNKNOWN:
            cut = bisect_left(self._cut_times, start)
            end = self._cut_times[cut] if cut < len(self._cut_times) else NEVER
        done = outcome is Outcome.DONE
        durable = done and operation.kind == OperationKind.WRITE_DURABLE
        return Access(start, end, operation, certain=done, durable=durable)

    def take_image(self, image: Mapping[int, int], after_ns: int) -> None:
        start = max(after_ns, *(time + 1 for time in self._cut_times), BEGINNING)
        access = Access(start, NEVER, "the image read at the end")
        for block, value in image.items():
            self._epochs[-1][block].read(value, access)
        self.values += len(image)

    def conflicts(self, tearing: bool) -> Iterator[tuple[int, Conflict]]:
        for epoch in range(len(self._epochs) - 1, 0, -1):
            for block, register in self._epochs[epoch].items():
                if (forgotten := self._trace_back(epoch, block, register, tearing)) is not None:
                    yield block, forgotten
        for block, register in self._epochs[0].items():
            register.initial = self._initial.get(block, ZEROS)
        for epoch, registers in enumerate(self._epochs):
            for block, register in registers.items():
                for conflict in register.conflicts(tearing=tearing):
                    unwritten = conflict.reason is Reason.UNWRITTEN
                    if unwritten and self._was_written(conflict.value, block, epoch):
                        conflict.kind, conflict.reason = Kind.LOST, Reason.TWO_SURVIVORS
                    yield block, conflict

    def _trace_back(self, epoch: int, block: int, register: Register, tearing: bool) -> Conflict | None:
        """A power cut left one value. Where it was read later, it must have been there before: as if read then.

        A conflict: it was there before, and a write that was to survive came after it.
        """
        values = register.survivors()
        if not values and register.zero_reads and (without := len(register.conflicts(tearing=tearing))):
            register.initial = ZEROS
            if len(register.conflicts(tearing=tearing)) < without:
                values = [ZEROS]  # the discards after the cut are too few to explain the zeros that were read
            register.initial = None
        if values:
            survivor = next((value for value in values if self._was_written(value, block, epoch)), values[0])
            register.initial = survivor
            reader = register.first_read(survivor).source
            start, end = self._flushed[epoch - 1], self._power_times[epoch - 1]
            earlier = self._epochs[epoch - 1][block]
            left = Access(start, end, reader, power_cut=True)
            older = survivor in (ZEROS, self._initial.get(block)) or self._was_written(survivor, block, epoch)
            if older and (durable := earlier.forgotten(survivor)) is not None:
                version, write = durable
                return Conflict(Kind.NOT_DURABLE, Reason.FORGOTTEN, version, write, left, survivor, left)
            earlier.read(survivor, left)
        return None

    def _was_written(self, value: int, block: int, epoch: int) -> bool:
        """Before the power cut that `epoch` began with."""
        earlier = (registers.get(block) for registers in self._epochs[:epoch])
        return any(register is not None and register.wrote(value) for register in earlier)


def _refuse_strangers(histories: Sequence[History], cuts: Sequence[Cut], initial: Mapping[int, int]) -> None:
    seeds = Counter(history.seed for history in histories)
    if (common := seeds.most_common(1)) and common[0][1] > 1:
        raise CheckError(f"two histories have the seed {common[0][0]}")
    if used := seeds.keys() & {value >> NUMBER_BITS for value in initial.values() if value not in SUSPECTS}:
        raise CheckError(
            f"the disk held versions of seed {min(used)} before: give each run a seed of its own"
        )
    for history in histories:
        for cut in cuts:
            if history.started_ns <= cut.time_ns < history.last_ns:
                raise CheckError(f"guest {history.seed} went on after the machine was cut")


def _sum_up(histories: Sequence[History], disk: _Disk, found: list[Violation]) -> Verdict:
    operations = [operation for history in histories for operation in history.operations]
    kinds = Counter(operation.kind for operation in operations)
    outcomes = Counter(operation.outcome for operation in operations)
    took = [op.completed_ns - op.invoked_ns for op in operations if op.completed_ns is not None]
    last_ns = max((history.last_ns for history in histories), default=0)
    return Verdict(
        operations=len(operations),
        completed=outcomes[Outcome.DONE] + outcomes[Outcome.FAILED],
        failed=outcomes[Outcome.FAILED],
        unfinished=outcomes[None] + outcomes[Outcome.UNKNOWN],
        reads=kinds[OperationKind.READ],
        writes=kinds[OperationKind.WRITE] + kinds[OperationKind.WRITE_DURABLE],
        durable_writes=kinds[OperationKind.WRITE_DURABLE],
        flushes=kinds[OperationKind.FLUSH],
        discards=kinds[OperationKind.DISCARD],
        values=disk.values,
        blocks=disk.blocks,
        guests=len(histories),
        counts=Counter(violation.kind for violation in found),
        violations=first(found),
        longest_gap=longest_gap(histories),
        longest_operation_ns=max(took, default=0),
        elapsed_ns=last_ns - min((history.started_ns for history in histories), default=last_ns),
    )
