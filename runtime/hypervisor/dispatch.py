"""The hypervisor: a call or a report in, a reply and effects out. Who may call what, `call_rules` says.

Order of the checks, so that a refusal says as little as possible: known code, shape of the arguments, the
caller's state, target, relation and privilege, the target's state, and then the call's own rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, cast

from runtime.abi import (
    ALL_PRIVILEGES,
    INITIALIZE_PARTITION_PAGES,
    PARTITION_SELF,
    ROOT_PARTITION,
    VP_PAGES,
    ExitStatus,
    HvStatus,
    HypercallCode,
    PartitionProperty,
    PartitionState,
    Privilege,
)
from runtime.hypervisor import (
    arguments,
    heartbeat,
    partitions,
    pausing,
    properties,
    reboot,
    statistics,
    timer_expiry,
    vps,
)
from runtime.hypervisor.call_rules import RULES, Rule
from runtime.hypervisor.effects import ArmTimers, Effect, KillPartition, Resources, SynicOperations
from runtime.hypervisor.machine import Call, CallCount, Machine, RootFailurePolicy
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.program import Process, Program
from runtime.hypervisor.replies import Refused, Reply


class Hypervisor:
    """All decisions of the broker. Deterministic: no clock, socket or process; what it wants, it returns.

    Calls and reports go in one at a time; each returns the effects that follow from it, to be carried out in
    order before the next goes in.
    """

    def __init__(
        self,
        resources: Resources,
        synic_operations: SynicOperations,
        on_root_failure: RootFailurePolicy = RootFailurePolicy.HALT,
    ) -> None:
        self.machine: Final = Machine(resources, synic_operations, on_root_failure)

    def adopt_root(
        self,
        name: str,
        memory_pages: int,
        args: Mapping[str, object],
        pid: int,
        now_ns: int = 0,
        successor_files: int = 0,
    ) -> list[Effect]:
        """Take the process that booted us as partition 1; all memory of the machine is its.

        Args:
            successor_files: how many descriptors each later process of partition 1 is born with.

        Raises: ValueError: a bad name or too little memory; OSError: out of descriptors. Both change nothing.
        """
        machine = self.machine
        if ROOT_PARTITION in machine.partitions:
            raise ValueError("there is a root already")
        if memory_pages < INITIALIZE_PARTITION_PAGES + VP_PAGES:
            raise ValueError(f"{memory_pages} pages cannot hold the root partition itself")
        try:
            program = Program.parse({"module": "root", "name": name, "args": dict(args)})
        except Refused as error:
            raise ValueError("the root's name or arguments are not possible") from error
        machine.now_ns = now_ns
        root = Partition(ROOT_PARTITION, None, 0, now_ns, PartitionState.ACTIVE, ALL_PRIVILEGES)
        root.program, root.process, root.pid = program, Process.RUNNING, pid
        root.pool.available = memory_pages
        vps.add_vp(machine, root, 0).running = True
        root.pool.charge(INITIALIZE_PARTITION_PAGES)
        machine.partitions[root.id] = root
        machine.next_partition = root.id + 1
        machine.memory_pages = memory_pages
        machine.root_files = successor_files
        return self._effects()

    def handle(
        self, caller_id: int, code: object, args: object, files: int = 0, now_ns: int = 0
    ) -> tuple[Reply, list[Effect]]:
        """Answer one hypercall. Never raises for anything that a caller can send.

        Args:
            caller_id: the partition whose socket it came from.
            code: call code, as decoded.
            args: argument map, as decoded.
            files: how many descriptors came with it; they are not ours to keep unless an effect says so.
            now_ns: CLOCK_MONOTONIC.
        """
        self.machine.now_ns = now_ns
        reply = self.decide(caller_id, code, args, files)
        return reply, self._effects()

    def decide(self, caller_id: int, code: object, args: object, files: int = 0) -> Reply:
        """As `handle`, in the middle of an event: its effects are those of the event."""
        try:
            reply = self._handle(caller_id, code, args, files)
        except Refused as refused:
            reply = Reply(refused.status)
        except OSError:  # from Resources: the host has no more
            reply = Reply(HvStatus.INSUFFICIENT_MEMORY)
        self._count(caller_id, reply.status)
        return reply

    def _handle(self, caller_id: int, code: object, args: object, files: int) -> Reply:
        machine = self.machine
        if type(code) is not int:
            raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
        try:
            call_code = HypercallCode(code)
        except ValueError:
            raise Refused(HvStatus.INVALID_HYPERCALL_CODE) from None
        rule = RULES[call_code]
        values = arguments.check(call_code, args)
        if files and not rule.takes_files:
            raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
        if (caller := machine.partitions.get(caller_id)) is None:
            raise Refused(HvStatus.INVALID_PARTITION_ID)
        if caller.state is not PartitionState.ACTIVE:
            raise Refused(HvStatus.INVALID_PARTITION_STATE)
        if machine.faults is not None and machine.faults.meets_call(caller, call_code, args, files):
            return Reply(HvStatus.CALL_PENDING)
        target = machine.partition(caller, cast(int, values.pop("partition", PARTITION_SELF)))
        needed = self._needed(rule, caller, target)
        # Flags as plain numbers: each operation on an enum is a call of Python's, and this is on every call's way.
        if needed is None or int(needed) & ~int(caller.privileges):
            raise Refused(HvStatus.ACCESS_DENIED)
        if target.state not in rule.states:
            raise Refused(HvStatus.INVALID_PARTITION_STATE)
        if target is not caller:
            machine.works_for(caller, target)
        return rule.handler(Call(machine, caller, target, files), **values)

    def _needed(self, rule: Rule, caller: Partition, target: Partition) -> Privilege | None:
        """Privileges that the rule asks for, by what the target is to the caller."""
        if target is caller:
            return rule.on_self
        if target.parent == caller.id:
            return rule.on_child
        return rule.on_deeper if self.machine.is_below(target, caller) else None

    def _count(self, caller_id: int, status: HvStatus) -> None:
        is_refused = status is not HvStatus.SUCCESS and status is not HvStatus.CALL_PENDING
        self.count(caller_id, 1, int(is_refused))

    def count(self, caller_id: int, made: int, refused: int = 0) -> None:
        machine = self.machine
        machine.calls.made += made
        machine.calls.refused += refused
        if caller_id in machine.partitions:
            if (count := machine.calls_of.get(caller_id)) is None:
                count = machine.calls_of[caller_id] = CallCount()
            count.made += made
            count.refused += refused

    def process_started(self, partition_id: int, pid: int, now_ns: int = 0) -> list[Effect]:
        """The spawn that was asked for succeeded."""
        self.machine.now_ns = now_ns
        partitions.process_started(self.machine, self.machine.partitions[partition_id], pid)
        return self._effects()

    def process_exited(
        self, partition_id: int, status: ExitStatus | None, reason: str, now_ns: int = 0
    ) -> list[Effect]:
        """A partition's process was reaped, or could not be spawned.

        Args:
            status: None for the root, which is somebody else's child.
            reason: one line for people.
        """
        self.machine.now_ns = now_ns
        partition = self.machine.partitions[partition_id]
        partitions.process_exited(self.machine, partition, status, reason)
        if self.machine.faults is not None:
            self.machine.faults.process_exited(partition_id)
        reboot.settle(self.machine)
        return self._effects()

    def heartbeat_due(self, partition_id: int, now_ns: int) -> list[Effect]:
        """The time that an effect named has come: has the partition kept its promise?"""
        self.machine.now_ns = now_ns
        if (partition := self.machine.partitions.get(partition_id)) is not None:
            heartbeat.check(self.machine, partition)
        return self._effects()

    def statistics_due(self, now_ns: int) -> list[Effect]:
        """The interval that an effect named is over."""
        self.machine.now_ns = now_ns
        statistics.refresh(self.machine)
        return self._effects()

    def timers_due(self, now_ns: int) -> list[Effect]:
        """The moment has come that an ArmTimers named."""
        self.machine.now_ns = now_ns
        self.machine.timers_armed_ns = None
        timer_expiry.expire_due(self.machine)
        if self.machine.faults is not None:
            self.machine.faults.time_has_come(self.decide)
        return self._effects()

    def set_shares(
        self, partition_id: int, changed: Mapping[PartitionProperty, int], now_ns: int
    ) -> list[Effect]:
        """The platform changes what the scheduler gives. Refused: PROPERTY_VALUE_OUT_OF_RANGE; nothing has changed."""
        self.machine.now_ns = now_ns
        properties.set_shares(self.machine, self.machine.partitions[partition_id], changed)
        return self._effects()

    def pause(self, partition_ids: Iterable[int], paused: bool, now_ns: int) -> list[Effect]:
        """The platform stops partitions, and lets them go on, in this order."""
        self.machine.now_ns = now_ns
        for each in partition_ids:
            (pausing.pause if paused else pausing.resume)(self.machine, self.machine.partitions[each])
        return self._effects()

    def break_on_purpose(self, act: Callable[[], object], now_ns: int) -> list[Effect]:
        """Arm faults, heal them, or have happen what no partition asked for: as one event."""
        self.machine.now_ns = now_ns
        act()
        return self._effects()

    def stop(self) -> None:
        """The machine is being stopped: from now on the root's end is no failure to be mended."""
        self.machine.on_root_failure = RootFailurePolicy.HALT
        self.machine.rebooting = False

    def begin_reboot(self) -> None:
        """Every partition is about to be ended: when the last one is, a new root begins."""
        self.machine.rebooting = True

    def kill(self, partition_id: int) -> list[Effect]:
        """The platform pulls the plug of one partition. What follows, follows from its process's end."""
        partition = self.machine.partitions[partition_id]
        if partition.process in (Process.STARTING, Process.RUNNING):
            self.machine.effects.append(KillPartition(partition_id))
        return self._effects()

    def _effects(self) -> list[Effect]:
        due_ns = self.machine.timers.earliest_ns()
        if self.machine.faults is not None:
            due_ns = self.machine.faults.meet_effects(due_ns)
        if due_ns != self.machine.timers_armed_ns:
            self.machine.timers_armed_ns = due_ns
            self.machine.effects.insert(0, ArmTimers(due_ns))  # nothing follows a Halt
        effects, self.machine.effects = self.machine.effects, []
        return effects
