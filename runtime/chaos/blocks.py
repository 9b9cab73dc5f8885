"""A disk block that says what it is: which block, which write put it there, and whether it is whole.

    0     4      8        16        24      32                                          4096
    | crc | magic| address | version | seed  | the version, repeated to the block's end  |

All little-endian. The CRC-32C covers everything behind itself. The body repeats the version, so that a block which
is made of two writes shows which sectors came from which, and so that making it costs no random numbers.

What a reader found in a block is one number, its *value*: 0 for a block of zeros, a version for a whole block, or one
of the suspects at the top of the range. Guests write and read such blocks; the checker compares values only.
"""

import os
import struct
from collections.abc import Iterator
from itertools import groupby
from typing import Final

from bus.native import crc32c

BLOCK_BYTES: Final = 4096
SECTOR_BYTES: Final = 512  # the smallest piece that a disk writes as a whole

ZEROS: Final = 0  # never written, or discarded
UNFILLED: Final = 2**64 - 4  # a read said success and brought nothing
FOREIGN: Final = 2**64 - 3  # no block of ours
MISDIRECTED: Final = 2**64 - 2  # a whole block, of another address
TORN: Final = 2**64 - 1  # ours, but not whole
SUSPECTS: Final = {
    UNFILLED: "nothing",
    FOREIGN: "foreign data",
    MISDIRECTED: "another block",
    TORN: "a torn block",
}

NUMBER_BITS: Final = 40  # low bits of a version: the write's number in its writer's history; above: the seed
SEED_MAX: Final = 2**23 - 1  # so that no version comes near the suspects

_HEAD: Final = struct.Struct("<IIQQQ")
_WORD: Final = struct.Struct("<Q")
_CRC: Final = struct.Struct("<I")
_MAGIC: Final = 0x4B4C_4256  # "VBLK"
_SPOILED: Final = 0x4C_4F50_53  # "SPOL": put there before a read, gone after it
_BODY_WORDS: Final = (BLOCK_BYTES - _HEAD.size) // _WORD.size
ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
_IMAGE_PIECE_BLOCKS: Final = 256

assert _HEAD.size == 32


def version_of(seed: int, number: int) -> int:
    """The version that write `number` of the writer `seed` gives to each of its blocks; unique, never 0."""
    return seed << NUMBER_BITS | number


def value_text(value: int) -> str:
    """For people: `3:17` is what write 17 of the guest with seed 3 wrote."""
    if value == ZEROS:
        return "zeros"
    return SUSPECTS.get(value) or f"version {value >> NUMBER_BITS}:{value & (1 << NUMBER_BITS) - 1}"


class BlockRun:
    """Memory for some blocks in a row. The views into it are made once, for all requests that will use it."""

    __slots__ = ("_bodies", "_checked", "_starts", "_view", "blocks")

    def __init__(self, view: memoryview) -> None:
        """ValueError: not whole blocks."""
        if not view.nbytes or view.nbytes % BLOCK_BYTES:
            raise ValueError(f"{view.nbytes} bytes: want whole blocks of {BLOCK_BYTES}")
        self.blocks: Final = view.nbytes // BLOCK_BYTES
        self._view = view
        self._starts = range(0, view.nbytes, BLOCK_BYTES)
        self._checked = [view[at + _CRC.size : at + BLOCK_BYTES] for at in self._starts]
        self._bodies = [view[at + _HEAD.size : at + BLOCK_BYTES] for at in self._starts]

    def fill(self, first_block: int, blocks: int, version: int) -> None:
        """Make the first `blocks` blocks what `version` puts at `first_block` and behind."""
        view, seed, body = self._view, version >> NUMBER_BITS, _WORD.pack(version) * _BODY_WORDS
        for index in range(blocks):
            at = index * BLOCK_BYTES
            _HEAD.pack_into(view, at, 0, _MAGIC, first_block + index, version, seed)
            self._bodies[index][:] = body
            _CRC.pack_into(view, at, crc32c(self._checked[index]))

    def spoil(self, blocks: int) -> None:
        """Before a read: whatever stood there can't be taken for what the read brought."""
        for index in range(blocks):
            _HEAD.pack_into(self._view, index * BLOCK_BYTES, 0, _SPOILED, 0, 0, 0)

    def values(self, first_block: int, blocks: int) -> tuple[int, ...]:
        """What the first `blocks` blocks hold, given that they were read from `first_block` on."""
        found = []
        for index in range(blocks):
            crc, magic, address, version, _ = _HEAD.unpack_from(self._view, index * BLOCK_BYTES)
            whole = magic == _MAGIC and crc == crc32c(self._checked[index])
            if whole and address == first_block + index:
                found.append(version)
            else:
                found.append(MISDIRECTED if whole else self._suspect(index, magic))
        return tuple(found)

    def _suspect(self, index: int, magic: int) -> int:
        if self._bytes(index) == ZERO_BLOCK:
            return ZEROS
        if magic == _SPOILED:
            return UNFILLED
        return TORN if magic in (_MAGIC, 0) else FOREIGN  # 0: its first sector was discarded

    def _bytes(self, index: int) -> bytes:
        at = self._starts[index]
        return bytes(self._view[at : at + BLOCK_BYTES])

    def describe(self, index: int) -> str:
        """What stands in a block that is not what it should be, sector by sector."""
        content = self._bytes(index)
        _, magic, address, version, _ = _HEAD.unpack_from(content)
        head = f"head of block {address}, {value_text(version)}" if magic == _MAGIC else f"head {magic:#x}"
        return "; ".join([head, *_sectors(content)])


def _sectors(content: bytes) -> Iterator[str]:
    """Runs of sectors that end in the same word, which in a whole block is its version."""
    words = [
        _WORD.unpack_from(content, end - _WORD.size)[0]
        for end in range(SECTOR_BYTES, BLOCK_BYTES + 1, SECTOR_BYTES)
    ]
    first = 0
    for word, run in groupby(words):
        last = first + len(list(run)) - 1
        yield f"sectors {first}-{last} {value_text(word)}"
        first = last + 1


def image_values(descriptor: int, first_block: int, blocks: int) -> list[int]:
    """The values of a disk image's blocks, from a descriptor of its file. OSError, or EOFError where it ends early."""
    found: list[int] = []
    piece = bytearray(_IMAGE_PIECE_BLOCKS * BLOCK_BYTES)
    view = memoryview(piece)
    run = BlockRun(view)
    while len(found) < blocks:
        count = min(_IMAGE_PIECE_BLOCKS, blocks - len(found))
        wanted = view[: count * BLOCK_BYTES]
        done, offset = 0, (first_block + len(found)) * BLOCK_BYTES
        while done < wanted.nbytes:
            moved = os.preadv(descriptor, [wanted[done:]], offset + done)
            if moved == 0:
                raise EOFError(f"the image ends at byte {offset + done}")
            done += moved
        found += run.values(first_block + len(found), count)
    return found
