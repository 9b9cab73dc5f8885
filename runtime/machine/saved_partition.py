"""The file of a saved partition, as bytes: what it was, what the hypervisor kept for it, and its memory.

    head    8 bytes "PVSAVED\\0", u32 version, u32 length of the description, u32 CRC-32 of the description
    description   a msgpack map, see Description
    state   what its program wants to know when it goes on: as many bytes as the description says
    runs    of pages of its memory that are not all zero, in ascending order:
            u32 slot, by its place in the description | u32 pages | u64 first page of the slot | u32 CRC-32 of these
            16 bytes and the pages | the pages, 4096 bytes each
    end     u32 0xFFFFFFFF | u32 0 | u64 how many runs | u32 CRC-32 of the heads of all runs

Little-endian. A reader trusts nothing: every length is bounded before anything of that length is read, and what does
not fit is a SavedPartitionError. Nothing here opens a file.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Annotated, Final, Literal, Protocol

import msgspec
from msgspec import Meta

from runtime.abi import GPFN_MAX, PAGE_BYTES, SLOT_PAGES_MAX, TIMERS_PER_VP, VPS_PER_PARTITION_MAX

MAGIC: Final = b"PVSAVED\0"
VERSION: Final = 2
STATE_BYTES_MAX: Final = 16 << 20  # of one program
DESCRIPTION_BYTES_MAX: Final = 1 << 20
RUN_PAGES_MAX: Final = 256  # in one run
SAVED_SLOTS_MAX: Final = 4096  # of one partition
SAVED_DEVICES_MAX: Final = 64  # disks, and emulated devices
DEVICE_STATE_BYTES_MAX: Final = 1024  # as partitions/emulated/port_device.py has it
VECTOR_BYTES: Final = 32  # a bit for each of 256
_HEAD: Final = struct.Struct("<8sIII")
_RUN: Final = struct.Struct("<IIQ")
_CRC: Final = struct.Struct("<I")
_END: Final = 0xFFFF_FFFF

assert _HEAD.size == 20
assert _RUN.size + _CRC.size == 20

_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Register = Annotated[int, Meta(ge=0)]  # 64 bits: more, msgpack does not have
_Crc = Annotated[int, Meta(ge=0, le=2**32 - 1)]
_Page = Annotated[bytes, Meta(min_length=PAGE_BYTES, max_length=PAGE_BYTES)]


class SavedPartitionError(Exception):
    """It is no such file, or not a whole one, or not of a version that this program knows. One line for the user."""


class DiskIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A disk as it stood: its blocks are not copied, and they must not have changed since."""

    device: str
    path: str
    size_bytes: _Count
    inode: _Count
    host_device: _Count
    changed_ns: _Count  # the file's time of modification: each write is a generation


class SavedProcessor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the hypervisor keeps of one virtual processor."""

    index: Annotated[int, Meta(ge=0, lt=VPS_PER_PARTITION_MAX)]
    registers: Annotated[dict[_Register, _Register], Meta(max_length=256)]  # by TLFS's number
    sim: _Page
    sief: _Page
    vectors: Annotated[
        bytes, Meta(min_length=VECTOR_BYTES, max_length=VECTOR_BYTES)
    ]  # asked for, not yet taken
    timers_left: Annotated[  # 100 ns until each timer expires; None: it is stopped
        list[_Count | None], Meta(min_length=TIMERS_PER_VP, max_length=TIMERS_PER_VP)
    ]


class SavedDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An emulated device, in the config's order."""

    kind: str
    state: Annotated[bytes, Meta(max_length=DEVICE_STATE_BYTES_MAX)]


class SavedSlot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of its guest physical address space."""

    gpfn: Annotated[int, Meta(ge=0, le=GPFN_MAX)]
    pages: Annotated[int, Meta(gt=0, le=SLOT_PAGES_MAX)]
    writable: bool
    own: bool  # its pages are here; otherwise they are another partition's


class HypervisorState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the hypervisor keeps of the partition."""

    reference_time: Annotated[int, Meta(ge=0, lt=2**56)]  # 100 ns
    memory_pages: _Count  # deposited
    used_pages: _Count
    privileges: _Register
    os_id: _Register
    reference_tsc: _Register
    processors: Annotated[list[SavedProcessor], Meta(max_length=VPS_PER_PARTITION_MAX)]
    slots: Annotated[list[SavedSlot], Meta(max_length=SAVED_SLOTS_MAX)]


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is in the file beside the program's state and the pages."""

    machine: str
    partition: str
    program: str
    saved_ns: _Count  # since 1970
    disks: Annotated[list[DiskIdentity], Meta(max_length=SAVED_DEVICES_MAX)]
    devices: Annotated[list[SavedDevice], Meta(max_length=SAVED_DEVICES_MAX)]
    hypervisor: HypervisorState
    state_bytes: Annotated[int, Meta(ge=0, le=STATE_BYTES_MAX)]
    state_crc32: _Crc


class Source(Protocol):
    """A file, or a mapping of one."""

    def read(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, whence: Literal[1], /) -> object: ...


class Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


class SavedWriter:
    """Writes one, in order: the head at once, then runs, then the end."""

    def __init__(self, sink: Sink, description: Description, state: bytes) -> None:
        """`description`: its two words on the state are put right. SavedPartitionError: beyond a limit."""
        self._sink, self.size_bytes = sink, 0
        self._runs, self._crc32 = 0, 0
        if len(state) > STATE_BYTES_MAX:
            raise SavedPartitionError(f"a state of {len(state)} bytes; at most {STATE_BYTES_MAX}")
        described = msgspec.structs.replace(
            description, state_bytes=len(state), state_crc32=zlib.crc32(state)
        )
        data = msgspec.msgpack.encode(described)
        if len(data) > DESCRIPTION_BYTES_MAX:
            raise SavedPartitionError(f"a description of {len(data)} bytes; at most {DESCRIPTION_BYTES_MAX}")
        self._write(_HEAD.pack(MAGIC, VERSION, len(data), zlib.crc32(data)) + data)
        self._write(state)

    def run(self, slot: int, first: int, pages: bytes) -> None:
        """Whole pages, behind those before."""
        head = _RUN.pack(slot, len(pages) // PAGE_BYTES, first)
        self._runs, self._crc32 = self._runs + 1, zlib.crc32(head, self._crc32)
        self._write(head + _CRC.pack(zlib.crc32(pages, zlib.crc32(head))))
        self._write(pages)

    def end(self) -> None:
        self._write(_RUN.pack(_END, 0, self._runs) + _CRC.pack(self._crc32))

    def _write(self, data: bytes) -> None:
        self._sink.write(data)
        self.size_bytes += len(data)


class SavedReader:
    """Reads one, in order. The head, the description and the state are read, and checked, at once."""

    def __init__(self, source: Source) -> None:
        """Raises SavedPartitionError."""
        self._source = source
        magic, version, length, crc32 = _HEAD.unpack(self._exactly(_HEAD.size))
        if magic != MAGIC:
            raise SavedPartitionError("not a saved partition")
        if version != VERSION:
            raise SavedPartitionError(f"of version {version}; this program knows {VERSION}")
        if length > DESCRIPTION_BYTES_MAX:
            raise SavedPartitionError(f"a description of {length} bytes; at most {DESCRIPTION_BYTES_MAX}")
        data = self._exactly(length)
        if zlib.crc32(data) != crc32:
            raise SavedPartitionError("its description has changed since it was written")
        try:
            self.description: Final = msgspec.msgpack.decode(data, type=Description)
        except (ValueError, RecursionError) as error:  # DecodeError, ValidationError
            raise SavedPartitionError(f"a description that is none: {error}") from error
        self._check_slots()
        self.state: Final = self._exactly(self.description.state_bytes)
        if zlib.crc32(self.state) != self.description.state_crc32:
            raise SavedPartitionError("its state has changed since it was written")

    def _check_slots(self) -> None:
        hypervisor, end = self.description.hypervisor, 0
        for slot in hypervisor.slots:
            if slot.gpfn < end or slot.gpfn + slot.pages > GPFN_MAX + 1:
                raise SavedPartitionError("memory out of order")
            end = slot.gpfn + slot.pages
        if [one.index for one in hypervisor.processors] != list(range(len(hypervisor.processors))):
            raise SavedPartitionError("processors out of order")

    def runs(self, wanted: int | None = None) -> Iterator[tuple[int, int, bytes]]:
        """(slot, first page, pages) of each, checked; at the last, that nothing is missing or too much.

        `wanted`: a slot; the pages of others are passed over unread. Raises SavedPartitionError.
        """
        slots = self.description.hypervisor.slots
        count, crc32, last, end = 0, 0, 0, 0
        while True:
            head = self._exactly(_RUN.size)
            slot, pages, first = _RUN.unpack(head)
            (claimed,) = _CRC.unpack(self._exactly(_CRC.size))
            if slot == _END:
                break
            count, crc32 = count + 1, zlib.crc32(head, crc32)
            if slot != last:
                end = 0
            if slot >= len(slots) or slot < last or not slots[slot].own:
                raise SavedPartitionError(f"pages of slot {slot}, out of order, or beyond them all")
            if not 0 < pages <= RUN_PAGES_MAX or first < end or first + pages > slots[slot].pages:
                raise SavedPartitionError(f"pages out of order, or beyond slot {slot}")
            last, end = slot, first + pages
            if wanted is not None and slot != wanted:
                self._source.seek(pages * PAGE_BYTES, 1)
                continue
            data = self._exactly(pages * PAGE_BYTES)
            if zlib.crc32(data, zlib.crc32(head)) != claimed:
                raise SavedPartitionError("its memory has changed since it was written")
            yield slot, first, data
        if (pages, first, claimed) != (0, count, crc32):
            raise SavedPartitionError("runs of pages are missing")
        if self._source.read(1):
            raise SavedPartitionError("more bytes than it says")

    def _exactly(self, size: int) -> bytes:
        data = self._source.read(size)
        if len(data) != size:
            raise SavedPartitionError(f"cut off: {len(data)} bytes where {size} should be")
        return data
