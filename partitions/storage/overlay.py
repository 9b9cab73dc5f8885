"""A disk that is a read-only file, and what was written over it since: copy on write, in clusters.

    overlay  @0      header, one page: magic, version, cluster, size of the disk; zeros
             @4096   bitmap: one bit a cluster, lowest bit first; set: it is here, and not in the base
             ...     the clusters at their own places, from the next whole cluster on: a hole was not written

What a bit promises is on the medium before the bit: a cluster that is written for the first time is completed from the
base, synchronized, and only then marked. So whatever dies at whatever moment, a cluster is read whole, as it was before
the write or as it is after it; a successor of the root reads the bitmap out of the same file and goes on. From then on
a cluster is written in place, and flush is what it is of any file. The base is never written, by nobody: one that
changes below its overlay is another disk.
"""

import contextlib
import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from partitions.storage.backends import BLOCK_BYTES, BackendOpenError, DescriptorBackend

CLUSTER_BYTES: Final = 64 << 10
PAGE_BYTES: Final = 4096
_MAGIC: Final = b"pvoverly"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sIIQ")
assert _HEADER.size == 24

Part = Callable[[int, int], Sequence[memoryview]]
"""(how far we are, how many bytes): the views with them."""


def overlay_bytes(size_bytes: int) -> int:
    """How large the overlay of such a disk is; it is mostly holes."""
    return _data_offset(size_bytes) + -(-size_bytes // CLUSTER_BYTES) * CLUSTER_BYTES


def _bitmap_bytes(size_bytes: int) -> int:
    return -(-size_bytes // (CLUSTER_BYTES * 8))


def _data_offset(size_bytes: int) -> int:
    return -(-(PAGE_BYTES + _bitmap_bytes(size_bytes)) // CLUSTER_BYTES) * CLUSTER_BYTES


class OverlayBackend:
    """A BlockBackend. Owns both descriptors, and closes them."""

    can_discard: Final = True
    read_only: Final = False
    descriptor: Final = None  # a cluster is in one of two files: only the methods will do

    def __init__(
        self, base: DescriptorBackend, overlay: int, *, volatile: bool = False, name: str = "overlay"
    ) -> None:
        """`overlay`: a file that is empty, or was made for a base of this size. `volatile`: it is memory.

        BackendOpenError: it is something else, and is left as it was; both descriptors are still the caller's.
        """
        self.size_bytes: Final = base.size_bytes
        self.block_bytes: Final = base.block_bytes
        self._volatile = volatile
        self._lock = threading.Lock()  # of the bitmap, and of a cluster's first write
        self._data = _data_offset(self.size_bytes)
        self._bitmap = bytearray(_open_or_format(overlay, self.size_bytes, name, volatile=volatile))
        self._base, self._overlay = (
            base,
            DescriptorBackend(overlay, overlay_bytes(self.size_bytes), block_bytes=BLOCK_BYTES),
        )

    @property
    def clusters_written(self) -> int:
        return sum(byte.bit_count() for byte in self._bitmap)

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        length = sum(view.nbytes for view in views)
        done = 0
        for is_here, count in self._runs(offset, length):
            part = _slice(views, done, count)
            if is_here:
                self._overlay.readv(part, self._data + offset + done)
            else:
                self._base.readv(part, offset + done)
            done += count

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        length = sum(view.nbytes for view in views)
        self._change(offset, length, lambda done, count: _slice(views, done, count))

    def flush(self) -> None:
        self._overlay.flush()

    def discard(self, offset: int, length: int) -> None:
        """Whole clusters become holes, which read as zeros; the rest is written with zeros."""
        first = -(-offset // CLUSTER_BYTES) * CLUSTER_BYTES
        last = max(first, (offset + length) // CLUSTER_BYTES * CLUSTER_BYTES)
        if first >= offset + length or first == last:
            self._zero(offset, length)
            return
        self._zero(offset, first - offset)
        with self._lock:
            self._overlay.discard(self._data + first, last - first)
            self._mark(first // CLUSTER_BYTES, last // CLUSTER_BYTES)
        self._zero(last, offset + length - last)

    def close(self) -> None:
        self._base.close()
        self._overlay.close()

    # -- inside

    def _zero(self, offset: int, length: int) -> None:
        zeros = memoryview(bytes(min(length, CLUSTER_BYTES)))
        self._change(offset, length, lambda done, count: [zeros[:count]])

    def _is_here(self, cluster: int) -> bool:
        return bool(self._bitmap[cluster // 8] >> cluster % 8 & 1)

    def _runs(self, offset: int, length: int) -> Iterator[tuple[bool, int]]:
        """(is it in the overlay, so many bytes), from `offset` on; neighbours of one kind together."""
        at, end = offset, offset + length
        while at < end:
            start, is_here = at, self._is_here(at // CLUSTER_BYTES)
            while at < end and self._is_here(at // CLUSTER_BYTES) == is_here:
                at = min(end, (at // CLUSTER_BYTES + 1) * CLUSTER_BYTES)
            yield is_here, at - start

    def _change(self, offset: int, length: int, part: Part) -> None:
        done = 0
        while done < length:
            at = offset + done
            count = min(length - done, CLUSTER_BYTES - at % CLUSTER_BYTES)
            cluster = at // CLUSTER_BYTES
            with contextlib.nullcontext() if self._is_here(cluster) else self._lock:
                if not self._is_here(cluster):
                    self._complete(cluster, at, count)
                    self._overlay.writev(part(done, count), self._data + at)
                    self._mark(cluster, cluster + 1)
                else:
                    self._overlay.writev(part(done, count), self._data + at)
            done += count

    def _complete(self, cluster: int, at: int, count: int) -> None:
        """The rest of the cluster, from the base, around what is going to be written."""
        begin = cluster * CLUSTER_BYTES
        end = min(begin + CLUSTER_BYTES, self.size_bytes)
        for start, stop in ((begin, at), (at + count, end)):
            if start < stop:
                rest = memoryview(bytearray(stop - start))
                self._base.readv([rest], start)
                self._overlay.writev([rest], self._data + start)

    def _mark(self, first: int, last: int) -> None:
        """Clusters [first, last) are here. Data before bitmap: what they hold is on the medium when the bits are."""
        if all(self._is_here(cluster) for cluster in range(first, last)):
            return
        if not self._volatile:
            self._overlay.flush()
        low, high = first // 8, (last - 1) // 8 + 1
        changed = bytearray(self._bitmap[low:high])
        for cluster in range(first, last):
            changed[cluster // 8 - low] |= 1 << cluster % 8
        self._overlay.writev([memoryview(changed)], PAGE_BYTES + low)
        self._bitmap[low:high] = changed  # only now: who reads it without the lock finds the data


def _slice(views: Sequence[memoryview], start: int, count: int) -> list[memoryview]:
    """The views of bytes [start, start + count)."""
    found = []
    for view in views:
        if start >= view.nbytes:
            start -= view.nbytes
            continue
        piece = view[start : start + count]
        found.append(piece)
        count -= piece.nbytes
        start = 0
        if not count:
            break
    return found


def _open_or_format(overlay: int, size_bytes: int, name: str, *, volatile: bool) -> bytes:
    """Its bitmap. An empty file, or fresh memory, becomes an overlay of nothing."""
    wanted = _HEADER.pack(_MAGIC, _VERSION, CLUSTER_BYTES, size_bytes)
    try:
        found = os.pread(overlay, _HEADER.size, 0)
        if found == wanted:
            bitmap = os.pread(overlay, _bitmap_bytes(size_bytes), PAGE_BYTES)
            if len(bitmap) == _bitmap_bytes(size_bytes):
                if os.fstat(overlay).st_size < overlay_bytes(size_bytes):
                    os.ftruncate(overlay, overlay_bytes(size_bytes))
                return bitmap
            raise BackendOpenError(errno.EINVAL, f"{name}: an overlay cut short: choose another path")
        if found.strip(b"\0") or not (volatile or os.fstat(overlay).st_size == 0):
            raise BackendOpenError(errno.EINVAL, _explain(found, size_bytes, name))
        if os.fstat(overlay).st_size < overlay_bytes(size_bytes):
            os.ftruncate(overlay, overlay_bytes(size_bytes))
        os.fdatasync(overlay)  # its length and its zeros, before it says what it is
        os.pwrite(overlay, wanted, 0)
    except OSError as error:
        raise BackendOpenError(error.errno or errno.EIO, f"{name}: {error.strerror}") from error
    return bytes(_bitmap_bytes(size_bytes))


def _explain(found: bytes, size_bytes: int, name: str) -> str:
    if len(found) == _HEADER.size:
        magic, version, _, size = _HEADER.unpack(found)
        if magic == _MAGIC and version == _VERSION and size != size_bytes:
            return f"{name}: made over a base of {size} bytes, and this one has {size_bytes}: choose another path"
    return f"{name}: neither empty nor an overlay of ours: choose another path"
