"""Memory slots: the sealed memfds that guest physical address (GPA) space is made of.

A slot is what KVM calls a memslot: a GPA base, a length, a memfd, an access. Whoever holds the descriptor can
touch those pages and no others, so handing a slot over is how one partition shares memory with another.
"""

import fcntl
import mmap
import os
import stat
import struct
from bisect import bisect_right
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

PAGE_BYTES: Final = 4096  # also on machines whose own pages are larger: GPA pages are a wire format
PAGE_SHIFT: Final = 12
PFN_BYTES: Final = 8  # a page frame number on the wire: little-endian u64
MAX_GPFN: Final = 1 << 40  # 52-bit physical addresses, the most that the architecture has
MAX_SLOT_PAGES: Final = 1 << 22  # 16 GiB
MAX_SLOTS: Final = 8192  # of one GpaSpace

assert 1 << PAGE_SHIFT == PAGE_BYTES
assert mmap.PAGESIZE % PAGE_BYTES == 0

# Without them a peer could shrink the file under our mapping, and our next access would be a SIGBUS; or lift
# the seals' set to something else later.
REQUIRED_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_F_SEAL_FUTURE_WRITE: Final = 0x10  # linux/fcntl.h; Python 3.11 does not name it


class UntrustedMemory(Exception):
    """A descriptor from elsewhere is not the memory that it was said to be. It was not mapped."""


class SlotOverlap(Exception):
    """The pages are taken, or the table is full. The table is as it was."""


def check_extent(gpfn: int, pages: int) -> None:
    """ValueError unless `pages` pages at `gpfn` lie within the address space and make up a possible slot."""
    if not 0 < pages <= MAX_SLOT_PAGES:
        raise ValueError(f"a slot of {pages} pages; 1 to {MAX_SLOT_PAGES} are possible")
    if not 0 <= gpfn <= MAX_GPFN - pages:
        raise ValueError(f"GPFN {gpfn:#x} + {pages} pages leaves the address space of {MAX_GPFN:#x} pages")


class MemorySlot:
    """Pages of one memfd, mapped here, at one place of a GPA space. Owns its descriptor and its mapping.

    Make one with `create` or `from_fd`; end it with `close` or a `with` block.
    """

    __slots__ = ("_mapping", "_view", "fd", "gpfn", "pages", "writable")

    def __init__(self, fd: int, gpfn: int, pages: int, mapping: mmap.mmap, writable: bool) -> None:
        self.fd, self.gpfn, self.pages, self.writable = fd, gpfn, pages, writable
        self._mapping = mapping
        self._view = memoryview(mapping)

    @classmethod
    def create(cls, pages: int, gpfn: int, name: str, *, peers_may_write: bool = True) -> Self:
        """New zeroed pages, sealed against every later change of their size.

        Args:
            pages: length, in pages of PAGE_BYTES.
            gpfn: page frame number of the first page.
            name: shown in /proc/PID/maps, for people; it opens nothing.
            peers_may_write: False: only the mapping made here writes; every later one is read-only.

        Raises:
            ValueError: the extent is impossible.
            OSError: out of descriptors or memory. Nothing is left behind.
        """
        check_extent(gpfn, pages)
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, pages * PAGE_BYTES)
            mapping = mmap.mmap(fd, pages * PAGE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            # Only after the mapping: FUTURE_WRITE refuses every writable mapping from here on, ours too.
            future_write = 0 if peers_may_write else _F_SEAL_FUTURE_WRITE
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, REQUIRED_SEALS | future_write)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, gpfn, pages, mapping, writable=True)

    @classmethod
    def from_fd(cls, fd: int, gpfn: int, pages: int, *, writable: bool = True) -> Self:
        """Map memory that another process made. The slot owns `fd` once this returns; after an error the
        caller still does.

        Raises:
            UntrustedMemory: not a memfd of small pages, another size, an unsealed size, or not mappable so.
            ValueError: the extent is impossible.
        """
        check_extent(gpfn, pages)
        size_bytes = pages * PAGE_BYTES
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise UntrustedMemory("not a file")
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)  # EINVAL where there are no seals: not a memfd
            if seals & REQUIRED_SEALS != REQUIRED_SEALS:
                raise UntrustedMemory(f"seals {seals:#x} lack some of {REQUIRED_SEALS:#x}")
            # Asked after the seals: an unsealed size could change between the two questions.
            if (actual := os.fstat(fd).st_size) != size_bytes:
                raise UntrustedMemory(f"{actual} bytes where {size_bytes} were announced")
            # A huge-page file can run out of pages under an existing mapping: SIGBUS again.
            if (block := os.fstatvfs(fd).f_bsize) != mmap.PAGESIZE:
                raise UntrustedMemory(f"pages of {block} bytes")
            protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
            mapping = mmap.mmap(fd, size_bytes, mmap.MAP_SHARED, protection)
        except OSError as error:
            raise UntrustedMemory(f"cannot be mapped: {error}") from error
        return cls(fd, gpfn, pages, mapping, writable)

    @property
    def memory(self) -> memoryview:
        """The mapped bytes; slices of it are views, not copies. ValueError once the slot is closed."""
        if self.fd < 0:
            raise ValueError("memory slot is closed")
        return self._view

    @property
    def size_bytes(self) -> int:
        return self.pages * PAGE_BYTES

    @property
    def end_gpfn(self) -> int:
        """The page frame number just past the slot."""
        return self.gpfn + self.pages

    def pfns(self, byte_offset: int = 0, byte_count: int | None = None) -> bytes:
        """Page frame numbers, as little-endian u64s, of the pages that a byte range of the slot touches.

        The offset into the first of them is `byte_offset % PAGE_BYTES`: a GPA range carries it beside the
        PFNs. ValueError if the range is empty or leaves the slot.
        """
        if byte_count is None:
            byte_count = self.size_bytes - byte_offset
        if byte_offset < 0 or byte_count <= 0 or byte_offset + byte_count > self.size_bytes:
            raise ValueError(f"bytes {byte_offset}+{byte_count} of a slot of {self.size_bytes}")
        first = byte_offset >> PAGE_SHIFT
        end = (byte_offset + byte_count + PAGE_BYTES - 1) >> PAGE_SHIFT
        return struct.pack(f"<{end - first}Q", *range(self.gpfn + first, self.gpfn + end))

    def close(self) -> None:
        """Give up the descriptor and the mapping. Pages that a view elsewhere still shows go with that view.

        May be called twice.
        """
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        os.close(fd)
        try:
            self._view.release()
            self._mapping.close()
        except BufferError:
            pass  # someone (a channel in C, a slice) still reads there; unmapping would be their SIGSEGV

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        access = "rw" if self.writable else "ro"
        return f"<MemorySlot gpfn={self.gpfn:#x} pages={self.pages} {access} fd={self.fd}>"


class GpaSpace:
    """One partition's table of slots, by page frame number. Slots never overlap, and the table is bounded."""

    __slots__ = ("_bases", "_slots")

    def __init__(self) -> None:
        self._bases: list[int] = []  # sorted; the GPFN of _slots[i] is _bases[i]
        self._slots: list[MemorySlot] = []

    def add(self, slot: MemorySlot) -> None:
        """SlotOverlap if one of its pages is taken, or MAX_SLOTS slots are there."""
        if len(self._slots) >= MAX_SLOTS:
            raise SlotOverlap(f"all {MAX_SLOTS} slots are in use")
        at = bisect_right(self._bases, slot.gpfn)
        if at > 0 and self._slots[at - 1].end_gpfn > slot.gpfn:
            raise SlotOverlap(f"{slot!r} overlaps {self._slots[at - 1]!r}")
        if at < len(self._slots) and slot.end_gpfn > self._bases[at]:
            raise SlotOverlap(f"{slot!r} overlaps {self._slots[at]!r}")
        self._bases.insert(at, slot.gpfn)
        self._slots.insert(at, slot)

    def remove(self, gpfn: int) -> MemorySlot:
        """Take out the slot that starts at `gpfn`; closing it is the caller's. LookupError if none does."""
        at = bisect_right(self._bases, gpfn) - 1
        if at < 0 or self._bases[at] != gpfn:
            raise LookupError(f"no slot starts at GPFN {gpfn:#x}")
        del self._bases[at]
        return self._slots.pop(at)

    def lookup(self, gpfn: int) -> MemorySlot:
        """The slot that holds this page. LookupError if none does."""
        at = bisect_right(self._bases, gpfn) - 1
        if at < 0 or gpfn >= self._slots[at].end_gpfn:
            raise LookupError(f"GPFN {gpfn:#x} is not mapped")
        return self._slots[at]

    def covering(self, gpfn: int, pages: int) -> list[MemorySlot]:
        """The slots, in order, that together hold the whole extent. LookupError if a page is missing."""
        check_extent(gpfn, pages)
        found: list[MemorySlot] = []
        next_gpfn = gpfn
        while next_gpfn < gpfn + pages:
            found.append(self.lookup(next_gpfn))
            next_gpfn = found[-1].end_gpfn
        return found

    def find_free(self, pages: int, above_gpfn: int = 0) -> int:
        """The lowest GPFN from `above_gpfn` on with room for `pages` pages. SlotOverlap if there is none."""
        check_extent(0, pages)
        gpfn = above_gpfn
        for slot in self._slots:
            if slot.gpfn >= gpfn + pages:
                break
            gpfn = max(gpfn, slot.end_gpfn)
        if gpfn > MAX_GPFN - pages:
            raise SlotOverlap(f"no room for {pages} pages above GPFN {above_gpfn:#x}")
        return gpfn

    def close(self) -> None:
        """Close and drop every slot."""
        for slot in self._slots:
            slot.close()
        self._bases.clear()
        self._slots.clear()

    def __iter__(self) -> Iterator[MemorySlot]:
        return iter(tuple(self._slots))

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, gpfn: int) -> bool:
        try:
            self.lookup(gpfn)
        except LookupError:
            return False
        return True
