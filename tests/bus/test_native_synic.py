"""SynIC pages: what must be atomic in them. Source: TLFS, "Inter-Partition Communication"."""

import mmap
import os
import select
import signal
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.native import PAGE_BYTES, flag_set, flag_take, flags_take_all, synic_post, synic_take
from tests.patience import WAIT_S

SLOT_BYTES = 256
FLAGS_OFFSET = 5
PENDING = 1


def page() -> mmap.mmap:
    return mmap.mmap(-1, PAGE_BYTES)


def test_a_message_stands_in_its_slot_as_the_published_vector() -> None:
    sim = page()
    payload = bytes.fromhex("0f 00 00 00 00 00 00 00 01 00 00 00 04 00 00 00")
    assert synic_post(sim, 2, 1, 4, payload)
    assert sim[512:528] == bytes.fromhex("01 00 00 00 10 00 00 00 04 00 00 00 00 00 00 00")
    assert sim[528:544] == payload
    assert sim[:512] == bytes(512)


@given(
    st.integers(0, 15),
    st.integers(1, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=240),
)
def test_what_is_posted_is_taken_once(sint: int, message_type: int, sender: int, payload: bytes) -> None:
    sim = page()
    assert synic_take(sim, sint) is None
    assert synic_post(sim, sint, message_type, sender, payload)
    assert synic_take(sim, sint) == (message_type, sender, payload, False)
    assert synic_take(sim, sint) is None


def test_an_occupied_slot_keeps_its_message_and_owes_eom() -> None:
    sim = page()
    assert synic_post(sim, 3, 1, 7, b"first")
    assert not synic_post(sim, 3, 1, 7, b"second")
    assert sim[3 * SLOT_BYTES + FLAGS_OFFSET] == PENDING
    assert synic_post(sim, 4, 1, 7, b"another slot is free")
    assert synic_take(sim, 3) == (1, 7, b"first", True)
    assert synic_post(sim, 3, 1, 7, b"second")
    assert sim[3 * SLOT_BYTES + FLAGS_OFFSET] == 0
    assert synic_take(sim, 3) == (1, 7, b"second", False)


def test_a_scribbled_size_is_cut_to_the_slot() -> None:
    sim = page()
    assert synic_post(sim, 0, 1, 7, bytes(240))
    sim[4] = 255
    taken = synic_take(sim, 0)
    assert taken is not None
    assert len(taken[2]) == 240


@pytest.mark.parametrize(("sint", "message_type", "payload"), [(16, 1, b""), (0, 0, b""), (0, 1, bytes(241))])
def test_impossible_messages_are_refused_and_change_nothing(
    sint: int, message_type: int, payload: bytes
) -> None:
    sim = page()
    with pytest.raises(ValueError, match=r"expected|at most"):
        synic_post(sim, sint, message_type, 1, payload)
    assert sim[:] == bytes(PAGE_BYTES)


@given(st.lists(st.integers(0, 16 * 2048 - 1), unique=True, max_size=60))
def test_flags_are_the_bits_of_the_page(flags: list[int]) -> None:
    sief = page()
    expected = bytearray(PAGE_BYTES)
    for flag in flags:
        expected[flag // 8] |= 1 << flag % 8
        assert flag_set(sief, flag)
        assert not flag_set(sief, flag)
    assert sief[:] == expected
    for sint in range(16):
        assert flags_take_all(sief, sint) == sorted(flag % 2048 for flag in flags if flag // 2048 == sint)
    assert sief[:] == bytes(PAGE_BYTES)


@given(st.integers(0, 16 * 2048 - 1))
def test_a_flag_is_taken_once_and_alone(flag: int) -> None:
    sief = page()
    sief[:] = b"\xff" * PAGE_BYTES
    assert flag_take(sief, flag)
    assert not flag_take(sief, flag)
    assert sum(byte.bit_count() for byte in sief[:]) == 8 * PAGE_BYTES - 1


def test_small_or_read_only_pages_and_unknown_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="4096"):
        flag_set(bytearray(4095), 0)
    with pytest.raises(BufferError):
        flag_set(bytes(4096), 0)
    with pytest.raises(ValueError, match="flag"):
        flag_take(page(), 16 * 2048)
    with pytest.raises(ValueError, match="sint"):
        flags_take_all(page(), 16)
    with pytest.raises(OverflowError):
        flag_set(page(), -1)
    with pytest.raises(TypeError):
        flag_set(page())  # type: ignore[call-arg]


def test_no_message_is_lost_between_two_processes() -> None:
    """The poster waits when the slot is full; the taker sends EOM exactly when it is owed. A lost flag stops both."""
    count = 20_000
    sim = page()
    eom, full = os.eventfd(0), os.eventfd(0)
    child = os.fork()
    if child == 0:
        try:
            for i in range(count):
                while not synic_post(sim, 2, 1, i, struct.pack("<Q", i)):
                    os.eventfd_read(eom)  # the slot is full and says so: wait for its owner
                os.eventfd_write(full, 1)
        finally:
            os._exit(0)
    expected = 0
    try:
        while expected < count:
            taken = synic_take(sim, 2)
            if taken is None:
                assert select.select([full], [], [], WAIT_S)[0], "both wait for each other"
                os.eventfd_read(full)
                continue
            assert taken[:3] == (1, expected, struct.pack("<Q", expected))
            expected += 1
            if taken[3]:
                os.eventfd_write(eom, 1)
    finally:
        if expected < count:
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) == 0
    os.close(eom)
    os.close(full)
