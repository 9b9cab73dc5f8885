"""Serial lines: pieces in pipe framing, the same on both sides; what arrives is never more than what was sent."""

from contextlib import suppress

from bus.byte_pipe import decode_piece, encode_piece
from bus.packets import PacketError
from partitions.serial.wire import PIECE_BYTES_MAX
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.targets import Side, target


def _seeds() -> list[bytes]:
    return [join([encode_piece(b"hello\r\n"), encode_piece(b""), encode_piece(bytes(PIECE_BYTES_MAX))])]


@target("serial", Side.HOST, _seeds)
@target("serial", Side.GUEST, _seeds)
def either(data: bytes) -> None:
    for piece in cut(data):
        with suppress(PacketError):
            found = decode_piece(piece)
            assert len(found) < len(piece)
            assert found in piece
