"""An access that a partition cannot make by itself: told to its parent, answered; and every way to do it wrong."""

import struct
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bus.intercept_messages import (
    InterceptAccess,
    InterceptHeader,
    MemoryIntercept,
    PortIntercept,
    memory_access_size,
)
from runtime.abi import (
    ALL_PRIVILEGES,
    INTERCEPT_PAGES,
    INTERCEPTS_PER_PARTITION_MAX,
    STRING_ELEMENTS_MAX,
    HvStatus,
    HypercallCode,
    InterceptType,
    MapFlags,
    PartitionProperty,
    RegisterName,
)
from runtime.hypervisor.machine import RootFailurePolicy
from tests.runtime.hypervisor_world import World, take_message

_C = HypercallCode
_R = RegisterName
_SINT = 0
_UART = 0x3F8
_READ, _WRITE = 1, 2
_ZEROED = int(MapFlags.READ | MapFlags.WRITE | MapFlags.ZEROED)


def _world() -> tuple[World, int]:
    """The root listens, and a child runs; a successor would come for the root."""
    world = World(2048, RootFailurePolicy.STANDBY, successor_files=1)
    world.do(1, _C.HEARTBEAT, within_ms=0)
    world.enable_synic(1, _SINT)
    child = world.child(privileges=ALL_PRIVILEGES, pages=200)
    world.start(child)
    return world, child


def _install(world: World, child: int, first: int, last: int, access: int = _READ | _WRITE) -> None:
    world.do(
        1,
        _C.INSTALL_INTERCEPT,
        partition=child,
        access=access,
        type=int(InterceptType.IO_PORT_RANGE),
        parameter=first | last << 16,
    )


def _access(world: World, child: int, port: int = _UART, size: int = 1, **more: int) -> HvStatus:
    return world.status(child, _C.ACCESS_PORT, **{"vp": 0, "port": port, "size": size, **more})


def _message(world: World, partition: int = 1) -> tuple[int, int, bytes] | None:
    """What its parent finds in the slot; it says that it has taken it."""
    message = take_message(world.vps[partition, 0][0], _SINT)
    if message is None:
        return None
    if message[3]:
        world.do(partition, _C.SET_VP_REGISTERS, vp=0, registers=[[int(_R.EOM), 0]])
    return message[:3]


def _answer(
    world: World, child: int, *, rip: int | None = None, caller: int = 1, **registers: int
) -> HvStatus:
    pairs = [[int(getattr(_R, name.upper())), value] for name, value in registers.items()]
    if rip is not None:
        pairs.append([int(_R.RIP), rip])
    pairs.append([int(_R.INTERCEPT_SUSPEND), 0])
    return world.status(caller, _C.SET_VP_REGISTERS, partition=child, vp=0, registers=pairs)


def _registers(world: World, child: int, *names: RegisterName) -> list[int]:
    found: dict[str, list[int]] = world.do(
        1, _C.GET_VP_REGISTERS, partition=child, vp=0, names=[int(name) for name in names]
    )
    return found["values"]


# -- the messages, byte for byte -----------------------------------------------------------------------------


def test_a_port_write_is_told_as_the_tlfs_lays_it_down() -> None:
    world, child = _world()
    _install(world, child, _UART, _UART + 7)
    assert _access(world, child, write=1, value=0x41) == HvStatus.CALL_PENDING
    found = _message(world)
    assert found is not None
    kind, sender, payload = found
    assert (kind, sender, len(payload)) == (0x8001_0000, child, 128)
    assert payload[:8] == bytes([0, 0, 0, 0, 1, 1]) + struct.pack(
        "<H", 0x14
    )  # VP 0, 1 byte, write, long mode
    assert struct.unpack_from("<QIHH", payload, 8) == (0, 0xFFFF_FFFF, 0x10, 0xA09B)
    assert struct.unpack_from("<QQ", payload, 24) == (0, 2)  # RIP, RFLAGS
    assert struct.unpack_from("<HBBI", payload, 40) == (_UART, 1, 1, 0)
    assert struct.unpack_from("<Q", payload, 48) == (0x41,)
    assert payload[56:72] == b"\xee" + bytes(15)  # OUT DX, AL
    assert payload[72:88] == payload[88:104] == struct.pack("<QIHH", 0, 0xFFFF_FFFF, 0x18, 0xC093)
    assert payload[104:] == bytes(24)


def test_a_store_to_an_intercepted_page_is_told_with_its_address_and_its_instruction() -> None:
    world, child = _world()
    gpa = 0xFE00_0010
    page = gpa >> 12
    world.do(1, _C.INSTALL_INTERCEPT, partition=child, access=_WRITE, type=5, parameter=page | 1 << 40)
    store = {"vp": 0, "gpa": gpa, "size": 4, "write": 1, "value": 0x1234}
    assert world.status(child, _C.ACCESS_MEMORY, **store) == HvStatus.CALL_PENDING
    found = _message(world)
    assert found is not None
    kind, sender, payload = found
    assert (kind, sender, len(payload)) == (0x8000_0001, child, 80)
    assert payload[4:6] == bytes([2, 1])  # two bytes of instruction, a write
    assert struct.unpack_from("<IBBBB", payload, 40) == (0, 2, 3, 0, 0)
    assert struct.unpack_from("<QQ", payload, 48) == (gpa, gpa)
    assert payload[64:80] == b"\x89\x07" + bytes(14)  # MOV [RDI], EAX
    assert _registers(world, child, _R.RAX, _R.RDI) == [0x1234, gpa]
    assert _answer(world, child, rip=2) == HvStatus.SUCCESS
    assert world.completed == [(child, {"value": 0, "left": 0})]


def test_memory_that_is_nowhere_is_told_without_an_intercept_and_ones_own_memory_is_not() -> None:
    world, child = _world()
    world.do(child, _C.MAP_GPA_PAGES, gpfn=16, pages=2, flags=_ZEROED)
    for gpa in (16 << 12, (18 << 12) - 8):
        assert world.status(child, _C.ACCESS_MEMORY, vp=0, gpa=gpa, size=8) == HvStatus.INVALID_PARAMETER
    # Half of it is beyond the slot.
    edge = (18 << 12) - 4
    assert world.status(child, _C.ACCESS_MEMORY, vp=0, gpa=edge, size=8) == HvStatus.CALL_PENDING
    found = _message(world)
    assert found is not None
    assert found[0] == 0x8000_0000
    message = MemoryIntercept.decode(found[2])
    assert (message.gpa, message.header.access, memory_access_size(message.instruction)) == (
        edge,
        InterceptAccess.READ,
        8,
    )
    assert _answer(world, child, rip=3, rax=2**64 - 1) == HvStatus.SUCCESS
    assert world.completed[-1] == (child, {"value": 2**64 - 1, "left": 0})


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("write", [0, 1])
@pytest.mark.parametrize("count", [0, 256])
def test_messages_survive_their_encoding(size: int, write: int, count: int) -> None:
    world, child = _world()
    _install(world, child, 0, 0xFFFF)
    assert _access(world, child, 0x1F0, size, write=write, count=count, gpa=0x5000 * bool(count)) == 0x79
    found = _message(world)
    assert found is not None
    message = PortIntercept.decode(found[2])
    assert message.encode() == found[2]
    assert (message.port, message.size, message.is_string, message.is_repeated) == (
        0x1F0,
        size,
        count > 0,
        count > 0,
    )
    assert message.header == InterceptHeader(0, len(message.instruction), InterceptAccess(write), 0, 2)
    assert message.rcx == count
    assert (message.rsi if write else message.rdi) == (0x5000 if count else 0)


# -- answers -------------------------------------------------------------------------------------------------


def test_a_read_gets_what_its_parent_put_into_a_as_wide_as_it_asked() -> None:
    world, child = _world()
    _install(world, child, _UART, _UART)
    for turn, (size, value) in enumerate(((1, 0x41), (2, 0x4241), (4, 0x44434241))):
        assert _access(world, child, size=size) == HvStatus.CALL_PENDING
        assert _registers(world, child, _R.INTERCEPT_SUSPEND) == [1]
        found = _message(world)
        assert found is not None
        header = PortIntercept.decode(found[2]).header
        rip = header.rip + header.instruction_length
        assert _answer(world, child, rip=rip, rax=0xFFFF_FFFF_4443_4241) == HvStatus.SUCCESS
        assert world.completed[turn] == (child, {"value": value, "left": 0})
        assert _registers(world, child, _R.INTERCEPT_SUSPEND, _R.RIP) == [0, rip]


def test_an_answer_in_few_words_is_the_same_answer() -> None:
    world, child = _world()
    _install(world, child, _UART, _UART)
    say = {"partition": child, "vp": 0, "type": int(InterceptType.IO_PORT)}
    assert _access(world, child) == HvStatus.CALL_PENDING
    for wrong in ({"type": 5}, {"value": 0x100}):
        assert world.status(1, _C.REGISTER_INTERCEPT_RESULT, **say | {"value": 1} | wrong) == 5
    assert world.status(1, _C.REGISTER_INTERCEPT_RESULT, **say | {"vp": 3}, value=0) == 0xE
    world.do(1, _C.REGISTER_INTERCEPT_RESULT, **say, value=0x7F)
    assert world.completed == [(child, {"value": 0x7F, "left": 0})]
    assert _registers(world, child, _R.RIP) == [1]
    assert world.status(1, _C.REGISTER_INTERCEPT_RESULT, **say, value=0) == HvStatus.INVALID_VP_STATE
    assert _access(world, child, count=4, gpa=0x1000) == HvStatus.CALL_PENDING
    assert world.status(1, _C.REGISTER_INTERCEPT_RESULT, **say, value=0) == HvStatus.INVALID_PARAMETER


def test_an_instruction_is_executed_again_until_rip_is_past_it() -> None:
    """So a string access is answered in pieces: RCX says what is left, RIP stays."""
    world, child = _world()
    _install(world, child, 0x1F0, 0x1F0)
    assert _access(world, child, 0x1F0, 2, count=256, gpa=0x5000) == HvStatus.CALL_PENDING
    for left in (200, 100):
        assert _message(world) is not None
        assert _answer(world, child, rcx=left, rdi=0x5000 + 2 * (256 - left)) == HvStatus.SUCCESS
        again = take_message(world.vps[1, 0][0], _SINT)
        assert again is not None
        message = PortIntercept.decode(again[2])
        assert (message.rcx, message.rdi, message.header.rip) == (left, 0x5000 + 2 * (256 - left), 0)
        assert not world.completed
        assert _answer(world, child, rcx=left) == HvStatus.SUCCESS  # nothing moved: the same once more
    assert _message(world) is not None
    assert _answer(world, child, rcx=0) == HvStatus.SUCCESS  # REP with nothing left is over by itself
    assert world.completed == [(child, {"value": 0xFFFF, "left": 0})]
    assert _registers(world, child, _R.RIP) == [3]


def test_an_intercept_that_is_gone_when_the_instruction_runs_again_is_none() -> None:
    world, child = _world()
    _install(world, child, _UART, _UART)
    assert _access(world, child) == HvStatus.CALL_PENDING
    _install(world, child, _UART, _UART, access=0)
    assert _answer(world, child) == HvStatus.SUCCESS
    assert world.completed == [(child, {"value": 0xFF, "left": 0})]


def test_nobody_but_who_is_above_answers_and_only_what_waits() -> None:
    world, child = _world()
    sibling = world.child(privileges=ALL_PRIVILEGES)
    inner = world.child(child, 30, ALL_PRIVILEGES)
    world.start(sibling)
    world.start(inner, child)
    assert _answer(world, child, rip=1) == HvStatus.INVALID_VP_STATE  # it stands at nothing
    _install(world, child, _UART, _UART)
    assert _access(world, child) == HvStatus.CALL_PENDING
    for caller in (child, sibling, inner):
        assert _answer(world, child, rip=1, caller=caller) == HvStatus.ACCESS_DENIED
    pairs: list[list[int]] = [[int(_R.RAX), 1], [int(_R.INTERCEPT_SUSPEND), 1]]
    write = {"partition": child, "vp": 0}
    refused = world.status(1, _C.SET_VP_REGISTERS, **write, registers=pairs)
    assert refused == HvStatus.INVALID_REGISTER_VALUE
    twice = [[int(_R.RIP), 1], [int(_R.INTERCEPT_SUSPEND), 0], [int(_R.INTERCEPT_SUSPEND), 0]]
    world.do(1, _C.SET_VP_REGISTERS, **write, registers=twice)
    assert len(world.completed) == 1


def test_a_vp_makes_one_access_at_a_time_and_two_vps_two() -> None:
    world, child = _world()
    world.do(1, _C.CREATE_VP, partition=child, vp=1)
    assert _access(world, child, vp=1) == HvStatus.INVALID_VP_STATE  # not started
    world.do(1, _C.START_VIRTUAL_PROCESSOR, partition=child, vp=1)
    _install(world, child, _UART, _UART)
    assert _access(world, child) == HvStatus.CALL_PENDING
    assert _access(world, child) == HvStatus.INVALID_VP_STATE
    assert world.status(child, _C.ACCESS_MEMORY, vp=0, gpa=0, size=1) == HvStatus.INVALID_VP_STATE
    assert _access(world, child, vp=1) == HvStatus.CALL_PENDING
    assert world.status(1, _C.DELETE_VP, partition=child, vp=1) == HvStatus.INVALID_VP_STATE
    first, second = _message(world), _message(world)
    assert first is not None
    assert second is not None
    assert [PortIntercept.decode(each[2]).header.vp for each in (first, second)] == [0, 1]
    assert _answer(world, child, rip=1, rax=5) == HvStatus.SUCCESS
    assert world.completed == [(child, {"value": 5, "left": 0})]


# -- where nobody listens ------------------------------------------------------------------------------------


def test_a_port_that_nobody_intercepts_reads_as_ones_and_swallows_writes() -> None:
    world, child = _world()
    _install(world, child, _UART, _UART + 7)
    for size, ones in ((1, 0xFF), (2, 0xFFFF), (4, 0xFFFF_FFFF)):
        assert world.do(child, _C.ACCESS_PORT, vp=0, port=0x60, size=size) == {"value": ones, "left": 0}
        assert world.do(child, _C.ACCESS_PORT, vp=0, port=0x60, size=size, write=1) == {"value": 0, "left": 0}
    assert world.do(child, _C.ACCESS_PORT, vp=0, port=0x60, size=1, count=9) == {"value": 0xFF, "left": 9}
    assert _message(world) is None
    # The root has nobody above it.
    assert world.do(1, _C.ACCESS_PORT, vp=0, port=0x60, size=1) == {"value": 0xFF, "left": 0}
    assert world.do(1, _C.ACCESS_MEMORY, vp=0, gpa=0, size=1) == {"value": 0xFF, "left": 0}


def test_an_access_that_touches_one_intercepted_port_is_intercepted_by_its_kind() -> None:
    world, child = _world()
    _install(world, child, 0x3F8, 0x3F8, _READ)
    expected = {(0x3F7, 1): False, (0x3F7, 2): True, (0x3F5, 4): True, (0x3F8, 1): True, (0x3F9, 4): False}
    for (port, size), told in expected.items():
        status = _access(world, child, port, size)
        assert (status == HvStatus.CALL_PENDING) == told, (port, size)
        if told:
            assert _message(world) is not None
            assert _answer(world, child, rip=99) == HvStatus.SUCCESS
        assert _access(world, child, port, size, write=1) == HvStatus.SUCCESS


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 3},
        {"size": 8},
        {"size": 0},
        {"port": 0xFFFF, "size": 2},
        {"port": 0x10000},
        {"write": 2},
        {"value": 0x100, "write": 1},
        {"count": STRING_ELEMENTS_MAX + 1},
        {"gpa": 4096},  # without a count
    ],
)
def test_an_impossible_access_is_refused(wrong: dict[str, int]) -> None:
    world, child = _world()
    _install(world, child, 0, 0xFFFF)
    assert _access(world, child, **{"port": _UART, "size": 1, **wrong}) == HvStatus.INVALID_PARAMETER
    assert _access(world, child, vp=9) == HvStatus.INVALID_VP_INDEX


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"access": 4}, HvStatus.INVALID_PARAMETER),  # nothing is executed in a port
        ({"type": 2}, HvStatus.INVALID_PARAMETER),
        ({"type": 0, "parameter": 0x10000}, HvStatus.INVALID_PARAMETER),
        ({"parameter": 9 | 8 << 16}, HvStatus.INVALID_PARAMETER),
        ({"parameter": 1 << 32}, HvStatus.INVALID_PARAMETER),
        ({"type": 5, "parameter": 2**40 - 1 | 1 << 40}, HvStatus.INVALID_PARAMETER),
        ({"vp": 1}, HvStatus.INVALID_VP_INDEX),  # of the parent's, which has one
        ({"access": 0}, HvStatus.NOT_FOUND),
    ],
)
def test_an_impossible_intercept_is_refused(wrong: dict[str, int], status: HvStatus) -> None:
    world, child = _world()
    args = {"partition": child, "access": 1, "type": 0x11, "parameter": 0x60 | 0x64 << 16, **wrong}
    assert world.status(1, _C.INSTALL_INTERCEPT, **args) == status


def test_intercepts_cost_a_page_while_there_are_any_and_their_number_is_bounded() -> None:
    world, child = _world()

    def in_use() -> int:
        balance: dict[str, int] = world.do(1, _C.GET_MEMORY_BALANCE, partition=child)
        return balance["in_use"]

    before = in_use()
    for port in range(INTERCEPTS_PER_PARTITION_MAX):
        _install(world, child, port, port)
        _install(world, child, port, port, _READ)  # in place of the former
    assert in_use() == before + INTERCEPT_PAGES
    more = {"partition": child, "access": 1, "type": 0, "parameter": 0x100}
    assert world.status(1, _C.INSTALL_INTERCEPT, **more) == HvStatus.NO_RESOURCES
    for port in range(INTERCEPTS_PER_PARTITION_MAX):
        _install(world, child, port, port, 0)
    assert in_use() == before
    poor = world.child(pages=8)  # as much as it costs itself
    refused = world.status(1, _C.INSTALL_INTERCEPT, **more | {"partition": poor})
    assert refused == HvStatus.INSUFFICIENT_MEMORY


# -- slots and deaths ----------------------------------------------------------------------------------------


def test_messages_of_many_children_wait_for_the_one_slot_in_order() -> None:
    world, first = _world()
    children = [first, *(world.child() for _ in range(4))]
    for child in children[1:]:
        world.start(child)
    for child in children:
        _install(world, child, _UART, _UART)
        assert _access(world, child) == HvStatus.CALL_PENDING
    # The third dies while its message waits: nobody is told of it any more.
    world.ended(children[2])
    senders = []
    while (found := _message(world)) is not None:
        senders.append(found[1])
    assert senders == [children[0], children[1], children[3], children[4]]
    assert world.status(1, _C.SET_VP_REGISTERS, partition=children[2], vp=0, registers=[[1, 0]]) == 7


def test_a_message_waits_until_its_parent_switches_its_synic_on() -> None:
    world, child = _world()
    off, on = [[int(_R.SCONTROL), 0]], [[int(_R.SCONTROL), 1]]
    world.do(1, _C.SET_VP_REGISTERS, vp=0, registers=off)
    _install(world, child, _UART, _UART)
    assert _access(world, child) == HvStatus.CALL_PENDING
    assert take_message(world.vps[1, 0][0], _SINT) is None
    lines = world.lines[1, 0]
    world.do(1, _C.SET_VP_REGISTERS, vp=0, registers=on)
    assert world.lines[1, 0] == lines + 1
    assert _message(world) is not None


def test_a_parent_that_never_answers_leaves_the_vp_suspended_and_it_can_be_killed() -> None:
    world, child = _world()
    _install(world, child, _UART, _UART)
    assert _access(world, child) == HvStatus.CALL_PENDING
    world.advance(3_600_000)
    assert _registers(world, child, _R.INTERCEPT_SUSPEND) == [1]
    world.carry_out(world.hypervisor.kill(child))
    world.bury()
    assert not world.completed
    assert world.status(1, _C.DELETE_PARTITION, partition=child) == HvStatus.SUCCESS


@pytest.mark.parametrize("taken", [False, True])
def test_a_parents_next_process_is_told_of_what_its_predecessor_had_not_answered(taken: bool) -> None:
    """Once each, whether the dead one had taken the message out of its slot or not."""
    world, child = _world()
    other = world.child()
    world.start(other)
    for each in (child, other):
        _install(world, each, _UART, _UART)
        assert _access(world, each) == HvStatus.CALL_PENDING
    if taken:
        assert _message(world) is not None
    world.ended(1, 1)
    world.started(1)
    senders = []
    while (found := _message(world)) is not None:
        senders.append(found[1])
    assert sorted(senders) == [child, other]
    assert _answer(world, child, rip=1, rax=7) == HvStatus.SUCCESS
    assert world.completed == [(child, {"value": 7, "left": 0})]


def test_a_partition_that_outlives_its_process_forgets_the_access_and_its_registers_stay() -> None:
    world, child = _world()
    _install(world, child, _UART, _UART)
    outlives = {"partition": child, "property": int(PartitionProperty.OUTLIVES_PROCESS), "value": 1}
    world.do(1, _C.SET_PARTITION_PROPERTY, **outlives)
    assert _access(world, child) == HvStatus.CALL_PENDING
    world.ended(child)
    world.pending.clear()
    assert _answer(world, child, rip=1) == HvStatus.INVALID_VP_STATE
    world.start(child)
    assert _access(world, child) == HvStatus.CALL_PENDING


def test_a_vp_that_waits_for_messages_of_children_is_not_deleted() -> None:
    world, child = _world()
    world.do(1, _C.CREATE_VP, vp=1)
    both = {"partition": child, "access": 3, "type": 0, "parameter": _UART, "vp": 1}
    world.do(1, _C.INSTALL_INTERCEPT, **both)
    assert _access(world, child) == HvStatus.CALL_PENDING
    assert world.status(1, _C.DELETE_VP, vp=1) == HvStatus.OBJECT_IN_USE
    world.enable_synic(1, _SINT, vp=1)
    assert world.lines[1, 1] == 1
    assert world.status(1, _C.DELETE_VP, vp=1) == HvStatus.SUCCESS  # the message went with its slot
    assert _answer(world, child, rip=1) == HvStatus.SUCCESS


# -- any history ---------------------------------------------------------------------------------------------


class InterceptHistory(RuleBasedStateMachine):
    """Children access, parents answer, processes die. Every access that was left pending is answered once, or its
    process ended; and its parent was told of it at least once before it was answered properly."""

    def __init__(self) -> None:
        super().__init__()
        self.world, first = _world()
        self.children = [first, self.world.child(privileges=ALL_PRIVILEGES)]
        self.world.start(self.children[1])
        self.accepted = dict.fromkeys(self.children, 0)
        self.serial = 0
        for child in self.children:
            _install(self.world, child, 0x100, 0x1FF)

    @rule(who=st.integers(0, 1), port=st.sampled_from([0xFF, 0x100, 0x1FF, 0x200]), write=st.integers(0, 1))
    def access(self, who: int, port: int, write: int) -> None:
        child = self.children[who]
        suspended = self.world.machine.partitions[child].vps[0].intercept.access is not None
        status = _access(self.world, child, port, write=write)
        if suspended:
            assert status == HvStatus.INVALID_VP_STATE
        else:
            told = 0x100 <= port < 0x200
            assert status == (HvStatus.CALL_PENDING if told else HvStatus.SUCCESS)
            self.accepted[child] += told

    @precondition(lambda self: 1 in self.world.running)
    @rule(past=st.booleans(), value=st.integers(0, 255))
    def serve(self, past: bool, value: int) -> None:
        """Take one message, and answer it; or leave RIP where it is, so that it comes again."""
        found = _message(self.world)
        if found is None:
            return
        header = PortIntercept.decode(found[2]).header
        done = len(self.world.completed)
        access = self.world.machine.partitions[found[1]].vps[0].intercept.access
        if access is not None and access.rip != header.rip:
            return  # of an access that was answered unasked: the message for this one comes behind it
        status = _answer(self.world, found[1], rip=header.rip + past, rax=value)
        if past and status == HvStatus.SUCCESS:
            assert len(self.world.completed) == done + 1
            expected = 0 if header.access is InterceptAccess.WRITE else value
            assert self.world.completed[-1] == (found[1], {"value": expected, "left": 0})
        else:
            assert len(self.world.completed) == done

    @precondition(lambda self: 1 in self.world.running)
    @rule(who=st.integers(0, 1))
    def answer_unasked(self, who: int) -> None:
        """Without having looked at the message."""
        _answer(self.world, self.children[who], rip=0xFFFF)

    @precondition(lambda self: 1 in self.world.running)
    @rule()
    def root_dies(self) -> None:
        self.world.now_ns += 10**9
        self.world.ended(1, 1)
        self.world.started(1)

    @invariant()
    def no_reply_is_lost_or_sent_twice(self) -> None:
        for child in self.children:
            answered = sum(who == child for who, _ in self.world.completed)
            waits = self.world.machine.partitions[child].vps[0].intercept.access is not None
            assert answered + waits == self.accepted[child]

    def teardown(self) -> None:
        """A root that serves everything lets everybody go."""
        for _ in range(4):  # two that are due, behind two that were answered unasked
            self.serve(True, 1)
            self.world.do(1, _C.SET_VP_REGISTERS, vp=0, registers=[[int(_R.EOM), 0]])
        for child in self.children:
            partition: Any = self.world.machine.partitions[child]
            assert partition.vps[0].intercept.access is None


TestInterceptHistory = InterceptHistory.TestCase
TestInterceptHistory.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
