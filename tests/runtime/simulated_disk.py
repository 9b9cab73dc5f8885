"""A disk, its guests and its power supply in virtual time, honest or with one defect; the seed replays it.

Each request takes effect at one instant between its invocation and its completion. Everything that a disk may do is
drawn: how long each part takes, what of the requests in flight had happened when the machine was cut, and which value
each block falls back to when the power went, of those that it had since the last flush that completed, and since
its last durable write.
"""

import heapq
import random
from dataclasses import dataclass, field

from runtime.chaos.blocks import FOREIGN, MISDIRECTED, TORN, ZEROS
from runtime.chaos.checker import Cut, check
from runtime.chaos.history import Ending, Operation, OperationKind, Outcome
from runtime.chaos.verdict import Verdict
from tests.runtime.history_script import Script

BLOCKS = 4
BLOCKS_MAX = 2
PART_NS_MAX = 30
DEFECT_SHARE = 0.1  # of the requests that a defect could hit

DEFECTS = (
    "lost write",
    "ignored discard",
    "doubled stale write",
    "stale read",
    "torn write",
    "invented data",
    "misdirected write",
    "lost completion",
    "lying flush",
    "ignored FUA",
)


@dataclass
class SimulatedDisk:
    seed: int
    defect: str = ""
    power: bool = False  # cuts take the power too
    boots: int = 2
    guests: int = 2
    operations: int = 40  # of each guest in each boot
    depth: int = 3
    mix: str = "rrrrwwWddf"  # reads, writes, durable writes, discards, flushes
    hits: int = 0  # how often the defect struck
    cuts: list[Cut] = field(default_factory=list)
    scripts: list[Script] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.log: list[list[tuple[int, int]]] = [
            [(0, ZEROS)] for _ in range(BLOCKS)
        ]  # (since, value) of each
        self.kept = [0] * BLOCKS  # index in each log: nothing older survives, for a durable write completed
        self.flushed = 0  # when the last completed flush began
        self.now = 1

    def run(self) -> Verdict:
        """All boots, and the verdict over them and the image."""
        endings: list[tuple[Ending, int]] = []
        for boot in range(self.boots):
            last = boot == self.boots - 1
            endings += self._boot(cut=not last)
        histories = [
            script.history(ending, last) for script, (ending, last) in zip(self.scripts, endings, strict=True)
        ]
        image = {block: log[-1][1] for block, log in enumerate(self.log)}
        return check(histories, cuts=self.cuts, image=image)

    def _boot(self, *, cut: bool) -> list[tuple[Ending, int]]:
        scripts = [Script(len(self.scripts) + guest + 1) for guest in range(self.guests)]
        self.scripts += scripts
        events: list[tuple[int, int, str, Script, Operation | None]] = []
        serial = 0

        def later(what: str, script: Script, operation: Operation | None) -> None:
            nonlocal serial
            serial += 1
            delay = self.rng.randrange(1, PART_NS_MAX)
            heapq.heappush(events, (self.now + delay, serial, what, script, operation))

        for script in scripts:
            for _ in range(self.depth):
                later("invoke", script, None)
        left = self.rng.randrange(60, 200) if cut else 1 << 30
        last = self.now
        while events and left:
            left -= 1
            self.now, _, what, script, operation = heapq.heappop(events)
            last = self.now
            if operation is None:
                if len(script.operations) < self.operations:
                    later("effect", script, self._invoke(script))
            elif what == "effect":
                self._effect(script, operation)
                if not self._strikes("lost completion"):
                    later("complete", script, operation)
            else:
                operation.completed_ns, operation.outcome = self.now, Outcome.DONE
                if operation.kind == OperationKind.FLUSH and not self._strikes("lying flush", 1.0):
                    self.flushed = max(self.flushed, operation.invoked_ns)
                if operation.kind == OperationKind.WRITE_DURABLE and not self._strikes("ignored FUA", 1.0):
                    self._keep(operation)
                later("invoke", script, None)
        if cut:
            self._cut()
        return [(Ending.NONE if cut else Ending.FINISHED, last)] * len(scripts)

    def _strikes(self, defect: str, share: float = DEFECT_SHARE) -> bool:
        if self.defect != defect or self.rng.random() >= share:
            return False
        self.hits += 1
        return True

    def _invoke(self, script: Script) -> Operation:
        blocks = self.rng.randint(1, BLOCKS_MAX)
        block = self.rng.randrange(BLOCKS - blocks + 1)
        match self.rng.choice(self.mix):
            case "r":
                script.read(self.now, None, *[ZEROS] * blocks, block=block)
            case "w":
                script.write(self.now, None, block, blocks)
            case "W":
                script.write(self.now, None, block, blocks, durable=True)
            case "d":
                script.discard(self.now, None, block, blocks)
            case _:
                script.flush(self.now, None)
        return script.operations[-1]

    def _effect(self, script: Script, operation: Operation) -> None:
        blocks = range(operation.first_block, operation.first_block + operation.blocks)
        match operation.kind:
            case OperationKind.READ:
                stale = self._strikes("stale read")
                operation.values = tuple(self.log[block][-2 if stale else -1 :][0][1] for block in blocks)
            case OperationKind.DISCARD:
                if not self._strikes("ignored discard"):
                    self._set(blocks, ZEROS)
            case OperationKind.WRITE | OperationKind.WRITE_DURABLE:
                self._write(script, operation, blocks)

    def _write(self, script: Script, operation: Operation, blocks: range) -> None:
        if self._strikes("lost write"):
            return
        if self._strikes("misdirected write"):
            self._set(range((blocks.start + 1) % BLOCKS, (blocks.start + 1) % BLOCKS + 1), MISDIRECTED)
            return
        value = operation.version
        if self._strikes("torn write"):
            value = TORN
        elif self._strikes("invented data"):
            value = self.rng.choice((FOREIGN, 123))
        self._set(blocks, value)
        writes = (OperationKind.WRITE, OperationKind.WRITE_DURABLE)
        done = [op for op in script.operations if op.kind in writes and op.outcome is not None]
        if done and self._strikes("doubled stale write"):
            again = self.rng.choice(done)
            self._set(range(again.first_block, again.first_block + again.blocks), again.version)

    def _set(self, blocks: range, value: int) -> None:
        for block in blocks:
            self.log[block].append((self.now, value))

    def _keep(self, operation: Operation) -> None:
        """What it wrote is on the medium."""
        for block in range(operation.first_block, operation.first_block + operation.blocks):
            values = [value for _, value in self.log[block]]
            if operation.version in values:  # no defect struck there
                self.kept[block] = max(self.kept[block], values.index(operation.version))

    def _cut(self) -> None:
        """The machine ends now; whatever had no effect yet has none."""
        self.now += 1
        self.cuts.append(Cut(self.now, power=self.power))
        for kept, log in zip(self.kept, self.log, strict=True) if self.power else ():
            since = max(index for index, (begun, _) in enumerate(log) if begun <= self.flushed)
            since = max(since, kept)
            log.append((self.now, self.rng.choice(log[since:])[1]))
            del log[:-1]
        self.kept = [0] * BLOCKS if self.power else self.kept
        self.flushed = self.now if self.power else self.flushed
        self.now += 1
