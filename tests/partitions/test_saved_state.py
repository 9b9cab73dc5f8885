"""Whatever byte a save stops at, the slot holds a whole value: the one before or the one that was being saved."""

import random
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.native import crc32c
from partitions.stack.saved_state import (
    HALF_BYTES,
    PAGE_BYTES,
    RECORD_BYTES,
    RECORDS,
    SLOT_PAGES,
    VALUE_BYTES_MAX,
    SavedState,
    SavedStateError,
)
from partitions.stack.saved_state_formats import FORMAT, OLDEST_FORMAT, migrate

SLOT_BYTES = SLOT_PAGES * PAGE_BYTES
HALVES_AT = PAGE_BYTES + RECORDS * RECORD_BYTES
FORMAT_AT = 8
RECORDED = Path(__file__).parent / "saved_state_format_1.msgpack"  # by a machine of that time, under load
FORMAT_1 = msgpack.unpackb(RECORDED.read_bytes(), raw=False, strict_map_key=False)
HEADER = struct.Struct("<QII")  # of a half: sequence, length, checksum

values = st.dictionaries(
    st.text(max_size=8), st.integers(-(1 << 31), 1 << 31) | st.binary(max_size=40) | st.text(max_size=20)
)


def new_slot() -> bytearray:
    memory = bytearray(SLOT_BYTES)
    SavedState(memoryview(memory)).format()
    return memory


def writer(memory: bytearray) -> SavedState:
    """One that goes on from what is there."""
    saved = SavedState(memoryview(memory))
    if any(memory[HALVES_AT:]):
        saved.load()
    return saved


def read(memory: bytearray) -> dict[str, Any]:
    return SavedState(memoryview(memory)).load()


def half_of(sequence: int) -> int:
    return HALVES_AT + sequence % 2 * HALF_BYTES


def stores(value: Mapping[str, object], sequence: int) -> list[tuple[int, bytes]]:
    """What a save writes, in its order, said a second time."""
    data = msgpack.packb([FORMAT, value], use_bin_type=True)
    checksum = crc32c(data, crc32c(sequence.to_bytes(8, "little")))
    at = half_of(sequence)
    return [
        (at, bytes(HEADER.size)),
        (at + HEADER.size, data),
        (at, HEADER.pack(sequence, len(data), checksum)),
    ]


def apply(memory: bytearray, at: int, data: bytes) -> None:
    memory[at : at + len(data)] = data


def prefixes(memory: bytearray, written: list[tuple[int, bytes]]) -> Iterator[None]:
    """The memory as it is after each byte of the stores; at the end all are done."""
    yield
    for at, data in written:
        for place, byte in enumerate(data):
            memory[at + place] = byte
            yield


def test_the_stores_that_are_torn_here_are_those_of_a_save() -> None:
    ours, theirs = new_slot(), new_slot()
    for sequence in range(1, 4):
        value = {"number": sequence, "text": "x" * sequence}
        writer(ours).save(value)
        for at, data in stores(value, sequence):
            apply(theirs, at, data)
        assert ours == theirs


@settings(max_examples=25, deadline=None)
@given(before=st.lists(values, min_size=1, max_size=3), after=values)
def test_at_every_byte_of_a_save_the_old_value_or_the_new_one_is_whole(
    before: list[dict[str, Any]], after: dict[str, Any]
) -> None:
    """Never one from two saves back, never a mixture; and the new one once its last byte stands."""
    memory = new_slot()
    for value in before:
        writer(memory).save(value)
    seen = []
    for _ in prefixes(memory, stores(after, len(before) + 1)):
        seen.append(read(memory))
        assert seen[-1] in (before[-1], after)
    assert seen[0] == before[-1]
    assert seen[-1] == after


@pytest.mark.parametrize("seed", range(60))
def test_nor_does_it_matter_in_what_order_the_bytes_of_one_store_arrive(seed: int) -> None:
    rng = random.Random(seed)
    memory = new_slot()
    old, new = ({"value": rng.randbytes(rng.randrange(200))} for _ in range(2))
    saves = rng.randrange(1, 4)
    for _ in range(saves):
        writer(memory).save(old)
    written = stores(new, saves + 1)
    torn = rng.randrange(len(written))
    for at, data in written[:torn]:
        apply(memory, at, data)
    at, data = written[torn]
    for place in rng.sample(range(len(data)), rng.randrange(len(data))):
        memory[at + place] = data[place]
    assert read(memory) in (old, new)
    # And a successor, who saw that, saves on.
    writer(memory).save({"value": b"newest"})
    assert read(memory) == {"value": b"newest"}


def test_a_first_save_that_stops_halfway_leaves_nothing_to_read() -> None:
    memory = new_slot()
    *unfinished, (at, header) = stores({"a": 1}, 1)
    for _ in prefixes(memory, [*unfinished, (at, header[:-1])]):
        with pytest.raises(SavedStateError, match="nothing was saved yet"):
            read(memory)


@settings(max_examples=50, deadline=None)
@given(place=st.integers(0), change=st.integers(1, 255))
def test_a_changed_byte_in_the_newest_value_brings_back_the_one_before(place: int, change: int) -> None:
    memory = new_slot()
    saved = writer(memory)
    saved.save({"old": 1})
    saved.save({"new": list(range(20))})
    length = HEADER.unpack_from(memory, half_of(2))[1]
    memory[half_of(2) + place % (HEADER.size + length)] ^= change
    assert read(memory) == {"old": 1}
    memory[half_of(1) + HEADER.size] ^= change
    with pytest.raises(SavedStateError, match="torn"):
        read(memory)


@pytest.mark.parametrize("data", [b"\xc1", b"\x93\x01", msgpack.packb([1, 2])])
def test_a_value_with_the_right_sum_that_is_no_map_does_not_count(data: bytes) -> None:
    memory = new_slot()
    writer(memory).save({"old": 1})
    apply(memory, half_of(2) + HEADER.size, data)
    checksum = crc32c(data, crc32c((2).to_bytes(8, "little")))
    apply(memory, half_of(2), HEADER.pack(2, len(data), checksum))
    assert read(memory) == {"old": 1}


@pytest.mark.parametrize("length", [VALUE_BYTES_MAX + 1, 0xFFFF_FFFF])
def test_a_length_beyond_its_half_is_not_believed(length: int) -> None:
    memory = new_slot()
    writer(memory).save({"old": 1})
    apply(memory, half_of(2), HEADER.pack(2, length, 0))
    assert read(memory) == {"old": 1}


def saved_as(version: int | None, value: Mapping[str, object]) -> bytearray:
    """A slot in whose newest half a writer of that format left the value; None: one that did not say it there."""
    memory = new_slot()
    writer(memory).save({"old": 1})
    data = msgpack.packb(value if version is None else [version, value], use_bin_type=True)
    apply(memory, half_of(2) + HEADER.size, data)
    apply(memory, half_of(2), HEADER.pack(2, len(data), crc32c(data, crc32c((2).to_bytes(8, "little")))))
    return memory


def test_one_format_forward_is_read_and_its_unknown_fields_are_no_hindrance() -> None:
    added = {"guests": [], "what_a_later_version_adds": {"deep": [1, 2]}}
    assert read(saved_as(FORMAT + 1, added)) == added


def test_a_format_that_is_too_old_is_refused_by_its_number() -> None:
    with pytest.raises(SavedStateError, match=f"^format {OLDEST_FORMAT - 1}; {OLDEST_FORMAT} is the oldest"):
        read(saved_as(OLDEST_FORMAT - 1, {"a": 1}))


def test_a_value_that_was_saved_in_format_1_is_read_as_the_newest() -> None:
    """It does not say its format itself: then the slot's head does, which nobody has rewritten since."""
    memory = saved_as(None, FORMAT_1)
    struct.pack_into("<I", memory, FORMAT_AT, 1)
    value = read(memory)
    assert value == migrate(1, FORMAT_1)
    saved = SavedState(memoryview(memory))
    saved.load()
    saved.save(value)
    assert read(memory) == value, "the next one is written in the newest format"


def test_fresh_pages_are_no_saved_state() -> None:
    with pytest.raises(SavedStateError, match="nothing was ever saved here"):
        read(bytearray(SLOT_BYTES))
    with pytest.raises(SavedStateError, match="nothing was saved yet"):
        read(new_slot())


def test_a_value_may_fill_its_half_and_no_more_and_one_too_many_changes_nothing() -> None:
    memory = new_slot()
    saved = writer(memory)
    saved.save({"old": 1})
    overhead = len(msgpack.packb([FORMAT, {"v": bytes(1 << 17)}])) - (1 << 17)
    before = bytes(memory)
    with pytest.raises(ValueError, match=f"at most {VALUE_BYTES_MAX}"):
        saved.save({"v": bytes(VALUE_BYTES_MAX - overhead + 1)})
    assert bytes(memory) == before
    largest = {"v": b"x" * (VALUE_BYTES_MAX - overhead)}
    for _ in range(2):  # in either half, beside another one of that size
        saved.save(largest)
    assert read(memory) == largest
    assert not any(memory[PAGE_BYTES:HALVES_AT]), "a value reached into the records"


def test_records_stand_apart_from_one_another_and_from_the_values() -> None:
    memory = new_slot()
    saved = writer(memory)
    saved.save({"a": 1})
    for number in range(RECORDS):
        saved.record(number)[:] = bytes([number % 255 + 1]) * RECORD_BYTES
    for number in range(RECORDS):
        assert bytes(saved.record(number)) == bytes([number % 255 + 1]) * RECORD_BYTES
    assert read(memory) == {"a": 1}
    for number in (-1, RECORDS):
        with pytest.raises(ValueError, match="channel record"):
            saved.record(number)


@pytest.mark.parametrize("size", [0, SLOT_BYTES - 1, SLOT_BYTES + PAGE_BYTES])
def test_a_slot_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=str(SLOT_BYTES)):
        SavedState(memoryview(bytearray(size)))
