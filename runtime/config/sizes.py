"""Sizes as people write them: "512MiB" in a config file, whole bytes after load.

Only 1024-based units exist here. "64MB" could mean two things, so it is refused rather than guessed.
"""

import re
from typing import ClassVar, Final, Self

PAGE_BYTES: Final = 4096
_UNITS: Final = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_DIGITS_MAX: Final = 19  # 2**63 has as many; a longer number is a mistake, not a size
SIZE_PATTERN: Final = rf"^[0-9]{{1,{_DIGITS_MAX}}} ?(B|KiB|MiB|GiB|TiB)?$"
_SIZE: Final = re.compile(rf"([0-9]{{1,{_DIGITS_MAX}}}) ?(B|KiB|MiB|GiB|TiB)?")  # used with fullmatch


def format_size(size_bytes: int) -> str:
    """The shortest exact spelling: 536870912 -> "512MiB", 4097 -> "4097B". `ByteSize.parse` reads it back."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes >= _UNITS[unit] and size_bytes % _UNITS[unit] == 0:
            return f"{size_bytes // _UNITS[unit]}{unit}"
    return f"{size_bytes}B"


class ByteSize(int):
    """A number of bytes within the limits of its kind. Subclasses narrow the limits."""

    __slots__ = ()
    bytes_min: ClassVar[int] = 1
    bytes_max: ClassVar[int] = 1 << 62
    multiple_of_bytes: ClassVar[int] = 1
    example: ClassVar[str] = "64MiB"

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read 1048576, "1048576", "1024KiB" or "1 MiB".

        Raises:
            ValueError: the text says what is allowed.
        """
        if isinstance(value, int) and not isinstance(value, bool):
            size_bytes = value
        elif isinstance(value, str) and (match := _SIZE.fullmatch(value)):
            size_bytes = int(match[1]) * _UNITS[match[2] or ""]
        else:
            raise ValueError(cls.allowed())
        if not cls.bytes_min <= size_bytes <= cls.bytes_max or size_bytes % cls.multiple_of_bytes:
            raise ValueError(cls.allowed())
        return cls(size_bytes)

    @classmethod
    def allowed(cls) -> str:
        text = (
            f'a number of bytes or a text such as "{cls.example}" (units B, KiB, MiB, GiB, TiB),'
            f" from {format_size(cls.bytes_min)} to {format_size(cls.bytes_max)}"
        )
        if cls.multiple_of_bytes > 1:
            text += f", a multiple of {cls.multiple_of_bytes} bytes"
        return text


class MemorySize(ByteSize):
    """Memory of a machine or a partition: whole pages."""

    __slots__ = ()
    bytes_min = 1 << 20
    bytes_max = 1 << 44  # 16 TiB; page numbers stay far inside 52 bits
    multiple_of_bytes = PAGE_BYTES


class RingSize(ByteSize):
    """The data area of a ring, one direction: whole pages; its header page is not counted."""

    __slots__ = ()
    bytes_min = PAGE_BYTES
    bytes_max = 16 << 20
    multiple_of_bytes = PAGE_BYTES
    example = "64KiB"


class DiskSize(ByteSize):
    """A disk: whole 512-byte sectors. 4096-byte blocks are checked against the disk's own block size."""

    __slots__ = ()
    bytes_min = 4096
    bytes_max = 1 << 56
    multiple_of_bytes = 512
