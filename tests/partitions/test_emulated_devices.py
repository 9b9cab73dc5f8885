"""Devices behind ports and pages, their records, and a successor that answers an access as its predecessor did."""

import contextlib
import random
import struct
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.intercept_messages import (
    InterceptAccess,
    InterceptFormatError,
    InterceptHeader,
    MemoryIntercept,
    PortIntercept,
    memory_instruction,
    port_instruction,
)
from bus.intercept_page import DirectAnswer, InterceptPage
from partitions.emulated.devices import STRING_BYTES_MAX, Emulated, PartitionDevices, Reply, make_device
from partitions.emulated.ide import SECTOR_BYTES, IdeDisk
from partitions.emulated.plan import EmulatedPlan
from partitions.emulated.port_device import STATE_BYTES_MAX
from partitions.emulated.records import NO_ACCESS, RECORD_BYTES, AccessKey, Answer, Record
from partitions.emulated.serial_port import SerialPort
from partitions.emulated.string_memory import StringMemory

MMIO = 0xFE00_0000
TABLES: list[dict[str, Any]] = [
    {"kind": "uart", "mmio": MMIO},
    {"kind": "keyboard"},
    {"kind": "rtc"},
    {"kind": "ide", "device": "disk0"},
]


class Memory:
    """One slot of the guest's."""

    def __init__(self) -> None:
        self.pages = bytearray(4 * 4096)

    def view(self, gpa: int, length: int) -> memoryview | None:
        return memoryview(self.pages)[gpa : gpa + length] if gpa + length <= len(self.pages) else None

    def close(self) -> None:
        pass


class Pc:
    """A partition's devices over records that survive, and a VP that executes one access at a time."""

    def __init__(self) -> None:
        self.records = [bytearray(RECORD_BYTES) for _ in TABLES]
        self.memory = Memory()
        self.rip = 0
        self.shown = bytearray()  # on the serial line
        self.devices = self._make()

    def _make(self) -> PartitionDevices:
        plans = [EmulatedPlan.from_table(table) for table in TABLES]
        disks = {"disk0": IdeDisk(100, "disk0", False)}
        emulated = [
            Emulated(
                plan,
                make_device(plan, disks, lambda: 10**15, 32 << 20, lambda: SerialPort(self.shown.extend)),
                Record(memoryview(record)),
            )
            for plan, record in zip(plans, self.records, strict=True)
        ]
        return PartitionDevices(emulated, cast(StringMemory, self.memory))

    def take_over(self) -> None:
        self.devices = self._make()
        self.devices.take_over()

    def take_shown(self) -> bytes:
        shown = bytes(self.shown)
        self.shown.clear()
        return shown

    @property
    def disk(self) -> IdeDisk:
        return cast(IdeDisk, self.devices.devices[3].device)

    def message(
        self, port: int, size: int, write: bool, rax: int, rcx: int = 0, at: int = 0
    ) -> PortIntercept:
        instruction = port_instruction(size=size, write=write, string=rcx > 0)
        header = InterceptHeader(0, len(instruction), InterceptAccess(write), self.rip, 2)
        return PortIntercept(header, port, size, rcx > 0, rcx > 0, instruction, rax, rcx, at, at)

    def port(self, port: int, size: int = 1, write: bool = False, rax: int = 0) -> int:
        reply = self.devices.port(self.message(port, size, write, rax))
        assert reply.rip == self.rip + len(port_instruction(size=size, write=write, string=False))
        self.rip = reply.rip
        return reply.rax


# -- records -------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=STATE_BYTES_MAX), min_size=1, max_size=5), st.randoms())
@settings(max_examples=60, deadline=None)
def test_a_record_torn_anywhere_is_the_one_before_or_the_one_after(
    states: list[bytes], rng: random.Random
) -> None:
    """The writer dies at any byte of its last save."""
    memory = bytearray(RECORD_BYTES)
    record = Record(memoryview(memory))
    assert record.load() is None
    saved: list[tuple[bytes, AccessKey, Answer]] = []
    for number, state in enumerate(states):
        before = bytes(memory)
        key, answer = AccessKey(number, number * 7, 0), Answer(number, 1, 2)
        record.save(state, key, answer)
        saved.append((state, key, answer))
    after = bytes(memory)
    changed = [at for at in range(RECORD_BYTES) if before[at] != after[at]]
    cut = rng.randrange(len(changed) + 1)
    torn = bytearray(before)
    for at in changed[:cut]:
        torn[at] = after[at]
    found = Record(memoryview(torn)).load()
    possible = saved[-2:] if cut < len(changed) else saved[-1:]
    if len(saved) == 1 and cut < len(changed):
        assert found is None or (found.state, found.last, found.answer) == saved[0]
    else:
        assert found is not None
        assert (found.state, found.last, found.answer) in possible


def test_a_save_without_an_access_keeps_the_last_one() -> None:
    record = Record(memoryview(bytearray(RECORD_BYTES)))
    record.save(b"new")
    found = record.load()
    assert found is not None
    assert found.last == NO_ACCESS
    record.save(b"one", AccessKey(0, 5, 0), Answer(9, 0, 0))
    record.save(b"two")
    found = record.load()
    assert found is not None
    assert (found.state, found.last, found.answer) == (b"two", AccessKey(0, 5, 0), Answer(9, 0, 0))


# -- ports and pages -----------------------------------------------------------------------------------------


def test_a_port_finds_its_device_and_where_there_is_none_ones_come() -> None:
    pc = Pc()
    pc.port(0x3FF, write=True, rax=0x5A)
    assert pc.port(0x3FF) == 0x5A
    assert pc.port(0x61, rax=0x1234) == 0x12FF  # the rest of RAX is the guest's
    assert pc.port(0x3F6) == 0x50
    # A wide access is two of the bus: 0x3FE, where writes go nowhere, and 0x3FF.
    pc.port(0x3FE, 2, write=True, rax=0xA500)
    assert pc.port(0x3FE, 2) == 0xA5B0
    assert pc.port(0x3FF, 4, rax=2**64 - 1) == 0xFFFF_FFA5  # 32 bits clear the upper half
    # But the disk's data port takes 16 bits and 32 as they are.
    pc.port(0x1F7, write=True, rax=0xEC)
    assert pc.port(0x1F0, 4) & 0xFFFF == 0x0040


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_page_has_the_same_registers(size: int) -> None:
    pc = Pc()
    pc.port(0x3FF, write=True, rax=0x77)
    for at in range(0, 24, size):
        instruction = memory_instruction(size=size, write=False)
        header = InterceptHeader(0, len(instruction), InterceptAccess.READ, pc.rip, 2)
        reply = pc.devices.memory(MemoryIntercept(header, 0, MMIO + at, instruction), lambda: 0)
        pc.rip = reply.rip
        scratch = reply.rax >> 8 * (7 - at) & 0xFF if at <= 7 < at + size else None
        assert scratch in (None, 0x77)
        if at >= 8:
            assert reply.rax == (1 << 8 * size) - 1
    instruction = memory_instruction(size=1, write=True)
    header = InterceptHeader(0, len(instruction), InterceptAccess.WRITE, pc.rip, 2)
    pc.devices.memory(MemoryIntercept(header, 0, MMIO, instruction), lambda: 0x2100 + ord("!"))
    assert pc.take_shown() == b"!"


def test_a_string_access_moves_between_port_and_memory_in_pieces() -> None:
    pc = Pc()
    text = bytes(range(33, 127)) * 100
    pc.memory.pages[: len(text)] = text
    left, at = len(text), 0
    while left:
        reply = pc.devices.port(pc.message(0x3F8, 1, True, 0, left, at))
        assert reply.rcx is not None
        assert reply.address is not None
        assert left - reply.rcx == reply.address - at == min(left, STRING_BYTES_MAX)
        left, at = reply.rcx, reply.address
        assert (reply.rip == pc.rip) == (left > 0)
    assert pc.take_shown() == text
    # Where there is no memory, what was read is lost, and what is written are ones.
    reply = pc.devices.port(pc.message(0x3F8, 1, True, 0, 3, 1 << 40))
    assert pc.take_shown() == b"\xff" * 3
    assert reply.rcx == 0
    assert pc.devices.port(pc.message(0x1F0, 2, False, 0, 256, 2**64 - 4)).rcx == 0


def test_a_sector_comes_in_one_string_access() -> None:
    pc = Pc()
    sector = bytes(range(256)) * 2
    pc.port(0x1F6, write=True, rax=0xE0)
    pc.port(0x1F2, write=True, rax=1)
    pc.port(0x1F7, write=True, rax=0x20)
    request = pc.disk.request
    assert request is not None
    pc.disk.complete(request, sector)
    pc.devices.port(pc.message(0x1F0, 2, False, 0, SECTOR_BYTES // 2, 0x1000))
    assert pc.memory.pages[0x1000:0x1200] == sector


# -- taking over ---------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0x60, 0x64, 0x70, 0x71, 0x1F0, 0x1F7, 0x3F8, 0x3F9, 0x3FA, 0x3FD, 0x300]),
            st.sampled_from([1, 2]),
            st.booleans(),
            st.integers(0, 255),
            st.sampled_from(["lives", "before", "after"]),
        ),
        max_size=40,
    )
)
@settings(max_examples=80, deadline=None)
def test_every_access_is_done_once_though_its_host_dies_before_or_after_it(
    accesses: list[tuple[int, int, bool, int, str]],
) -> None:
    """Beside a host that never dies. `after`: done and recorded, but nobody was told; so it is told of again."""
    mortal, immortal = Pc(), Pc()
    for port, size, write, rax, death in accesses:
        message = mortal.message(port, size, write, rax)
        if death == "before":
            mortal.take_over()
        reply = mortal.devices.port(message)
        if death == "after":
            mortal.take_over()
            again = mortal.devices.port(message)
            assert again == reply
        expected = immortal.devices.port(immortal.message(port, size, write, rax))
        assert reply == expected
        mortal.rip = immortal.rip = reply.rip
        assert mortal.shown == immortal.shown
        states = [[each.device.save() for each in pc.devices.devices] for pc in (mortal, immortal)]
        assert states[0] == states[1]


def test_an_access_that_only_looks_like_the_last_one_is_done() -> None:
    """A successor answers from the record once; then RIP may come to the same place again, as in a loop it never
    does, but a VP that was made anew."""
    pc = Pc()
    message = pc.message(0x3F8, 1, True, 0x41)
    pc.devices.port(message)
    pc.take_over()
    pc.devices.port(message)
    assert pc.take_shown() == b"A"  # once
    pc.devices.port(message)
    assert pc.take_shown() == b"A"  # and now again


def test_plans_have_a_pcs_addresses_unless_told_otherwise() -> None:
    plans = {table["kind"]: EmulatedPlan.from_table(table) for table in TABLES}
    assert plans["keyboard"].ports == (0x60, 0x64)
    assert plans["keyboard"].port_ranges == [(0x60, 0x60), (0x64, 0x64)]
    assert plans["ide"].port_ranges == [(0x1F0, 0x1F7), (0x3F6, 0x3F6)]
    assert plans["uart"].irq == 4
    assert plans["rtc"].irq is None
    moved = EmulatedPlan.from_table({"kind": "uart", "port": 0x2F8, "irq": 3})
    assert (moved.ports[0], moved.irq) == (0x2F8, 3)
    second = EmulatedPlan.from_table({"kind": "ide", "port": 0x170, "device": "d"})
    assert second.ports[-1] == 0x376
    assert Reply(1, 2).rcx is None


# -- garbage -------------------------------------------------------------------------------------------------


_PAYLOADS = st.binary(min_size=128, max_size=128) | st.binary(max_size=140)


@given(
    st.lists(
        st.tuples(
            _PAYLOADS,
            st.sampled_from([None, 0x60, 0x70, 0x71, 0x1F0, 0x1F7, 0x3F8, 0x3FA]),
            st.sampled_from([1, 2, 4, 9, 26, 28, 0, 3, 7]),
            st.integers(0, 2),
        ),
        max_size=20,
    )
)
@settings(max_examples=150, deadline=None)
def test_whatever_a_message_says_it_is_refused_or_answered(
    messages: list[tuple[bytes, int | None, int, int]],
) -> None:
    """As a guest can write them itself, by the direct way."""
    pc = Pc()
    for data, port, info, access in messages:
        payload = bytearray(data)
        if port is not None and len(payload) == 128:
            payload[5] = access
            payload[40:43] = struct.pack("<HB", port, info)
        with contextlib.suppress(InterceptFormatError):
            message = PortIntercept.decode(bytes(payload))
            reply = pc.devices.port(message)
            assert 0 <= reply.rax < 2**64
            assert reply.rcx is None or reply.rcx <= message.rcx
        with contextlib.suppress(InterceptFormatError):
            assert pc.devices.memory(MemoryIntercept.decode(bytes(payload[:80])), lambda: 2**64 - 1).rax >= 0


@given(st.lists(st.tuples(st.binary(max_size=128), st.integers(0, 2**64 - 1)), max_size=10))
@settings(deadline=None)
def test_an_intercept_page_carries_one_request_and_its_answer_at_a_time(
    exchanges: list[tuple[bytes, int]],
) -> None:
    memory = memoryview(bytearray(4096))
    child, parent = InterceptPage(memory), InterceptPage(memory)
    assert parent.request() is None
    for payload, rax in exchanges:
        sequence = child.ask(7, payload)
        assert child.answer(sequence) is None
        assert parent.request() == parent.request() == (sequence, 7, payload)  # whoever looks, and how often
        parent.reply(sequence, DirectAnswer(rax, 1, 2, 3))
        assert parent.request() is None
        assert child.answer(sequence) == (rax, 1, 2, 3)
