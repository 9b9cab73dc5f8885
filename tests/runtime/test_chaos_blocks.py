"""A self-describing block shows whatever is wrong with it."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.chaos.blocks import (
    BLOCK_BYTES,
    FOREIGN,
    MISDIRECTED,
    SECTOR_BYTES,
    SEED_MAX,
    SUSPECTS,
    TORN,
    UNFILLED,
    ZEROS,
    BlockRun,
    image_values,
    value_text,
    version_of,
)

BLOCKS = 3
versions = st.builds(version_of, st.integers(1, SEED_MAX), st.integers(1, 2**40 - 1))
addresses = st.integers(0, 2**40)


def filled(first: int, version: int, blocks: int = BLOCKS) -> tuple[bytearray, BlockRun]:
    memory = bytearray(blocks * BLOCK_BYTES)
    run = BlockRun(memoryview(memory))
    run.fill(first, blocks, version)
    return memory, run


@given(addresses, versions, st.integers(1, BLOCKS))
def test_what_was_filled_is_found(first: int, version: int, blocks: int) -> None:
    _, run = filled(first, version)
    run.spoil(BLOCKS)
    run.fill(first, blocks, version)
    assert run.values(first, BLOCKS) == (version,) * blocks + (UNFILLED,) * (BLOCKS - blocks)
    assert version not in {*SUSPECTS, ZEROS}


@given(addresses, versions, st.integers(0, BLOCK_BYTES - 1), st.integers(1, 255))
def test_no_changed_byte_goes_unseen(first: int, version: int, at: int, change: int) -> None:
    memory, run = filled(first, version, 1)
    memory[at] ^= change
    assert run.values(first, 1)[0] in (TORN, FOREIGN)


@given(addresses, versions, versions, st.integers(1, 7), st.booleans())
def test_a_block_of_two_writes_is_torn_and_says_which(
    first: int, version: int, other: int, sectors: int, discarded: bool
) -> None:
    memory, run = filled(first, version, 1)
    if discarded:
        newer, other = bytearray(BLOCK_BYTES), ZEROS
    else:
        newer, _ = filled(first, other, 1)
    memory[: sectors * SECTOR_BYTES] = newer[: sectors * SECTOR_BYTES]
    if other == version:
        assert run.values(first, 1) == (version,)
        return
    assert run.values(first, 1) == (TORN,)
    text = run.describe(0)
    assert f"sectors 0-{sectors - 1} {value_text(other)}" in text
    assert f"sectors {sectors}-7 {value_text(version)}" in text


@given(addresses, addresses, versions)
def test_a_block_of_another_address_is_seen(wanted: int, came: int, version: int) -> None:
    _, run = filled(came, version, 1)
    assert run.values(wanted, 1) == ((version,) if wanted == came else (MISDIRECTED,))


@given(st.binary(min_size=16, max_size=16).filter(lambda text: text[4:8] not in (b"VBLK", bytes(4))))
def test_zeros_are_zeros_and_garbage_is_foreign(garbage: bytes) -> None:
    memory = bytearray(BLOCK_BYTES)
    run = BlockRun(memoryview(memory))
    assert run.values(5, 1) == (ZEROS,)
    memory[:] = garbage * (BLOCK_BYTES // 16)
    assert run.values(5, 1)[0] in (FOREIGN, UNFILLED)


def test_an_image_is_read_block_by_block(tmp_path: Path) -> None:
    memory, _ = filled(1000, version_of(7, 9), 600)
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.seek(1000 * BLOCK_BYTES)
        file.write(memory)
        file.write(bytes(BLOCK_BYTES))
    descriptor = os.open(image, os.O_RDONLY)
    try:
        assert image_values(descriptor, 999, 602) == [ZEROS, *[version_of(7, 9)] * 600, ZEROS]
        with pytest.raises(EOFError):
            image_values(descriptor, 999, 603)
    finally:
        os.close(descriptor)


def test_memory_must_be_whole_blocks() -> None:
    with pytest.raises(ValueError, match="whole blocks"):
        BlockRun(memoryview(bytearray(BLOCK_BYTES + 1)))
