"""Devices of the custom class: requests in band and in pages; replies, lengths and errors."""

import mmap
from contextlib import suppress

from bus.native import GpaMap
from partitions.custom.client import check_room, plain
from partitions.custom.packets import COMPLETION_REQUESTED, GPA_DIRECT, IN_BAND, Taker
from partitions.custom.wire import (
    REQUEST_BYTES_MAX,
    CustomError,
    MalformedPayload,
    Mark,
    decode_error,
    decode_length,
    encode_error,
    encode_length,
)
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.targets import Side, target
from tests.partitions.storage_guest import gpa_range

_FIRST, _PAGES, _PAGE = 0x100, 4, 4096
_KINDS = (IN_BAND, GPA_DIRECT, 0, 9)


def _guest_seeds() -> list[bytes]:
    def piece(kind: int, extra: bytes, payload: bytes) -> bytes:
        return bytes([kind, len(extra)]) + extra + payload

    lent = gpa_range(16, 5000, [_FIRST, _FIRST + 1])
    return [join([piece(0, b"", b"a request"), piece(1, lent, b""), piece(1, lent, encode_length(77))])]


@target("custom", Side.HOST, _guest_seeds)
def host(data: bytes) -> None:
    """What is no request is said so; a reply never leaves the pages that were lent."""
    gpa_map, memory = GpaMap(), mmap.mmap(-1, _PAGES * _PAGE)
    gpa_map.add(_FIRST, memory)
    taker = Taker(gpa_map)
    for piece in cut(data):
        if len(piece) < 2:
            continue
        kind, size = _KINDS[piece[0] % len(_KINDS)], piece[1]
        taken = taker.take(kind, COMPLETION_REQUESTED, 1, piece[2 : 2 + size], piece[2 + size :])
        assert taken.request is None or len(taken.request) <= REQUEST_BYTES_MAX
        payload, mark = taken.answer(bytes(taken.room_bytes + 1))
        assert mark == Mark.ERROR
        decode_error(payload)
        assert not any(memory[:])
        for size in (0, taken.room_bytes // 2, taken.room_bytes):
            payload, mark = taken.answer(b"\xff" * size)
            if taken.request is None:
                assert mark == Mark.ERROR
                continue
            assert mark == Mark.PLAIN
            written = memory[:].count(0xFF)
            if taken.views is None:
                assert payload == b"\xff" * size
                assert not written
                continue
            assert decode_length(payload, taken.room_bytes) == size
            assert written <= size  # less where a page was lent twice
            memory[:] = bytes(len(memory))


def _host_seeds() -> list[bytes]:
    return [
        join(
            [
                bytes([Mark.ERROR]) + encode_error(5, "no"),
                bytes([0]) + encode_length(9),
                bytes([0]) + b"reply",
            ]
        )
    ]


@target("custom", Side.GUEST, _host_seeds)
def guest(data: bytes) -> None:
    for piece in cut(data):
        if not piece:
            continue
        with suppress(MalformedPayload, CustomError):
            plain(piece[0], piece[1:])
        with suppress(MalformedPayload, CustomError):
            assert decode_length(piece[1:], 64) <= 64
        with suppress(MalformedPayload, CustomError):
            assert len(check_room(piece, 64)) <= 64
        with suppress(MalformedPayload):
            decode_error(piece)
