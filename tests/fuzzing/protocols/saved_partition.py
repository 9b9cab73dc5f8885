"""What `partvisor save` leaves: the file, by whoever wrote it; the pages in which a program keeps its state; and the
registers that a guest of machine code keeps there."""

import io
import tempfile
import zlib
from functools import cache
from pathlib import Path
from typing import Final

from partitions.saved_program import ProgramStateError, read_state
from partitions.vp.saved_registers import (
    MachineCodeError,
    Mode,
    register_names,
    restore_registers,
    save_registers,
)
from runtime.abi import PAGE_BYTES
from runtime.machine.saved_partition import (
    DESCRIPTION_BYTES_MAX,
    MAGIC,
    RUN_PAGES_MAX,
    STATE_BYTES_MAX,
    VERSION,
    SavedPartitionError,
    SavedReader,
)
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.targets import Side, declare, target
from tests.runtime import saved_making

_HEAD_BYTES: Final = 20
_RUN_BYTES: Final = 20
_STATE_HEAD_BYTES: Final = 16

declare("saved-partition", Side.READER)
declare("saved-registers", Side.READER)
declare("program-state", Side.HOST)


@cache
def _file_seeds() -> list[bytes]:
    """Description, state and runs of honest files: the head is put on anew, so that a mutant's checksum is right."""
    seeds = []
    memory = {0: {0: b"x" * PAGE_BYTES, 5: b"y" * PAGE_BYTES}, 0x1000: {}}
    for state, filled in ((b"", {}), (b"a state", {}), (b"a state", memory)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "one"
            saved_making.write(path, state, filled)
            data = path.read_bytes()
        length = int.from_bytes(data[12:16], "little")
        rest = data[_HEAD_BYTES + length :]
        seeds.append(join([data[_HEAD_BYTES : _HEAD_BYTES + length], rest[: len(state)], rest[len(state) :]]))
    return seeds


@target("saved-partition", Side.READER, _file_seeds)
def reader(data: bytes) -> None:
    """It is taken whole, and then it is what its checksums say, and lies within its slots; or it is refused."""
    pieces = list(cut(data))
    description, rest = (pieces[0], b"".join(pieces[1:])) if pieces else (b"", b"")
    head = MAGIC + b"".join(
        number.to_bytes(4, "little") for number in (VERSION, len(description), zlib.crc32(description))
    )
    for file in (head + description + rest, data):
        length = 0
        try:
            saved = SavedReader(io.BytesIO(file))
            slots, last = saved.description.hypervisor.slots, (0, 0)
            for slot, first, pages in saved.runs():
                assert slots[slot].own
                assert (slot, first) >= last
                last = slot, first + len(pages) // PAGE_BYTES
                assert 0 < len(pages) <= RUN_PAGES_MAX * PAGE_BYTES
                assert last[1] <= slots[slot].pages
                length += len(pages) + _RUN_BYTES
        except SavedPartitionError:
            continue
        told = saved.description
        assert len(saved.state) == told.state_bytes <= STATE_BYTES_MAX
        assert zlib.crc32(saved.state) == told.state_crc32
        assert len(file) <= _HEAD_BYTES + DESCRIPTION_BYTES_MAX + told.state_bytes + length + _RUN_BYTES
        for name in (told.machine, told.partition, told.program):
            name.encode()  # it is text


@target("saved-registers", Side.READER, lambda: _register_seeds())
def registers(data: bytes) -> None:
    """Of a processor of machine code: they are set, every one, or refused, and then none was."""
    mode = list(Mode)[len(data) % len(Mode)]
    processor = _Processor()
    try:
        restore_registers(processor, _Constants(), mode, data)
    except MachineCodeError:
        assert not processor.values
    else:
        assert save_registers(processor, _Constants(), mode) == data


class _Processor:
    """Takes any value that its registers could hold."""

    def __init__(self) -> None:
        self.values: dict[int, object] = {}

    def reg_read(self, number: int) -> object:
        return self.values.get(number)

    def reg_write(self, number: int, value: object) -> None:
        self.values[number] = value


class _Constants:
    """A number for each name."""

    def __getattr__(self, name: str) -> int:
        return int.from_bytes(name.encode(), "little")


def _register_seeds() -> list[bytes]:
    seeds = []
    for mode in Mode:
        processor = _Processor()
        for name in register_names(mode):
            number = getattr(_Constants(), f"UC_X86_REG_{name}")
            table, real = name.endswith("DTR") or name == "TR", name.startswith("FP") and name[2:].isdigit()
            processor.reg_write(number, (1, 2, 3, 4) if table else (5, 6) if real else 7)
        state = save_registers(processor, _Constants(), mode)
        seeds += [state + bytes(pad) for pad in range(3)]  # one of these lengths chooses this mode
    return seeds


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
