"""Histories written by hand, one line for each request, times in any unit; and what the checker says of them."""

from runtime.chaos.checker import check
from runtime.chaos.history import Ending, History, Operation, OperationKind, Outcome
from runtime.chaos.register_conflicts import Kind
from runtime.chaos.verdict import Verdict


class Script:
    """One guest. An `end` of None: no completion was observed."""

    def __init__(self, seed: int = 1) -> None:
        self.seed = seed
        self.operations: list[Operation] = []

    def _add(
        self,
        kind: OperationKind,
        block: int,
        blocks: int,
        start: int,
        end: int | None,
        outcome: Outcome = Outcome.DONE,
        values: tuple[int, ...] = (),
    ) -> Operation:
        operation = Operation(self.seed, len(self.operations) + 1, kind, block, blocks, start)
        if end is not None:
            operation.completed_ns, operation.outcome, operation.values = end, outcome, values
        self.operations.append(operation)
        return operation

    def write(
        self,
        start: int,
        end: int | None,
        block: int = 0,
        blocks: int = 1,
        outcome: Outcome = Outcome.DONE,
        durable: bool = False,
    ) -> int:
        """The version that it writes."""
        kind = OperationKind.WRITE_DURABLE if durable else OperationKind.WRITE
        return self._add(kind, block, blocks, start, end, outcome).version

    def read(self, start: int, end: int | None, *values: int, block: int = 0) -> None:
        self._add(OperationKind.READ, block, len(values), start, end, Outcome.DONE, values)

    def discard(
        self, start: int, end: int | None, block: int = 0, blocks: int = 1, outcome: Outcome = Outcome.DONE
    ) -> None:
        self._add(OperationKind.DISCARD, block, blocks, start, end, outcome)

    def flush(self, start: int, end: int | None) -> None:
        self._add(OperationKind.FLUSH, 0, 0, start, end)

    def history(self, ending: Ending = Ending.FINISHED, last_ns: int | None = None) -> History:
        starts = [operation.invoked_ns for operation in self.operations]
        ends = [operation.completed_ns or 0 for operation in self.operations]
        last = max([*starts, *ends, 0]) if last_ns is None else last_ns
        return History(self.seed, 0, 1 << 20, min(starts, default=0), self.operations, ending, last)


def kinds(verdict: Verdict) -> set[Kind]:
    assert {violation.kind for violation in verdict.violations} == {k for k, n in verdict.counts.items() if n}
    return {kind for kind, count in verdict.counts.items() if count}


def judge(script: Script, **rules: object) -> set[Kind]:
    return kinds(check([script.history()], **rules))  # type: ignore[arg-type]
