"""Pages of a guest's that stand in the GPA space of who serves it: what a stack tells a driver partition of them."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

_GRANT: Final = struct.Struct("<QQII")
GRANT_BYTES: Final = _GRANT.size
assert GRANT_BYTES == 24


@dataclass(frozen=True, slots=True)
class Grant:
    """Slots of the guest's that stand in the driver's GPA space: where, and which pages of the guest they hold."""

    gpfn: int  # in the driver's space, of the first page
    guest_gpfn: int  # the same page, as the guest numbers it
    pages: int
    gpadl: int = 0  # its handle, where it is these pages in their order; else 0

    def encode(self) -> bytes:
        return _GRANT.pack(self.gpfn, self.guest_gpfn, self.pages, self.gpadl)

    @classmethod
    def decode_all(cls, body: bytes) -> Iterator[Self]:
        """`body`: whole grants, one after the other."""
        return (cls(*fields) for fields in _GRANT.iter_unpack(body))
