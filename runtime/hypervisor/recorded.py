"""The state machine with a flight recorder beside it, and counters of every call.

Recording is no decision: it sees what goes in and what comes out, and changes neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, get_args

from runtime.abi import ROOT_PARTITION, ExitStatus, HvStatus, HypercallCode
from runtime.hypervisor.dispatch import Hypervisor
from runtime.hypervisor.effects import Announce, Effect, Halt, Resources, SynicOperations
from runtime.hypervisor.machine import RootFailurePolicy
from runtime.hypervisor.program import Process
from runtime.hypervisor.recorder import EventKind, Recorder
from runtime.hypervisor.replies import Reply

_EFFECTS: Final[tuple[type[object], ...]] = get_args(Effect)
_BITS: Final = {kind: 1 << bit for bit, kind in enumerate(_EFFECTS)}
EFFECT_NAMES: Final[Mapping[int, str]] = MappingProxyType(
    {bit: kind.__name__ for bit, kind in enumerate(_EFFECTS)}
)
assert len(_EFFECTS) <= 64  # bits of a record's field
_PROCESSES: Final = tuple(Process)
_OTHER_CODE: Final = 0
# Calls after which a partition's row is another; what else changes one is announced.
_DESCRIBED: Final = frozenset(
    {
        HypercallCode.INITIALIZE_PARTITION,
        HypercallCode.FINALIZE_PARTITION,
        HypercallCode.DEPOSIT_MEMORY,
        HypercallCode.WITHDRAW_MEMORY,
        HypercallCode.SET_PARTITION_PROPERTY_EX,
    }
)
_CALL: Final = int(EventKind.CALL)
_now_ns: Final = time.monotonic_ns


def effect_bits(*kinds: type[object]) -> int:
    return sum(_BITS[kind] for kind in kinds)


class CallCounts:
    """Of one call code. Bare lists would do; names read better, and slots cost the same."""

    __slots__ = ("made", "refused", "took_ns")

    def __init__(self) -> None:
        self.made = 0
        self.refused = 0
        self.took_ns = 0  # deciding; receiving, effects and sending are not in it


class RecordedHypervisor(Hypervisor):
    """A `Hypervisor`, of whose doings a recorder is told."""

    def __init__(
        self,
        recorder: Recorder,
        resources: Resources,
        synic_operations: SynicOperations,
        on_root_failure: RootFailurePolicy = RootFailurePolicy.HALT,
    ) -> None:
        super().__init__(resources, synic_operations, on_root_failure)
        self.recorder: Final = recorder
        self._record: Final = recorder.record
        self.calls: Final[dict[int, CallCounts]] = {int(code): CallCounts() for code in HypercallCode}
        self.calls[_OTHER_CODE] = CallCounts()
        self.looks = 0  # at requests, before they were taken: a system call each
        self.effects: Final[dict[type[object], int]] = dict.fromkeys(_EFFECTS, 0)  # carried out, by kind

    def handle(
        self, caller_id: int, code: object, args: object, files: int = 0, now_ns: int = 0
    ) -> tuple[Reply, list[Effect]]:
        reply, effects = Hypervisor.handle(self, caller_id, code, args, files, now_ns)
        took_ns = _now_ns() - now_ns
        if type(code) is not int or (counts := self.calls.get(code)) is None:
            code, counts = _OTHER_CODE, self.calls[_OTHER_CODE]
        counts.made += 1
        counts.took_ns += took_ns
        status = reply.status
        if status and status is not HvStatus.CALL_PENDING:
            counts.refused += 1
        mask = self._note_effects(effects) if effects else 0
        self._record(_CALL, now_ns, caller_id, code, took_ns, status, mask)
        if code in _DESCRIBED and not status and isinstance(args, dict):
            self._describe(args.get("partition", caller_id))
        return reply, effects

    def served_elsewhere(
        self, caller: int, code: HypercallCode, made: int, effects: Mapping[type[object], int]
    ) -> None:
        """Calls of one caller that were recorded, answered and carried out by others, as we would have."""
        self.calls[code].made += made
        self.count(caller, made)
        for kind, times in effects.items():
            self.effects[kind] += times

    def adopt_root(
        self,
        name: str,
        memory_pages: int,
        args: Mapping[str, object],
        pid: int,
        now_ns: int = 0,
        successor_files: int = 0,
    ) -> list[Effect]:
        effects = super().adopt_root(name, memory_pages, args, pid, now_ns, successor_files)
        self._describe(ROOT_PARTITION)
        return self._reported(EventKind.STARTED, now_ns, ROOT_PARTITION, effects, pid)

    def process_started(self, partition_id: int, pid: int, now_ns: int = 0) -> list[Effect]:
        effects = super().process_started(partition_id, pid, now_ns)
        return self._reported(EventKind.STARTED, now_ns, partition_id, effects, pid)

    def process_exited(
        self, partition_id: int, status: ExitStatus | None, reason: str, now_ns: int = 0
    ) -> list[Effect]:
        effects = super().process_exited(partition_id, status, reason, now_ns)
        wire = status.to_wire() if status is not None else 0
        return self._reported(EventKind.EXITED, now_ns, partition_id, effects, wire)

    def heartbeat_due(self, partition_id: int, now_ns: int) -> list[Effect]:
        effects = super().heartbeat_due(partition_id, now_ns)
        return self._reported(EventKind.HEARTBEAT_DUE, now_ns, partition_id, effects)

    def timers_due(self, now_ns: int) -> list[Effect]:
        return self._reported(EventKind.TIMERS_DUE, now_ns, 0, super().timers_due(now_ns))

    def break_on_purpose(self, act: Callable[[], object], now_ns: int) -> list[Effect]:
        effects = super().break_on_purpose(act, now_ns)
        self._note_effects(effects)  # no event of its own: what follows from it is recorded
        return effects

    def kill(self, partition_id: int) -> list[Effect]:
        return self._reported(EventKind.KILL, _now_ns(), partition_id, super().kill(partition_id))

    def _reported(
        self, kind: EventKind, when_ns: int, partition: int, effects: list[Effect], detail: int = 0
    ) -> list[Effect]:
        mask = self._note_effects(effects)
        self.recorder.record(kind, when_ns, partition, detail, effects=mask)
        if any(type(effect) is Halt for effect in effects):
            self.recorder.record(EventKind.HALT, when_ns, partition)
        return effects

    def _note_effects(self, effects: list[Effect]) -> int:
        """Their kinds, as bits. Announcements of partitions bring the table up to date."""
        mask, counts = 0, self.effects
        for effect in effects:
            kind = type(effect)
            mask |= _BITS[kind]
            counts[kind] += 1
            if kind is Announce:
                assert isinstance(effect, Announce)
                identity = effect.fields.get("id")
                if isinstance(identity, int):
                    self._describe(identity)
        return mask

    def _describe(self, identity: object) -> None:
        if not isinstance(identity, int):
            return
        partition = self.machine.partitions.get(identity)
        if partition is None:
            self.recorder.forget(identity)
            return
        status = partition.exit_status
        self.recorder.describe(
            identity,
            partition.parent or 0,
            partition.pool.available + partition.pool.in_use,
            partition.pid or 0,
            None if status is None else status.to_wire(),
            int(partition.state),
            _PROCESSES.index(partition.process),
            self.machine.path(partition),
        )
