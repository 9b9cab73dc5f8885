"""Intercepts of a child's port and memory accesses: the messages, byte for byte, and the answers."""

import struct

import pytest

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
    InterceptType,
)
from tests.runtime.intercepting import (
    READ,
    SINT,
    UART,
    WRITE,
    ZEROED,
    C,
    R,
    access_port,
    answer,
    install,
    intercepting_world,
    message_of,
    registers_of,
)
from tests.runtime.plain_synic import take_message

# -- the messages, byte for byte -----------------------------------------------------------------------------


def test_a_port_write_is_told_as_the_tlfs_lays_it_down() -> None:
    world, child = intercepting_world()
    install(world, child, UART, UART + 7)
    assert access_port(world, child, write=1, value=0x41) == HvStatus.CALL_PENDING
    found = message_of(world)
    assert found is not None
    kind, sender, payload = found
    assert (kind, sender, len(payload)) == (0x8001_0000, child, 128)
    assert payload[:8] == bytes([0, 0, 0, 0, 1, 1]) + struct.pack(
        "<H", 0x14
    )  # VP 0, 1 byte, write, long mode
    assert struct.unpack_from("<QIHH", payload, 8) == (0, 0xFFFF_FFFF, 0x10, 0xA09B)
    assert struct.unpack_from("<QQ", payload, 24) == (0, 2)  # RIP, RFLAGS
    assert struct.unpack_from("<HBBI", payload, 40) == (UART, 1, 1, 0)
    assert struct.unpack_from("<Q", payload, 48) == (0x41,)
    assert payload[56:72] == b"\xee" + bytes(15)  # OUT DX, AL
    assert payload[72:88] == payload[88:104] == struct.pack("<QIHH", 0, 0xFFFF_FFFF, 0x18, 0xC093)
    assert payload[104:] == bytes(24)


def test_a_store_to_an_intercepted_page_is_told_with_its_address_and_its_instruction() -> None:
    world, child = intercepting_world()
    gpa = 0xFE00_0010
    page = gpa >> 12
    world.do(1, C.INSTALL_INTERCEPT, partition=child, access=WRITE, type=5, parameter=page | 1 << 40)
    store = {"vp": 0, "gpa": gpa, "size": 4, "write": 1, "value": 0x1234}
    assert world.status(child, C.ACCESS_MEMORY, **store) == HvStatus.CALL_PENDING
    found = message_of(world)
    assert found is not None
    kind, sender, payload = found
    assert (kind, sender, len(payload)) == (0x8000_0001, child, 80)
    assert payload[4:6] == bytes([2, 1])  # two bytes of instruction, a write
    assert struct.unpack_from("<IBBBB", payload, 40) == (0, 2, 3, 0, 0)
    assert struct.unpack_from("<QQ", payload, 48) == (gpa, gpa)
    assert payload[64:80] == b"\x89\x07" + bytes(14)  # MOV [RDI], EAX
    assert registers_of(world, child, R.RAX, R.RDI) == [0x1234, gpa]
    assert answer(world, child, rip=2) == HvStatus.SUCCESS
    assert world.completed == [(child, {"value": 0, "left": 0})]


def test_memory_that_is_nowhere_is_told_without_an_intercept_and_ones_own_memory_is_not() -> None:
    world, child = intercepting_world()
    world.do(child, C.MAP_GPA_PAGES, gpfn=16, pages=2, flags=ZEROED)
    for gpa in (16 << 12, (18 << 12) - 8):
        assert world.status(child, C.ACCESS_MEMORY, vp=0, gpa=gpa, size=8) == HvStatus.INVALID_PARAMETER
    # Half of it is beyond the slot.
    edge = (18 << 12) - 4
    assert world.status(child, C.ACCESS_MEMORY, vp=0, gpa=edge, size=8) == HvStatus.CALL_PENDING
    found = message_of(world)
    assert found is not None
    assert found[0] == 0x8000_0000
    message = MemoryIntercept.decode(found[2])
    assert (message.gpa, message.header.access, memory_access_size(message.instruction)) == (
        edge,
        InterceptAccess.READ,
        8,
    )
    assert answer(world, child, rip=3, rax=2**64 - 1) == HvStatus.SUCCESS
    assert world.completed[-1] == (child, {"value": 2**64 - 1, "left": 0})


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("write", [0, 1])
@pytest.mark.parametrize("count", [0, 256])
def test_messages_survive_their_encoding(size: int, write: int, count: int) -> None:
    world, child = intercepting_world()
    install(world, child, 0, 0xFFFF)
    assert access_port(world, child, 0x1F0, size, write=write, count=count, gpa=0x5000 * bool(count)) == 0x79
    found = message_of(world)
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
    world, child = intercepting_world()
    install(world, child, UART, UART)
    for turn, (size, value) in enumerate(((1, 0x41), (2, 0x4241), (4, 0x44434241))):
        assert access_port(world, child, size=size) == HvStatus.CALL_PENDING
        assert registers_of(world, child, R.INTERCEPT_SUSPEND) == [1]
        found = message_of(world)
        assert found is not None
        header = PortIntercept.decode(found[2]).header
        rip = header.rip + header.instruction_length
        assert answer(world, child, rip=rip, rax=0xFFFF_FFFF_4443_4241) == HvStatus.SUCCESS
        assert world.completed[turn] == (child, {"value": value, "left": 0})
        assert registers_of(world, child, R.INTERCEPT_SUSPEND, R.RIP) == [0, rip]


def test_an_answer_in_few_words_is_the_same_answer() -> None:
    world, child = intercepting_world()
    install(world, child, UART, UART)
    say = {"partition": child, "vp": 0, "type": int(InterceptType.IO_PORT)}
    assert access_port(world, child) == HvStatus.CALL_PENDING
    for wrong in ({"type": 5}, {"value": 0x100}):
        assert world.status(1, C.REGISTER_INTERCEPT_RESULT, **say | {"value": 1} | wrong) == 5
    assert world.status(1, C.REGISTER_INTERCEPT_RESULT, **say | {"vp": 3}, value=0) == 0xE
    world.do(1, C.REGISTER_INTERCEPT_RESULT, **say, value=0x7F)
    assert world.completed == [(child, {"value": 0x7F, "left": 0})]
    assert registers_of(world, child, R.RIP) == [1]
    assert world.status(1, C.REGISTER_INTERCEPT_RESULT, **say, value=0) == HvStatus.INVALID_VP_STATE
    assert access_port(world, child, count=4, gpa=0x1000) == HvStatus.CALL_PENDING
    assert world.status(1, C.REGISTER_INTERCEPT_RESULT, **say, value=0) == HvStatus.INVALID_PARAMETER


def test_an_instruction_is_executed_again_until_rip_is_past_it() -> None:
    """So a string access is answered in pieces: RCX says what is left, RIP stays."""
    world, child = intercepting_world()
    install(world, child, 0x1F0, 0x1F0)
    assert access_port(world, child, 0x1F0, 2, count=256, gpa=0x5000) == HvStatus.CALL_PENDING
    for left in (200, 100):
        assert message_of(world) is not None
        assert answer(world, child, rcx=left, rdi=0x5000 + 2 * (256 - left)) == HvStatus.SUCCESS
        again = take_message(world.vps[1, 0][0], SINT)
        assert again is not None
        message = PortIntercept.decode(again[2])
        assert (message.rcx, message.rdi, message.header.rip) == (left, 0x5000 + 2 * (256 - left), 0)
        assert not world.completed
        assert answer(world, child, rcx=left) == HvStatus.SUCCESS  # nothing moved: the same once more
    assert message_of(world) is not None
    assert answer(world, child, rcx=0) == HvStatus.SUCCESS  # REP with nothing left is over by itself
    assert world.completed == [(child, {"value": 0xFFFF, "left": 0})]
    assert registers_of(world, child, R.RIP) == [3]


def test_an_intercept_that_is_gone_when_the_instruction_runs_again_is_none() -> None:
    world, child = intercepting_world()
    install(world, child, UART, UART)
    assert access_port(world, child) == HvStatus.CALL_PENDING
    install(world, child, UART, UART, access=0)
    assert answer(world, child) == HvStatus.SUCCESS
    assert world.completed == [(child, {"value": 0xFF, "left": 0})]


def test_nobody_but_who_is_above_answers_and_only_what_waits() -> None:
    world, child = intercepting_world()
    sibling = world.child(privileges=ALL_PRIVILEGES)
    inner = world.child(child, 30, ALL_PRIVILEGES)
    world.start(sibling)
    world.start(inner, child)
    assert answer(world, child, rip=1) == HvStatus.INVALID_VP_STATE  # it stands at nothing
    install(world, child, UART, UART)
    assert access_port(world, child) == HvStatus.CALL_PENDING
    for caller in (child, sibling, inner):
        assert answer(world, child, rip=1, caller=caller) == HvStatus.ACCESS_DENIED
    pairs: list[list[int]] = [[int(R.RAX), 1], [int(R.INTERCEPT_SUSPEND), 1]]
    write = {"partition": child, "vp": 0}
    refused = world.status(1, C.SET_VP_REGISTERS, **write, registers=pairs)
    assert refused == HvStatus.INVALID_REGISTER_VALUE
    twice = [[int(R.RIP), 1], [int(R.INTERCEPT_SUSPEND), 0], [int(R.INTERCEPT_SUSPEND), 0]]
    world.do(1, C.SET_VP_REGISTERS, **write, registers=twice)
    assert len(world.completed) == 1


def test_a_vp_makes_one_access_at_a_time_and_two_vps_two() -> None:
    world, child = intercepting_world()
    world.do(1, C.CREATE_VP, partition=child, vp=1)
    assert access_port(world, child, vp=1) == HvStatus.INVALID_VP_STATE  # not started
    world.do(1, C.START_VIRTUAL_PROCESSOR, partition=child, vp=1)
    install(world, child, UART, UART)
    assert access_port(world, child) == HvStatus.CALL_PENDING
    assert access_port(world, child) == HvStatus.INVALID_VP_STATE
    assert world.status(child, C.ACCESS_MEMORY, vp=0, gpa=0, size=1) == HvStatus.INVALID_VP_STATE
    assert access_port(world, child, vp=1) == HvStatus.CALL_PENDING
    assert world.status(1, C.DELETE_VP, partition=child, vp=1) == HvStatus.INVALID_VP_STATE
    first, second = message_of(world), message_of(world)
    assert first is not None
    assert second is not None
    assert [PortIntercept.decode(each[2]).header.vp for each in (first, second)] == [0, 1]
    assert answer(world, child, rip=1, rax=5) == HvStatus.SUCCESS
    assert world.completed == [(child, {"value": 5, "left": 0})]


# -- where nobody listens ------------------------------------------------------------------------------------


def test_a_port_that_nobody_intercepts_reads_as_ones_and_swallows_writes() -> None:
    world, child = intercepting_world()
    install(world, child, UART, UART + 7)
    for size, ones in ((1, 0xFF), (2, 0xFFFF), (4, 0xFFFF_FFFF)):
        assert world.do(child, C.ACCESS_PORT, vp=0, port=0x60, size=size) == {"value": ones, "left": 0}
        assert world.do(child, C.ACCESS_PORT, vp=0, port=0x60, size=size, write=1) == {"value": 0, "left": 0}
    assert world.do(child, C.ACCESS_PORT, vp=0, port=0x60, size=1, count=9) == {"value": 0xFF, "left": 9}
    assert message_of(world) is None
    # The root has nobody above it.
    assert world.do(1, C.ACCESS_PORT, vp=0, port=0x60, size=1) == {"value": 0xFF, "left": 0}
    assert world.do(1, C.ACCESS_MEMORY, vp=0, gpa=0, size=1) == {"value": 0xFF, "left": 0}


def test_an_access_that_touches_one_intercepted_port_is_intercepted_by_its_kind() -> None:
    world, child = intercepting_world()
    install(world, child, 0x3F8, 0x3F8, READ)
    expected = {(0x3F7, 1): False, (0x3F7, 2): True, (0x3F5, 4): True, (0x3F8, 1): True, (0x3F9, 4): False}
    for (port, size), told in expected.items():
        status = access_port(world, child, port, size)
        assert (status == HvStatus.CALL_PENDING) == told, (port, size)
        if told:
            assert message_of(world) is not None
            assert answer(world, child, rip=99) == HvStatus.SUCCESS
        assert access_port(world, child, port, size, write=1) == HvStatus.SUCCESS


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
    world, child = intercepting_world()
    install(world, child, 0, 0xFFFF)
    assert access_port(world, child, **{"port": UART, "size": 1, **wrong}) == HvStatus.INVALID_PARAMETER
    assert access_port(world, child, vp=9) == HvStatus.INVALID_VP_INDEX


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
    world, child = intercepting_world()
    args = {"partition": child, "access": 1, "type": 0x11, "parameter": 0x60 | 0x64 << 16, **wrong}
    assert world.status(1, C.INSTALL_INTERCEPT, **args) == status


def test_intercepts_cost_a_page_while_there_are_any_and_their_number_is_bounded() -> None:
    world, child = intercepting_world()

    def in_use() -> int:
        balance: dict[str, int] = world.do(1, C.GET_MEMORY_BALANCE, partition=child)
        return balance["in_use"]

    before = in_use()
    for port in range(INTERCEPTS_PER_PARTITION_MAX):
        install(world, child, port, port)
        install(world, child, port, port, READ)  # in place of the former
    assert in_use() == before + INTERCEPT_PAGES
    more = {"partition": child, "access": 1, "type": 0, "parameter": 0x100}
    assert world.status(1, C.INSTALL_INTERCEPT, **more) == HvStatus.NO_RESOURCES
    for port in range(INTERCEPTS_PER_PARTITION_MAX):
        install(world, child, port, port, 0)
    assert in_use() == before
    poor = world.child(pages=8)  # as much as it costs itself
    refused = world.status(1, C.INSTALL_INTERCEPT, **more | {"partition": poor})
    assert refused == HvStatus.INSUFFICIENT_MEMORY
