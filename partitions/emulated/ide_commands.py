"""The ATA commands that an emulated IDE disk knows.

Source: T13/1153D, ATA/ATAPI-4.
"""

from enum import IntEnum
from typing import Final


class Command(IntEnum):
    """Those that do something; all others are aborted. Some have a second code: without retries."""

    READ_SECTORS = 0x20
    READ_SECTORS_ONCE = 0x21
    WRITE_SECTORS = 0x30
    WRITE_SECTORS_ONCE = 0x31
    VERIFY_SECTORS = 0x40
    VERIFY_SECTORS_ONCE = 0x41
    EXECUTE_DIAGNOSTIC = 0x90
    SET_GEOMETRY = 0x91
    FLUSH_CACHE = 0xE7
    IDENTIFY = 0xEC
    SET_FEATURES = 0xEF


NOTHING_TO_DO: Final = frozenset({0x91, 0xE0, 0xE1, 0xE2, 0xE3, 0xE6, *range(0x10, 0x20), *range(0x70, 0x80)})
FEATURES_TAKEN: Final = frozenset(
    {0x02, 0x03, 0x55, 0x66, 0x82, 0xAA, 0xCC}
)  # with a drive like ours: no effect
