"""What `partvisor save` leaves: the file, by whoever wrote it; and the pages in which a program keeps its state."""

import io
import tempfile
import zlib
from functools import cache
from pathlib import Path
from typing import Final

from partitions.saved_program import ProgramStateError, read_state
from runtime.machine import saved_partition
from runtime.machine.saved_partition import (
    DESCRIPTION_BYTES_MAX,
    MAGIC,
    PAGE_BYTES,
    STATE_BYTES_MAX,
    VERSION,
    DiskIdentity,
    SavedPartitionError,
)
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.targets import Side, declare, target

_HEAD_BYTES: Final = 20
_STATE_HEAD_BYTES: Final = 16

declare("saved-partition", Side.READER)
declare("program-state", Side.HOST)


@cache
def _file_seeds() -> list[bytes]:
    """Description and pages of honest files: the head is put on anew, so that a mutant's checksum is right."""
    seeds = []
    disk = DiskIdentity("disk0", "/somewhere", 1 << 20, 7, 8, 9)
    for state in (b"", b"a state", bytes(PAGE_BYTES) + b"x" * 10, bytes(range(256)) * 16):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "one"
            saved_partition.write(path, "machine", "one", "module:main", 5, [disk], state)
            data = path.read_bytes()
        length = int.from_bytes(data[12:16], "little")
        seeds.append(join([data[_HEAD_BYTES : _HEAD_BYTES + length], data[_HEAD_BYTES + length :]]))
    return seeds


@target("saved-partition", Side.READER, _file_seeds)
def reader(data: bytes) -> None:
    """It is taken whole, and then it is what its checksum says; or it is refused."""
    pieces = list(cut(data))
    description, rest = (pieces[0], b"".join(pieces[1:])) if pieces else (b"", b"")
    head = MAGIC + b"".join(
        number.to_bytes(4, "little") for number in (VERSION, len(description), zlib.crc32(description))
    )
    for file in (head + description + rest, data):
        try:
            saved = saved_partition.read(io.BytesIO(file))
        except SavedPartitionError:
            continue
        told = saved.description
        assert len(saved.state) == told.state_bytes <= STATE_BYTES_MAX
        assert zlib.crc32(saved.state) == told.state_crc32
        assert len(file) <= _HEAD_BYTES + DESCRIPTION_BYTES_MAX + len(told.pages) * PAGE_BYTES
        for name in (told.machine, told.partition, told.program):
            name.encode()  # it is text


def _state_seeds() -> list[bytes]:
    def kept(state: bytes) -> bytes:
        head = b"PVSTATE\0" + len(state).to_bytes(4, "little") + zlib.crc32(state).to_bytes(4, "little")
        return join([head, state])

    return [kept(b""), kept(b"what a program wants to know"), kept(bytes(2000))]


@target("program-state", Side.HOST, _state_seeds)
def host(data: bytes) -> None:
    """A program may have anything in its pages: what is read is what its checksum says, and lies within them."""
    pieces = list(cut(data))
    head, state = (pieces[0], b"".join(pieces[1:])) if pieces else (b"", b"")
    pages = -(-len(state) // PAGE_BYTES)
    memory = head[:PAGE_BYTES].ljust(PAGE_BYTES, b"\0") + state.ljust(pages * PAGE_BYTES, b"\0")
    for one in (memory, memory[:PAGE_BYTES], head):
        try:
            found = read_state(memoryview(one))
        except ProgramStateError:
            continue
        assert len(found) <= len(one) - PAGE_BYTES
        assert zlib.crc32(found) == int.from_bytes(one[_STATE_HEAD_BYTES - 4 : _STATE_HEAD_BYTES], "little")
