"""The verified load in bursts, on the virtual clock, and its history in memory."""

from collections.abc import Callable
from random import Random
from typing import Final

from partitions.guests.verified import Plan, VerifiedLoad
from partitions.simulated.clock import VirtualClock
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskClosedError
from runtime.chaos.history import Ending, History, Operation, OperationKind, Outcome

_KINDS: Final = {int(kind): kind for kind in OperationKind}  # a look-up costs less than the enum's own
_OUTCOMES: Final = {int(outcome): outcome for outcome in Outcome}


class KeptHistory:
    """A Keeper. `history` is what read_history would find."""

    def __init__(self, clock: VirtualClock, plan: Plan) -> None:
        self._clock = clock
        self.history: Final = History(plan.seed, plan.first_block, plan.blocks, clock.now_ns, [])
        self.invoked = 0

    def invoke(self, kind: int, first_block: int, blocks: int) -> int:
        self.invoked += 1
        now = self.history.last_ns = self._clock.now_ns
        self.history.operations.append(
            Operation(self.history.seed, self.invoked, _KINDS[kind], first_block, blocks, now)
        )
        return self.invoked

    def complete(self, number: int, outcome: int, error: int = 0, values: tuple[int, ...] = ()) -> None:
        operation = self.history.operations[number - 1]
        operation.completed_ns = self.history.last_ns = self._clock.now_ns
        operation.outcome, operation.error, operation.values = _OUTCOMES[outcome], error, values

    def end(self, *, gave_up: bool = False) -> None:
        self.history.last_ns = self._clock.now_ns
        self.history.ending = Ending(gave_up)


class BurstyLoad(VerifiedLoad):
    """Draws, fills, checks and notes as ever; when it asks is decided here."""

    def __init__(self, disk: Disk, kept: KeptHistory, plan: Plan, report: Callable[..., None]) -> None:
        super().__init__(disk, kept, plan, report)
        self.kept: Final = kept
        self.is_over = False

    @property
    def completed(self) -> int:
        return self._completed

    @property
    def in_flight(self) -> int:
        return self.kept.invoked - self._completed

    @property
    def oldest_ns(self) -> int | None:
        """Since when the request is waited for that has been in flight longest."""
        self._drop_done()
        if not self._flying:
            return None
        pending = (
            one.invoked_ns for one in reversed(self.kept.history.operations) if one.completed_ns is None
        )
        return min(pending, default=None)

    def _drop_done(self) -> None:
        while self._flying and self._flying[0].done:
            self._flying.popleft()

    def let_go(self) -> None:
        """The machine is gone: what it had goes at once, without a collector that looks for it."""
        for slot in self._free:
            slot.let_go()
        self._free.clear()
        self._flying.clear()

    def burst(self, most: int, rng: Random) -> bool:
        """Begin some requests at once, as many as there are slots and operations left for. False: the disk is gone."""
        left = self._plan.operations - self.kept.invoked
        self._drop_done()
        try:
            for _ in range(min(1 + rng.randrange(most), len(self._free), left)):
                self._issue(self._free.pop())
        except DiskClosedError:
            self.give_up()
            return False
        return True

    @property
    def has_enough(self) -> bool:
        return self._enough or self.kept.invoked >= self._plan.operations

    def finish_load(self) -> None:
        """Once nothing is in flight."""
        if not self.is_over:
            self.is_over = self._over = True
            self.kept.end()

    def give_up(self) -> None:
        if not self.is_over:
            self.is_over = self._over = True
            self.kept.end(gave_up=True)
