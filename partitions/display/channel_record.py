"""The part of a channel's record, in memory that outlives the server, that these three devices use."""

from typing import Final

from partitions.display.video_session import RECORD_BYTES

_AT: Final = 40  # behind what the ring and the opening have there; a record has 64 bytes

assert _AT + RECORD_BYTES <= 64


def read_record(record: memoryview) -> bytes:
    return bytes(record[_AT : _AT + RECORD_BYTES])


def write_record(record: memoryview, data: bytes) -> None:
    """Not in one piece: the request that made it is released afterwards, so a successor takes it again."""
    record[_AT : _AT + len(data)] = data
