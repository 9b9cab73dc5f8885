"""What a hostile partition would call: with others' ids, over others' connections, nonsense, for all of its memory.

Each call is decided as one that came over its socket; only the bytes are made here. It is to be refused with a typed
status and to change nothing. One that succeeds is announced: somebody has found a hole. Memory that a partition may
have is no hole: a greedy one gets what its own pool pays for, and no page more.
"""

from __future__ import annotations

from typing import Any, Final

from runtime.abi import ID_24_BIT_MAX, HvStatus, HypercallCode, MapFlags, RegisterName
from runtime.chaos.faults.knobs import Trigger
from runtime.chaos.faults.orders import FaultRefused, Order
from runtime.hypervisor.effects import Announce
from runtime.hypervisor.fault_seams import Decide
from runtime.hypervisor.machine import Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.program import Process

KINDS: Final = frozenset({"forge-partition-id", "forge-connection-id", "hypercall-garbage", "memory-greed"})
GREED_GPFN: Final = 0xF0_0000  # in its GPA space: above any slot of ours
GREED_PAGES: Final = (1024, 64, 1)  # a bite, and those that it tries when that is refused
GREED_PAGES_MAX: Final = 1 << 20
_UNBORN: Final = 1_000  # ids of partitions that may come
_C = HypercallCode
_Forged = tuple[int, object]

# What is tried on a partition that is none of the caller's. Each names its target, and is possible otherwise.
_ON_OTHERS: Final[tuple[tuple[HypercallCode, dict[str, Any]], ...]] = (
    (_C.FINALIZE_PARTITION, {}),
    (_C.DELETE_PARTITION, {}),
    (_C.SET_PARTITION_PROPERTY, {"property": 0x10000, "value": 2**63}),
    (_C.WITHDRAW_MEMORY, {"pages": 1}),
    (_C.MAP_GPA_PAGES, {"gpfn": GREED_GPFN, "pages": 1, "flags": int(MapFlags.READ | MapFlags.ZEROED)}),
    (_C.CREATE_VP, {"vp": 63}),
    (_C.SET_VP_REGISTERS, {"vp": 0, "registers": [[int(RegisterName.SCONTROL), 0]]}),
    (_C.ASSERT_VIRTUAL_INTERRUPT, {"vp": 0, "vector": 255}),
)
_NO_ARGUMENTS: Final[tuple[object, ...]] = (None, 4711, "partition", [], {"": 0}, {"no": "such argument"})


class Forgeries:
    """Of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine: Final = machine
        self._eaten: dict[int, int] = {}  # by order of a greedy partition: pages that it got
        self._decide: Decide | None = None  # known from the first call on

    def check(self, order: Order, partition: Partition) -> None:
        """Raises FaultRefused: it would not be refused to that one."""
        if order.kind == "forge-partition-id" and partition.parent is None:
            raise FaultRefused("every partition is below the root: it may call on any")

    def make(self, order: Order, trigger: Trigger, decide: Decide) -> None:
        """One call, if its time has come."""
        target = self._machine.by_path(order.target)
        if target is None or target.process is not Process.RUNNING:
            return
        if not trigger.strikes():
            return
        self._decide = decide
        if order.kind == "memory-greed":
            self._eat(order, target, decide)
            return
        code, args = self._forged(order.kind, target, trigger)
        if decide(target.id, int(code), args).status is HvStatus.SUCCESS:
            fields = {"name": order.target, "fault": order.kind, "call": int(code), "number": order.number}
            self._machine.effects.append(Announce("fault.forgery_accepted", fields))

    def give_back(self, order: Order) -> None:
        """What a greedy partition has got for nothing. Where it is gone, its memory is."""
        eaten, target = self._eaten.pop(order.number, 0), self._machine.by_path(order.target)
        if eaten and target is not None:
            assert self._decide is not None
            args = {"gpfn": GREED_GPFN, "pages": eaten}
            self._decide(target.id, int(_C.UNMAP_GPA_PAGES), args)

    def _forged(self, kind: str, target: Partition, trigger: Trigger) -> _Forged:
        match kind:
            case "forge-partition-id":
                code, args = _ON_OTHERS[trigger.draw(len(_ON_OTHERS))]
                return code, {"partition": self._foreign_partition(target, trigger), **args}
            case "forge-connection-id":
                connection = self._foreign_connection(target, trigger)
                if trigger.draw(2):
                    return _C.SIGNAL_EVENT, {"connection": connection, "flag": 0}
                return _C.POST_MESSAGE, {"connection": connection, "type": 1, "payload": bytes(16)}
            case _:
                if trigger.draw(2):
                    codes = tuple(HypercallCode)
                    return codes[trigger.draw(len(codes))], _NO_ARGUMENTS[trigger.draw(len(_NO_ARGUMENTS))]
                return self._unknown_code(trigger), {}

    def _foreign_partition(self, target: Partition, trigger: Trigger) -> int:
        machine = self._machine
        others = [
            other.id
            for other in machine.partitions.values()
            if other is not target and not machine.is_below(other, target)
        ]
        if not trigger.draw(4):
            return machine.next_partition + trigger.draw(_UNBORN)
        return others[trigger.draw(len(others))]

    def _foreign_connection(self, target: Partition, trigger: Trigger) -> int:
        others = sorted(
            {connection for other in self._machine.partitions.values() for connection in other.connections}
            - set(target.connections)
        )
        if others and trigger.draw(4):
            return others[trigger.draw(len(others))]
        while (connection := trigger.draw(ID_24_BIT_MAX)) in target.connections:
            pass
        return connection

    @staticmethod
    def _unknown_code(trigger: Trigger) -> int:
        known = set(HypercallCode)
        while (code := trigger.draw(1 << 16)) in known:
            pass
        return code

    def _eat(self, order: Order, target: Partition, decide: Decide) -> None:
        """Ever smaller bites, and then, for as long as it is armed, calls that are refused."""
        for pages in GREED_PAGES:
            eaten = self._eaten.get(order.number, 0)
            if eaten + pages > GREED_PAGES_MAX:
                return
            args = {
                "gpfn": GREED_GPFN + eaten,
                "pages": pages,
                "flags": int(MapFlags.READ | MapFlags.WRITE | MapFlags.ZEROED),
            }
            if decide(target.id, int(_C.MAP_GPA_PAGES), args).status is HvStatus.SUCCESS:
                self._eaten[order.number] = eaten + pages
                return
