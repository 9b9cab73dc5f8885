"""A world for the hypervisor's state machine: memory, lines and processes made of plain objects.

It carries effects out and objects to any that makes no sense, such as closing what is not there or a second
root beside a first. Descriptors and memory can be made to run out at any call. Time passes when a test says so.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from runtime.abi import (
    PARTITION_SELF,
    ROOT_PARTITION,
    SINT_MASKED,
    SINT_POLLING,
    ExitStatus,
    HvStatus,
    HypercallCode,
    Privilege,
)
from runtime.hypervisor.dispatch import Hypervisor
from runtime.hypervisor.effects import (
    Announce,
    ArmTimers,
    CheckHeartbeat,
    CompleteCall,
    DropFiles,
    Effect,
    Halt,
    KeepFiles,
    KillPartition,
    LoadDriver,
    RaiseLine,
    RaiseWatch,
    RefreshStatistics,
    ReplaceRoot,
    RingDoorbell,
    RouteSpec,
    SpawnPartition,
    SuspendPartition,
)
from runtime.hypervisor.invariants import check_invariants
from runtime.hypervisor.machine import RootFailurePolicy
from runtime.hypervisor.replies import (
    DoorbellHandle,
    EndpointHandle,
    FilesHandle,
    Handle,
    InterruptPageHandle,
    KickHandle,
    ReferencePageHandle,
    Reply,
    SlotHandle,
    StatisticsHandle,
    VpHandle,
    WatchHandle,
)
from tests.runtime.counted_resources import CountedResources
from tests.runtime.plain_synic import PlainSynic


class World(CountedResources):
    """The hypervisor and everything that it believes in."""

    def __init__(
        self,
        memory_pages: int = 4096,
        on_root_failure: RootFailurePolicy = RootFailurePolicy.HALT,
        successor_files: int = 0,
    ) -> None:
        super().__init__()
        self.vp_timer_ns: int | None = None  # when to look at the VPs' timers
        self.files: dict[int, int] = {}
        self.statistics_timer_ns: int | None = None
        self.stopped: set[int] = set()  # processes
        self.lines: Counter[tuple[int, int]] = Counter()
        self.starting: dict[int, str] = {}  # partition: module
        self.pending: Counter[int] = Counter()  # calls that get their reply later, by partition
        self.completed: list[tuple[int, dict[str, object]]] = []  # of those: (partition, values)
        self.running: set[int] = {ROOT_PARTITION}
        self.doomed: set[int] = set()
        self.announced: list[Announce] = []
        self.halted: str | None = None
        self.timers_ns: dict[int, int] = {}  # by partition: when to look at its heartbeat
        self.timers_set = 0  # how often
        self.hypervisor = Hypervisor(self, PlainSynic(), on_root_failure)
        self.machine = self.hypervisor.machine
        effects = self.hypervisor.adopt_root("root", memory_pages, {}, 100, successor_files=successor_files)
        self.carry_out(effects)

    # -- effects

    def carry_out(self, effects: list[Effect], files: int = 0) -> None:
        for effect in effects:
            assert self.halted is None
            self._carry_out(effect, files)

    def _carry_out(self, effect: Effect, files: int) -> None:
        match effect:
            case ArmTimers(when_ns):
                self.vp_timer_ns = when_ns
            case RefreshStatistics(after_ms):
                assert self.statistics_timer_ns is None
                self.statistics_timer_ns = self.now_ns + after_ms * 1_000_000
            case SuspendPartition(partition, suspended):
                assert partition in self.running
                assert suspended is (partition not in self.stopped)
                self.stopped ^= {partition}
            case KeepFiles(partition):
                assert partition not in self.files
                assert files > 0
                self.files[partition] = files
            case DropFiles(partition):
                del self.files[partition]
            case RaiseLine(partition, vp):
                assert (partition, vp) in self.vps
                self.lines[partition, vp] += 1
            case RingDoorbell(partition, port):
                assert (partition, port) in self.live_doorbells
                self.doorbells[partition, port] += 1
            case RaiseWatch(partition):
                self.watches[partition] += 1
            case SpawnPartition(partition, _, module) | LoadDriver(partition, _, module):
                assert partition not in self.starting
                assert partition not in self.running
                self.starting[partition] = module
            case KillPartition(partition):
                assert partition in self.starting or partition in self.running
                self.doomed.add(partition)
            case ReplaceRoot():
                assert ROOT_PARTITION not in self.starting
                assert ROOT_PARTITION not in self.running
                self.starting[ROOT_PARTITION] = "root"
                if self.machine.root_files:
                    assert ROOT_PARTITION not in self.files
                    self.files[ROOT_PARTITION] = self.machine.root_files
            case CompleteCall(partition, reply):
                assert reply.status == HvStatus.SUCCESS
                self.pending[partition] -= 1
                assert self.pending[partition] >= 0
                self.completed.append((partition, dict(reply.values)))
            case CheckHeartbeat(partition, after_ms):
                self.timers_ns[partition] = self.now_ns + after_ms * 1_000_000
                self.timers_set += 1
            case Announce():
                self.announced.append(effect)
            case Halt(reason):
                self.halted = reason
            case _:
                self.change(effect)

    def started(self, partition: int) -> None:
        del self.starting[partition]
        self.running.add(partition)
        self.carry_out(self.hypervisor.process_started(partition, 1000 + partition, self.now_ns))
        self.check()

    def ended(self, partition: int, code: int = 0) -> None:
        """The process exits, or, while starting, cannot be spawned."""
        self.starting.pop(partition, None)
        self.running.discard(partition)
        self.stopped.discard(partition)
        self.doomed.discard(partition)
        is_first_root = partition == ROOT_PARTITION and self.machine.root_generation == 1
        status = None if is_first_root else ExitStatus(code, None)  # that one is somebody else's child
        self.carry_out(self.hypervisor.process_exited(partition, status, "ended", self.now_ns))
        self.check()

    def advance(self, duration_ms: float) -> None:
        """Let time pass; every timer that comes goes off, in order, when it is due."""
        until_ns = self.now_ns + round(duration_ms * 1_000_000)
        vp_timers = 0
        while True:
            due = (
                {**self.timers_ns}
                if self.vp_timer_ns is None
                else {**self.timers_ns, vp_timers: self.vp_timer_ns}
            )
            partition, when_ns = min(due.items(), key=lambda item: item[1], default=(0, until_ns + 1))
            if when_ns > until_ns:
                break
            self.now_ns = max(self.now_ns, when_ns)
            if partition == vp_timers:
                self.expire_vp_timers()
            else:
                del self.timers_ns[partition]
                self.carry_out(self.hypervisor.heartbeat_due(partition, self.now_ns))
                self.check()
        self.now_ns = until_ns

    def expire_vp_timers(self) -> None:
        """The broker's timerfd went off, perhaps late."""
        self.vp_timer_ns = None
        self.carry_out(self.hypervisor.timers_due(self.now_ns))
        self.check()

    def refresh_statistics(self) -> None:
        """The interval is over."""
        assert self.statistics_timer_ns is not None
        self.now_ns, self.statistics_timer_ns = max(self.now_ns, self.statistics_timer_ns), None
        self.carry_out(self.hypervisor.statistics_due(self.now_ns))
        self.check()

    def bury(self) -> None:
        """Every doomed process ends."""
        while self.doomed:
            self.ended(min(self.doomed), 0)

    # -- calls

    def call(self, caller: int, code: object, args: object, files: int = 0) -> Reply:
        """Any call; checks what must hold after it, whatever it was."""
        reply, effects = self.hypervisor.handle(caller, code, args, files, self.now_ns)
        if reply.status:
            assert not reply.values
            assert not reply.handles
        if reply.status is HvStatus.CALL_PENDING:
            self.pending[caller] += 1
        self.carry_out(effects, files)
        for handle in reply.handles:
            self._check_handle(handle)
        self.check()
        return reply

    def _check_handle(self, handle: Handle) -> None:
        match handle:
            case SlotHandle(slot, _):
                assert slot in self.slots
            case VpHandle(partition, vp):
                assert (partition, vp) in self.vps
            case DoorbellHandle(partition, port):
                assert (partition, port) in self.live_doorbells
            case KickHandle(route):
                assert route in self.routes
            case StatisticsHandle(page):
                assert page in self.statistics
            case ReferencePageHandle(partition):
                assert partition in self.reference_pages
            case InterruptPageHandle(partition, vp):
                assert (partition, vp) in self.interrupt_pages
            case WatchHandle(partition):
                assert partition in self.watches
            case EndpointHandle(endpoint, waiting):
                assert endpoint in self.endpoints
                if waiting:
                    self.endpoints.remove(endpoint)
            case FilesHandle(partition):
                del self.files[partition]

    def do(self, caller: int, code: HypercallCode, files: int = 0, **args: object) -> Any:
        """A call that must succeed; its values."""
        reply = self.call(caller, int(code), args, files)
        assert reply.status == HvStatus.SUCCESS, f"{code.name}: {reply.status.name}"
        return reply.values

    def status(self, caller: int, code: HypercallCode, files: int = 0, **args: object) -> HvStatus:
        """A call's status. One that is refused changes nothing at all."""
        before = self.snapshot()
        reply = self.call(caller, int(code), args, files)
        if reply.status not in (HvStatus.SUCCESS, HvStatus.CALL_PENDING):
            assert self.snapshot() == before
        return reply.status

    def snapshot(self) -> str:
        machine = self.machine
        state = (
            machine.partitions,
            machine.slots,
            machine.next_partition,
            machine.next_slot,
            machine.next_route,
        )
        world = (
            self.statistics_timer_ns,
            self.slot_bytes,
            self.slots,
            self.live_doorbells,
            self.routes,
            self.watches,
            self.files,
            self.doomed,
        )
        return repr((state, world, self.lines, self.doorbells, self.timers_ns))

    def check(self) -> None:
        """The machine's invariants, and that the world holds exactly what the machine thinks it does."""
        machine = self.machine
        check_invariants(machine)
        assert not machine.effects
        everyone = machine.partitions.values()
        assert self.slots == {slot.id: slot.pages for slot in machine.slots.values()}
        assert set(self.vps) == {(each.id, vp) for each in everyone for vp in each.vps}
        assert self.live_doorbells == {
            (each.id, port.id) for each in everyone for port in each.ports.values() if port.doorbell
        }
        assert set(self.routes) == {
            connection.sender_route
            for each in everyone
            for connection in each.connections.values()
            if connection.sender_route is not None
        }
        assert set(self.watches) == {each.id for each in everyone if each.watched_children}
        assert set(self.interrupt_pages) == {
            (each.id, vp.index)
            for each in everyone
            for vp in each.vps.values()
            if vp.interrupt_page is not None
        }
        assert set(self.reference_pages) == {each.id for each in everyone if each.has_reference_page}
        assert self.vp_timer_ns == machine.timers_armed_ns
        assert machine.faults is not None or self.vp_timer_ns == machine.timers.earliest_ns()
        assert self.quiet_routes == {
            connection.sender_route
            for each in everyone
            for connection in each.connections.values()
            if connection.sender_route is not None and self._is_quiet(self.routes[connection.sender_route])
        }
        timers = {
            each.id: each.heartbeat_timer_ns for each in everyone if each.heartbeat_timer_ns is not None
        }
        assert timers.keys() == {partition for partition in self.timers_ns if partition in machine.partitions}
        assert self.files == {each.id: each.files for each in everyone if each.files}
        assert self.endpoints == {
            port.endpoint for each in everyone for port in each.ports.values() if port.endpoint is not None
        }
        assert set(self.statistics) == {page.id for each in everyone for page in each.stats_pages.values()}
        assert machine.statistics_timer is (self.statistics_timer_ns is not None)
        assert self.stopped == {each.id for each in everyone if each.suspended and each.id in self.running}

    def _is_quiet(self, spec: RouteSpec) -> bool:
        owner = self.machine.partitions[spec.partition]
        return bool(owner.vps[spec.vp].sints[owner.ports[spec.port].sint] & (SINT_MASKED | SINT_POLLING))

    # -- shorthands

    def child(
        self,
        parent: int = ROOT_PARTITION,
        pages: int = 64,
        privileges: Privilege | None = None,
        name: str | None = None,
    ) -> int:
        """An active child with VP 0 and a program."""
        child: int = self.do(parent, HypercallCode.CREATE_PARTITION)["partition"]
        self.do(parent, HypercallCode.DEPOSIT_MEMORY, partition=child, pages=pages)
        if privileges is not None:
            self.do(
                parent,
                HypercallCode.SET_PARTITION_PROPERTY,
                partition=child,
                property=0x10000,
                value=int(privileges),
            )
        self.do(parent, HypercallCode.INITIALIZE_PARTITION, partition=child)
        self.do(parent, HypercallCode.CREATE_VP, partition=child, vp=0)
        self.do(
            parent,
            HypercallCode.SET_PARTITION_PROPERTY_EX,
            partition=child,
            property=0x8F00_0000,
            value={"module": "guests.any", "name": name or f"child{child}"},
        )
        return child

    def start(self, child: int, parent: int = ROOT_PARTITION) -> None:
        self.do(parent, HypercallCode.START_VIRTUAL_PROCESSOR, partition=child, vp=0)
        self.started(child)

    def enable_synic(self, partition: int, sint: int, vp: int = 0) -> None:
        registers = [[0xA0013, 1], [0xA0012, 1], [0xA0000 + sint, 16], [0xA0010, 1]]
        caller = partition if partition == ROOT_PARTITION else self.machine.partitions[partition].parent
        assert caller is not None
        target = PARTITION_SELF if caller == partition else partition
        self.do(caller, HypercallCode.SET_VP_REGISTERS, partition=target, vp=vp, registers=registers)
