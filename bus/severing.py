"""Leaving memory that was shared: its bytes stay where they are, but nobody else sees them any more.

A descriptor that was handed over cannot be taken back, and a mapping can be kept for ever. So it is not the other
one's access that ends, it is we who move out: a private copy takes the place of the shared pages, at the same
addresses, in one step.
"""

import ctypes
import mmap
from typing import Final

from bus.memory import MemorySlot

_MREMAP_MAYMOVE: Final = 1
_MREMAP_FIXED: Final = 2
_FAILED: Final = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = _libc.mremap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.mremap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_void_p,
]


def sever(slot: MemorySlot) -> None:
    """Put a private copy in the place of a slot's pages. Views of it, in Python and in C, stay good.

    Threads may read and write meanwhile: one that touches the pages while they are exchanged waits in the kernel. What
    it writes between the copy and the exchange is lost.

    Raises OSError: no memory for the copy; the pages are shared as before.
    """
    size = slot.size_bytes
    address = ctypes.addressof(ctypes.c_char.from_buffer(slot.memory))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    fresh = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    if fresh in (None, _FAILED):
        raise OSError(ctypes.get_errno(), "no memory to move into")
    ctypes.memmove(fresh, address, size)
    if _libc.mremap(fresh, size, size, _MREMAP_MAYMOVE | _MREMAP_FIXED, address) != address:
        error = ctypes.get_errno()
        _libc.munmap(ctypes.c_void_p(fresh), ctypes.c_size_t(size))
        raise OSError(error, "the pages cannot be exchanged")


def empty(slot: MemorySlot) -> None:
    """Free what the slot's memfd holds: who still maps it reads zeros, and no page of ours is kept for them.

    Only once whoever served it has let go: a request that is still being carried out would find zeros, too.
    """
    with mmap.mmap(slot.fd, slot.size_bytes) as mapping:
        mapping.madvise(mmap.MADV_REMOVE)
