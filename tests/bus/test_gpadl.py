"""GPADLs: what is cut into messages is put together again, and a hostile guest cannot make the receiver grow."""

import random

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.channel_messages import GpadlBody, GpadlHeader
from bus.gpadl import (
    MAX_GPADL_PAGES,
    MAX_GPADLS_IN_PROGRESS,
    AssembledGpadl,
    GpadlAssembler,
    GpadlRefused,
    UnknownGpadl,
    gpadl_messages,
)
from bus.memory import PAGE_BYTES
from bus.packets import GpaRange


def assemble(assembler: GpadlAssembler, message: GpadlHeader | GpadlBody) -> AssembledGpadl | None:
    return assembler.begin(message) if isinstance(message, GpadlHeader) else assembler.extend(message)


def test_the_two_page_vector() -> None:
    (header,) = gpadl_messages(5, 0xE1E10, [GpaRange.contiguous(0x100, 2 * PAGE_BYTES)])
    assert header.encode() == bytes.fromhex(
        "08 00 00 00 00 00 00 00 05 00 00 00 10 1e 0e 00 18 00 01 00 00 20 00 00 00 00 00 00"
        "00 01 00 00 00 00 00 00 01 01 00 00 00 00 00 00"
    )


def test_sixty_four_pages_take_26_28_and_10_pfns() -> None:
    header, *bodies = gpadl_messages(1, 1, [GpaRange.contiguous(0, 64 * PAGE_BYTES)])
    assert isinstance(header, GpadlHeader)
    assert header.range_buffer_bytes == 520
    assert [len(part.ranges) // 8 for part in (header, *bodies)] == [27, 28, 10]
    assert all(len(part.encode()) <= 240 for part in (header, *bodies))


@given(
    extents=st.lists(
        st.tuples(st.integers(0, 1 << 30), st.integers(0, PAGE_BYTES - 1), st.integers(1, 40 * PAGE_BYTES)),
        min_size=1,
        max_size=6,
    ),
    padding=st.booleans(),
)
def test_lists_come_together_again_whatever_is_posted_behind_them(
    extents: list[tuple[int, int, int]], padding: bool
) -> None:
    """With padding: every message filled up to 240 bytes, as UEFI posts them."""
    ranges = tuple(GpaRange.contiguous(gpfn, count, offset) for gpfn, offset, count in extents)
    assembler, result = GpadlAssembler(), None
    for message in gpadl_messages(3, 9, ranges):
        assert result is None
        if padding:
            room = 240 - len(message.encode())
            arguments = (message.ranges + b"\xff" * room,)
            match message:
                case GpadlHeader(relid, gpadl, size, count):
                    message = GpadlHeader(relid, gpadl, size, count, *arguments)
                case GpadlBody(number, gpadl):
                    message = GpadlBody(number, gpadl, *arguments)
        result = assemble(assembler, message)
    assert result == AssembledGpadl(3, 9, ranges)
    assert len(assembler) == assembler.pages == 0


@pytest.mark.parametrize("seed", range(20))
def test_lists_in_progress_do_not_mix_and_survive_a_snapshot(seed: int) -> None:
    rng = random.Random(seed)
    lists = {
        gpadl: [GpaRange.contiguous(gpadl << 12, rng.randrange(1, 200) * PAGE_BYTES)] for gpadl in range(1, 9)
    }
    queues = {gpadl: gpadl_messages(gpadl, gpadl, ranges)[::-1] for gpadl, ranges in lists.items()}
    assembler = GpadlAssembler()
    done = {}
    while queues:
        gpadl = rng.choice(list(queues))
        result = assemble(assembler, queues[gpadl].pop())
        if not queues[gpadl]:
            del queues[gpadl]
            assert result is not None
            done[gpadl] = list(result.ranges)
        if rng.random() < 0.2:
            saved = msgpack.unpackb(msgpack.packb(assembler.to_state()))
            assembler = GpadlAssembler.from_state(saved)
    assert done == lists
    assert assembler.pages == 0


@pytest.mark.parametrize(
    "header",
    [
        GpadlHeader(1, 1, 16, 0, bytes(16)),  # no range
        GpadlHeader(1, 1, 8, 1, bytes(8)),  # a range without a page
        GpadlHeader(1, 1, 24, 2, bytes(24)),  # two ranges in the room of one
        GpadlHeader(1, 1, 17, 1, bytes(24)),
        GpadlHeader(1, 1, 16, 1, bytes(16)),  # zero bytes long
        GpadlHeader(1, 1, 16, 1, (PAGE_BYTES + 1).to_bytes(8, "little") + bytes(8)),  # two pages, one PFN
        GpadlHeader(1, 1, 16, 1, b"\x01\0\0\0\0\x10\0\0" + bytes(8)),  # begins in its second page
        GpadlHeader(1, 1, 0, 1, b""),
    ],
)
def test_nonsense_is_refused_and_leaves_nothing_behind(header: GpadlHeader) -> None:
    assembler = GpadlAssembler()
    with pytest.raises(GpadlRefused):
        assembler.begin(header)
    assert len(assembler) == assembler.pages == 0


def test_a_guest_cannot_make_the_assembler_grow() -> None:
    assembler = GpadlAssembler()
    for gpadl in range(MAX_GPADLS_IN_PROGRESS):
        assert assembler.begin(GpadlHeader(1, gpadl, 0xFFF8, 1, b"")) is None
    before = assembler.to_state()
    for gpadl in (0, MAX_GPADLS_IN_PROGRESS):
        with pytest.raises(GpadlRefused):
            assembler.begin(GpadlHeader(1, gpadl, 16, 1, b""))
    with pytest.raises(UnknownGpadl):
        assembler.extend(GpadlBody(1, MAX_GPADLS_IN_PROGRESS, bytes(8)))
    assert assembler.to_state() == before
    assembler.drop_channel(1)
    assert len(assembler) == assembler.pages == 0


def test_the_longest_list_is_possible_and_one_page_more_is_not() -> None:
    longest = [GpaRange.contiguous(0, MAX_GPADL_PAGES * PAGE_BYTES)]
    assembler = GpadlAssembler()
    *others, last = gpadl_messages(1, 1, longest)
    assert all(assemble(assembler, message) is None for message in others)
    assert assemble(assembler, last) == AssembledGpadl(1, 1, tuple(longest))
    with pytest.raises(ValueError, match="GPA ranges"):
        gpadl_messages(1, 1, [GpaRange.contiguous(0, (MAX_GPADL_PAGES + 1) * PAGE_BYTES)])
    with pytest.raises(ValueError, match="GPA ranges"):
        gpadl_messages(1, 1, [])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.binary(max_size=60)), max_size=30))
def test_arbitrary_headers_and_bodies_raise_typed_errors_alone(pieces: list[tuple[bool, int, bytes]]) -> None:
    assembler = GpadlAssembler()
    for is_header, gpadl, data in pieces:
        message = GpadlHeader(1, gpadl, len(data) * 2, 1, data) if is_header else GpadlBody(0, gpadl, data)
        try:
            assemble(assembler, message)
        except (GpadlRefused, UnknownGpadl):
            continue
    assert len(assembler) <= 4
