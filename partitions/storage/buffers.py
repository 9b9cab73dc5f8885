"""The pages of a channel's data area, handed out in runs.

A buffer is both a view to read and write and a list of PFNs to put into a packet: the server's preadv lands
in the very bytes that the program looks at.
"""

import struct
from bisect import bisect_left
from typing import Final, Self

from bus.memory import PAGE_BYTES


class BufferSpaceError(Exception):
    """No free run of that many pages now; nothing was taken. Release a buffer, or wait for requests."""


class Buffer:
    """A run of pages. The server may write into it while a request on it is in flight."""

    __slots__ = ("_first_page", "_pool", "gpfn", "in_flight", "view")

    def __init__(self, pool: "BufferPool", first_page: int, view: memoryview) -> None:
        self._pool: BufferPool | None = pool
        self._first_page = first_page
        self.view: Final = view
        self.gpfn: Final = pool.gpfn + first_page
        self.in_flight = 0  # requests that name these pages

    def __len__(self) -> int:
        return self.view.nbytes

    def pfns(self, start: int, length: int) -> bytes:
        """Of the pages that hold [start, start + length), as little-endian u64s."""
        first, last = start // PAGE_BYTES, (start + length - 1) // PAGE_BYTES
        return struct.pack(f"<{last - first + 1}Q", *range(self.gpfn + first, self.gpfn + last + 1))

    def release(self) -> None:
        """Give the pages back; idempotent. ValueError while a request on them is in flight."""
        if self.in_flight:
            raise ValueError("the buffer belongs to a request in flight")
        pool, self._pool = self._pool, None
        if pool is not None:
            pool._give_back(self._first_page, self.view.nbytes // PAGE_BYTES)

    @property
    def released(self) -> bool:
        return self._pool is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class BufferPool:
    """First fit over a sorted list of free runs. Not safe for threads."""

    def __init__(self, data: memoryview, gpfn: int) -> None:
        """`data`: whole pages, writable; its first is guest page `gpfn`."""
        flat = data.cast("B")
        if flat.readonly or not flat.nbytes or flat.nbytes % PAGE_BYTES:
            raise ValueError(f"data area of {flat.nbytes} bytes: want writable, whole pages, at least one")
        self._data = flat
        self.gpfn: Final = gpfn
        self.pages: Final = flat.nbytes // PAGE_BYTES
        self._free: list[tuple[int, int]] = [(0, self.pages)]  # (first page, pages), apart from each other

    @property
    def free_pages(self) -> int:
        return sum(pages for _, pages in self._free)

    @property
    def longest_run_bytes(self) -> int:
        """The largest `allocate` that would succeed now."""
        return max((pages for _, pages in self._free), default=0) * PAGE_BYTES

    def allocate(self, size_bytes: int) -> Buffer:
        """Page-aligned, whole pages, at least `size_bytes`, with whatever content it last had.

        Raises BufferSpaceError now, or ValueError where it could never fit.
        """
        pages = -(-size_bytes // PAGE_BYTES)
        if not 0 < pages <= self.pages:
            raise ValueError(f"{size_bytes} bytes: want 1 to {self.pages * PAGE_BYTES}")
        for index, (first, run) in enumerate(self._free):
            if run >= pages:
                if run == pages:
                    del self._free[index]
                else:
                    self._free[index] = (first + pages, run - pages)
                view = self._data[first * PAGE_BYTES : (first + pages) * PAGE_BYTES]
                return Buffer(self, first, view)
        raise BufferSpaceError(f"{pages} pages in a row; {self.free_pages} of {self.pages} pages are free")

    def _give_back(self, first: int, pages: int) -> None:
        index = bisect_left(self._free, (first, 0))
        if index < len(self._free) and first + pages == self._free[index][0]:
            pages += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == first:
            index -= 1
            previous, run = self._free.pop(index)
            first, pages = previous, run + pages
        self._free.insert(index, (first, pages))
