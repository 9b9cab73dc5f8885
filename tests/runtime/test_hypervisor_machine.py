"""Any history of calls, starts, promises and deaths, the root's too, over a growing and shrinking tree of partitions.

After each step the world checks the machine's invariants (conserved pages, a consistent tree, no dangling route)
and that every effect made sense; here we check what a history must lead to.
"""

import copy
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.abi import (
    ALL_PRIVILEGES,
    EXIT_RETIRED,
    GUEST_PRIVILEGES,
    PARTITION_SELF,
    HvStatus,
    HypercallCode,
    MapFlags,
    PartitionState,
    PortType,
    RegisterName,
)
from runtime.hypervisor.machine import ROOT_FAILURES_MAX, ROOT_FAILURES_WITHIN_MS, RootFailurePolicy
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.program import Process
from tests.runtime.hypervisor_world import World
from tests.runtime.plain_synic import take_message

_C = HypercallCode
_SINT = 2
_SMALL = st.integers(0, 6)  # ids, pages and page numbers, small enough to collide


class HypervisorMachine(RuleBasedStateMachine):
    """Partitions are drawn by position, so that a shrunk history still names living ones."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(2048, RootFailurePolicy.STANDBY, successor_files=1)
        self.world.do(1, _C.HEARTBEAT, within_ms=0)
        self.accepted = Counter[tuple[int, int]]()  # messages, by (owner, port)
        self.posted: dict[tuple[int, int], list[bytes]] = defaultdict(list)  # (owner, port), not yet received
        self.serial = 0
        # A family to begin with: two guests and a guest of a guest, with messages switched on.
        for parent, pages in ((1, 400), (1, 200), (2, 100)):
            child = self.world.child(parent, pages, ALL_PRIVILEGES)
            self.world.start(child, parent)
            self.world.enable_synic(child, _SINT)
        self.world.enable_synic(1, _SINT)

    def _pick(self, data: st.DataObject) -> Partition:
        partitions = self.world.machine.partitions
        return partitions[data.draw(st.sampled_from(sorted(partitions)), label="partition")]

    def _call(self, caller: Partition, code: HypercallCode, files: int = 0, **args: Any) -> HvStatus:
        return self.world.status(caller.id, code, files, **args)

    # -- lives

    @rule(
        data=st.data(),
        pages=st.sampled_from([0, 3, 8, 40, 120]),
        privileges=st.sampled_from([None, GUEST_PRIVILEGES, ALL_PRIVILEGES]),
    )
    def grow_a_family(self, data: st.DataObject, pages: int, privileges: Any) -> None:
        """Every step of a creation may be refused, for want of privileges, state or pages."""
        parent = self._pick(data)
        reply = self.world.call(parent.id, int(_C.CREATE_PARTITION), {})
        if reply.status:
            return
        child: Any = reply.values["partition"]
        self._call(parent, _C.DEPOSIT_MEMORY, partition=child, pages=pages)
        if privileges is not None:
            mask = {"property": 0x10000, "value": int(privileges)}
            self._call(parent, _C.SET_PARTITION_PROPERTY, partition=child, **mask)
        self._call(parent, _C.INITIALIZE_PARTITION, partition=child)
        self._call(parent, _C.CREATE_VP, partition=child, vp=0)
        program = {"module": "guests.any", "name": f"p{child}"}
        self._call(
            parent,
            _C.SET_PARTITION_PROPERTY_EX,
            data.draw(st.integers(0, 2)),
            partition=child,
            property=0x8F00_0000,
            value=program,
        )

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        partition = self._pick(data)
        if partition.parent is not None:
            parent = self.world.machine.partitions[partition.parent]
            self._call(parent, _C.START_VIRTUAL_PROCESSOR, partition=partition.id, vp=0)

    @precondition(lambda self: self.world.starting)
    @rule(data=st.data(), works=st.booleans())
    def spawn_is_answered(self, data: st.DataObject, works: bool) -> None:
        partition = data.draw(st.sampled_from(sorted(self.world.starting)))
        if works:
            self.world.started(partition)
        elif partition == 1:
            self._end_root(127)
        else:
            self.world.ended(partition, 127)

    @precondition(lambda self: 1 in self.world.running)
    @rule(code=st.sampled_from([1, EXIT_RETIRED]))
    def root_dies(self, code: int) -> None:
        """Its process is all that changes."""
        before = self._all_but_the_roots_process()
        self._end_root(code)
        assert self._all_but_the_roots_process() == before
        assert self.world.starting[1] == "root"

    def _end_root(self, code: int) -> None:
        """Not so often that the machine gives up."""
        world = self.world
        world.now_ns += ROOT_FAILURES_WITHIN_MS // (ROOT_FAILURES_MAX - 1) * 1_000_000
        world.timers_ns = {key: max(when_ns, world.now_ns) for key, when_ns in world.timers_ns.items()}
        world.ended(1, code)
        assert world.halted is None

    def _all_but_the_roots_process(self) -> object:
        machine, world = self.world.machine, self.world
        partitions = dict(machine.partitions)
        root = replace(partitions[1], process=Process.NONE, pid=None, exit_status=None, failure=None, files=0)
        partitions[1] = replace(root, heartbeat_due_ns=None, heartbeat_timer_ns=None, heartbeat_within_ms=0)
        held = (world.slots, world.vps, world.live_doorbells, world.routes, world.watches)
        return copy.deepcopy((partitions, machine.slots, held))

    @rule(data=st.data(), within_ms=st.sampled_from([0, 50, 1000]))
    def promise(self, data: st.DataObject, within_ms: int) -> None:
        self._call(self._pick(data), _C.HEARTBEAT, within_ms=within_ms)

    @rule(duration_ms=st.sampled_from([1, 30, 400, 11_000]))
    def time_passes(self, duration_ms: int) -> None:
        self.world.advance(duration_ms)

    @precondition(lambda self: self.world.running - {1})
    @rule(data=st.data())
    def process_dies(self, data: st.DataObject) -> None:
        self.world.ended(data.draw(st.sampled_from(sorted(self.world.running - {1}))), 1)

    @precondition(lambda self: self.world.doomed & self.world.running)
    @rule(data=st.data())
    def killed_process_is_reaped(self, data: st.DataObject) -> None:
        partition = data.draw(st.sampled_from(sorted(self.world.doomed & self.world.running)))
        if partition == 1:
            self._end_root(0)
        else:
            self.world.ended(partition, 0)

    @rule(data=st.data(), code=st.sampled_from([_C.FINALIZE_PARTITION, _C.DELETE_PARTITION]))
    def end(self, data: st.DataObject, code: HypercallCode) -> None:
        partition = self._pick(data)
        if partition.parent is not None:
            self._call(self.world.machine.partitions[partition.parent], code, partition=partition.id)

    @rule(data=st.data())
    def platform_kills(self, data: st.DataObject) -> None:
        self.world.carry_out(self.world.hypervisor.kill(self._pick(data).id))

    # -- memory

    @rule(data=st.data(), pages=_SMALL, code=st.sampled_from([_C.DEPOSIT_MEMORY, _C.WITHDRAW_MEMORY]))
    def move_pages(self, data: st.DataObject, pages: int, code: HypercallCode) -> None:
        self._call(self._pick(data), code, partition=self._pick(data).id, pages=pages)

    @rule(data=st.data(), gpfn=_SMALL, pages=_SMALL)
    def map_new(self, data: st.DataObject, gpfn: int, pages: int) -> None:
        flags = int(MapFlags.READ | MapFlags.WRITE | MapFlags.ZEROED)
        target = self._pick(data)
        args = {"partition": target.id, "gpfn": gpfn, "pages": pages, "flags": flags}
        self._call(data.draw(st.sampled_from([target, self._pick(data)])), _C.MAP_GPA_PAGES, **args)

    @rule(data=st.data(), source_gpfn=_SMALL, gpfn=st.integers(0, 12), pages=_SMALL)
    def map_from(self, data: st.DataObject, source_gpfn: int, gpfn: int, pages: int) -> None:
        caller = self._pick(data)
        args = {"source_partition": self._pick(data).id, "source_gpfn": source_gpfn, "pages": pages}
        target = data.draw(st.sampled_from([PARTITION_SELF, self._pick(data).id]))
        self._call(caller, _C.MAP_GPA_PAGES, partition=target, gpfn=gpfn, flags=1, **args)

    @rule(data=st.data(), gpfn=_SMALL, pages=st.integers(1, 20))
    def unmap(self, data: st.DataObject, gpfn: int, pages: int) -> None:
        self._call(self._pick(data), _C.UNMAP_GPA_PAGES, gpfn=gpfn, pages=pages)

    # -- ports

    @rule(data=st.data(), port=_SMALL, message=st.booleans(), vp=st.sampled_from([0, 1, 2**32 - 1]))
    def create_port(self, data: st.DataObject, port: int, message: bool, vp: int) -> None:
        owner, other = self._pick(data), self._pick(data)
        args = {"partition": owner.id, "port": port, "connection_partition": other.id, "sint": _SINT}
        kind = PortType.MESSAGE if message else PortType.EVENT
        caller = data.draw(st.sampled_from([owner, self.world.machine.partitions[1]]))
        flags = 0 if message else 2
        self._call(caller, _C.CREATE_PORT, **args, type=int(kind), vp=vp, flag_count=flags)

    @rule(data=st.data(), connection=_SMALL, port=_SMALL, route=st.integers(0, 1))
    def connect_port(self, data: st.DataObject, connection: int, port: int, route: int) -> None:
        owner, other = self._pick(data), self._pick(data)
        args = {"connection": connection, "port_partition": owner.id, "port": port, "route": route}
        caller = data.draw(st.sampled_from([other, self.world.machine.partitions[1]]))
        self._call(caller, _C.CONNECT_PORT, partition=other.id, **args)

    @rule(data=st.data(), port=_SMALL, message=st.booleans(), route=st.integers(0, 1), claim=st.booleans())
    def link(self, data: st.DataObject, port: int, message: bool, route: int, claim: bool) -> None:
        """As a virtualization stack does it: port, connection, and perhaps the sender's doorbell."""
        partitions = sorted(self.world.machine.partitions)
        ends = st.lists(st.sampled_from(partitions), min_size=2, max_size=2, unique=True)
        owner, other = data.draw(ends) if len(partitions) > 1 else (1, 1)
        kind, flags = (PortType.MESSAGE, 0) if message else (PortType.EVENT, 2)
        root = self.world.machine.partitions[1]
        args = {"port": port, "connection_partition": other, "type": int(kind), "sint": _SINT, "vp": 0}
        self._call(root, _C.CREATE_PORT, partition=owner, flag_count=flags, **args)
        args = {"connection": port, "port_partition": owner, "port": port, "route": route}
        self._call(root, _C.CONNECT_PORT, partition=other, **args)
        if claim:
            self._call(self.world.machine.partitions[other], _C.CLAIM_DOORBELL, connection=port)

    @rule(data=st.data(), port=_SMALL)
    def delete_port(self, data: st.DataObject, port: int) -> None:
        owner = self._pick(data)
        if self._call(owner, _C.DELETE_PORT, port=port) == HvStatus.SUCCESS:
            self.posted.pop((owner.id, port), None)
            self.accepted.pop((owner.id, port), None)

    @rule(data=st.data(), connection=_SMALL)
    def disconnect_port(self, data: st.DataObject, connection: int) -> None:
        self._call(self._pick(data), _C.DISCONNECT_PORT, connection=connection)

    @rule(data=st.data(), number=_SMALL, port=st.booleans(), flag=st.integers(0, 2))
    def claim(self, data: st.DataObject, number: int, port: bool, flag: int) -> None:
        args = {"port" if port else "connection": number, "flag": 0 if port else flag}
        self._call(self._pick(data), _C.CLAIM_DOORBELL, **args)

    @rule(data=st.data(), vp=st.integers(0, 1), register=st.integers(0, 16), value=st.booleans())
    def set_register(self, data: st.DataObject, vp: int, register: int, value: bool) -> None:
        name = [RegisterName.SCONTROL, RegisterName.SIMP, RegisterName.SIEFP][register % 3]
        self._call(self._pick(data), _C.SET_VP_REGISTERS, vp=vp, registers=[[int(name), int(value)]])

    @rule(data=st.data())
    def switch_synic_on(self, data: st.DataObject) -> None:
        partition = self._pick(data)
        if partition.vps and partition.state is PartitionState.ACTIVE:
            self.world.enable_synic(partition.id, _SINT)

    @rule(data=st.data(), code=st.sampled_from([_C.CREATE_VP, _C.DELETE_VP]), vp=st.integers(0, 2))
    def change_vps(self, data: st.DataObject, code: HypercallCode, vp: int) -> None:
        self._call(self._pick(data), code, partition=self._pick(data).id, vp=vp)

    # -- traffic

    @rule(data=st.data(), count=st.integers(1, 20))
    def post_many(self, data: st.DataObject, count: int) -> None:
        sender = self._pick(data)
        for _ in range(count):
            self._post(data, sender)

    def _post(self, data: st.DataObject, sender: Partition) -> None:
        if not sender.connections or sender.state is not PartitionState.ACTIVE:
            return
        connection = data.draw(st.sampled_from(sorted(sender.connections)))
        found = self.world.machine.port_behind(sender.connections[connection])
        self.serial += 1
        payload = self.serial.to_bytes(4, "little")
        args: dict[str, Any] = {"connection": connection, "type": 1, "payload": payload}
        if self._call(sender, _C.POST_MESSAGE, **args) == HvStatus.SUCCESS:
            assert found is not None
            owner, port = found
            self.accepted[owner.id, port.id] += 1
            if port.vp < 2**32 - 1:  # any VP: no order is promised
                self.posted[owner.id, port.id].append(payload)

    @rule(data=st.data())
    def signal(self, data: st.DataObject) -> None:
        sender = self._pick(data)
        for connection in list(sender.connections):
            self._call(sender, _C.SIGNAL_EVENT, connection=connection, flag=0)

    @rule(data=st.data(), vp=st.integers(0, 1))
    def receive(self, data: st.DataObject, vp: int) -> None:
        """Messages of one port to one VP come in order, with none missing, until the port goes."""
        partition = self._pick(data)
        pages = self.world.vps.get((partition.id, vp))
        if pages is None or (message := take_message(pages[0], _SINT)) is None:
            return
        _, port, payload, owed = message
        queue = self.posted[partition.id, port]
        if payload in queue:
            assert queue.pop(0) == payload
        if owed:
            register = [[int(RegisterName.EOM), 0]]
            self._call(partition, _C.SET_VP_REGISTERS, vp=vp, registers=register)

    # -- what holds between steps

    @invariant()
    def all_is_well(self) -> None:
        self.world.check()
        for key in [key for key in self.posted if not self._port_is_there(*key)]:
            del self.posted[key]

    @invariant()
    def a_port_counts_the_messages_that_it_accepted(self) -> None:
        counted = {
            (owner.id, port.id): port.counts.sent
            for owner in self.world.machine.partitions.values()
            for port in owner.ports.values()
            if port.type is PortType.MESSAGE and port.counts.sent
        }
        assert counted == {key: count for key, count in self.accepted.items() if self._port_is_there(*key)}

    def _port_is_there(self, owner: int, port: int) -> bool:
        partition = self.world.machine.partitions.get(owner)
        return partition is not None and port in partition.ports

    def teardown(self) -> None:
        """When the root's children are all finalized and deleted, the root has everything back."""
        world = self.world
        for child in list(world.machine.partitions[1].children):
            state = world.machine.partitions[child].state
            if state in (PartitionState.ACTIVE, PartitionState.FINALIZING):
                world.do(1, _C.FINALIZE_PARTITION, partition=child)
            elif state is PartitionState.UNINITIALIZED:
                pages = world.machine.partitions[child].pool.available
                if pages:
                    world.do(1, _C.WITHDRAW_MEMORY, partition=child, pages=pages)
        if 1 in world.doomed:
            self._end_root(0)
        world.bury()
        for child in list(world.machine.partitions[1].children):
            world.do(1, _C.DELETE_PARTITION, partition=child)
        assert list(world.machine.partitions) == [1]
        root = world.machine.partitions[1]
        assert root.pool.available + root.pool.in_use == 2048
        assert {owner for owner, _ in world.vps} <= {1}
        assert set(world.files) <= {1}


TestHypervisorMachine = HypervisorMachine.TestCase
TestHypervisorMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
