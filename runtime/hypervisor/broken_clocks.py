"""Reference times that run wrong on purpose, and their way back. A partition's time never goes back on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from runtime.chaos.faults.knobs import Trigger
from runtime.chaos.faults.orders import Counts, FaultRefused, Order
from runtime.hypervisor.drift import Drift
from runtime.hypervisor.machine import Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.vps import clock_changed

RETURN_PPM: Final = -500_000  # of a time that is ahead: half its speed, until it is right
_NS_PER_MS: Final = 1_000_000
_LOOK_AGAIN_NS: Final = 10_000_000


class BrokenClocks:
    """Of one machine. One at a time of each partition."""

    def __init__(self, machine: Machine) -> None:
        self._machine: Final = machine
        self._armed: dict[int, tuple[int, Trigger]] = {}  # by number: partition
        self._moved_ns: dict[int, int] = {}  # by partition: how far ahead it is, drift not counted
        self._returning_ns: dict[int, int] = {}  # by partition: when it is right again

    def inject(self, order: Order, partition: Partition) -> None:
        """Raises FaultRefused."""
        if partition.id in self._returning_ns or any(one == partition.id for one, _ in self._armed.values()):
            raise FaultRefused(
                f"the clock of {order.target} is wrong already; heal that first, and let it come back"
            )
        if partition.frozen_ns is not None:
            raise FaultRefused(f"the time of {order.target} stands still")
        trigger = Trigger(order.knobs, order.seed)
        self._armed[order.number] = partition.id, trigger
        if not trigger.strikes():
            return
        if order.kind == "clock-jump":
            jump_ns = int(order.parameters["jump_ms"]) * _NS_PER_MS
            partition.created_ns -= jump_ns
            self._moved_ns[partition.id] = jump_ns
        else:
            partition.drift = Drift(self._machine.now_ns, int(order.parameters["ppm"]))
        clock_changed(self._machine, partition)

    def heal(self, number: int | None) -> None:
        for healed in list(self._armed) if number is None else [number]:
            if healed in self._armed:
                partition = self._machine.partitions.get(self._armed.pop(healed)[0])
                if partition is not None:
                    self._turn(partition)

    def counts(self) -> Mapping[int, Counts]:
        return {number: Counts(trigger.passes, trigger.fired) for number, (_, trigger) in self._armed.items()}

    @property
    def is_idle(self) -> bool:
        return not self._armed and not self._returning_ns

    @property
    def earliest_ns(self) -> int | None:
        return min(self._returning_ns.values(), default=None)

    def time_has_come(self) -> None:
        for partition_id, due_ns in list(self._returning_ns.items()):
            if due_ns > self._machine.now_ns:
                continue
            del self._returning_ns[partition_id]
            partition = self._machine.partitions.get(partition_id)
            if partition is None or (drift := partition.drift) is None:
                continue
            assert drift.until_ns is not None
            if (
                partition.frozen_ns is not None or drift.until_ns > self._machine.now_ns
            ):  # its parent stopped it
                self._returning_ns[partition_id] = max(drift.until_ns, self._machine.now_ns + _LOOK_AGAIN_NS)
                continue
            self._fold(partition)
            self._moved_ns.pop(partition_id)
            clock_changed(self._machine, partition)

    def _turn(self, partition: Partition) -> None:
        """What it is ahead it gives back by running slower; what it is behind it gets at once."""
        self._fold(partition)
        ahead_ns = self._moved_ns.pop(partition.id, 0)
        if ahead_ns > 0:
            now_ns = self._machine.now_ns if partition.frozen_ns is None else partition.frozen_ns
            until_ns = now_ns - ahead_ns * 1_000_000 // RETURN_PPM
            partition.drift = Drift(now_ns, RETURN_PPM, until_ns)
            self._returning_ns[partition.id] = until_ns
        else:
            partition.created_ns += ahead_ns
        clock_changed(self._machine, partition)

    def _fold(self, partition: Partition) -> None:
        """What the drift has done so far becomes part of when its time began."""
        if (drift := partition.drift) is not None:
            now_ns = self._machine.now_ns if partition.frozen_ns is None else partition.frozen_ns
            added_ns = drift.added_ns(now_ns)
            partition.created_ns -= added_ns
            partition.drift = None
            self._moved_ns[partition.id] = self._moved_ns.get(partition.id, 0) + added_ns
