"""NVSP and RNDIS: the set-up from both sides, control messages, frames in shared buffers."""

from contextlib import suppress

from partitions.net import nvsp, rndis
from partitions.net.errors import NetProtocolError
from partitions.net.frames import FramePacker, unpack_frames
from partitions.net.handshake import Begin, Control, Lent, Say, set_up
from partitions.net.nvsp import MalformedNvsp
from partitions.net.rndis import MalformedRndis
from partitions.net.server_session import Adapter, Phase, ServerSession
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.targets import Side, target

_ADAPTER = Adapter(b"\x02\0\0\0\0\x01", 1500)
_SIZES = {0xE1E11: 1 << 20, 0xE1E12: 1 << 19}
_RECEIVE, _SEND = (Lent(gpadl, size) for gpadl, size in _SIZES.items())
_NVSP, _RNDIS, _FRAMES = b"n", b"r", b"f"  # what a piece is
_FRAME_BYTES_MAX = 1518


def _said() -> tuple[list[bytes], list[bytes]]:
    """Of two honest ends: pieces of the guest's, and the server's answers."""
    session, steps = ServerSession(_ADAPTER), set_up(_RECEIVE, _SEND, 1500)
    guest: list[bytes] = []
    host: list[bytes] = []
    ask = next(steps)
    with suppress(StopIteration):
        while True:
            answer = b""
            if isinstance(ask, Say):
                guest.append(_NVSP + ask.payload)
                message = nvsp.decode_message(ask.payload, nvsp.GUEST_MESSAGES)
                found = session.hear(message, _SIZES.__getitem__)
                answer = b"" if found is None else found.encode(session.message_bytes)
            elif isinstance(ask, Control):
                guest.append(_RNDIS + ask.data)
                told = session.control(rndis.decode_message(ask.data, rndis.GUEST_MESSAGES))
                answer = b"" if told is None else told.encode()
            if answer:
                host.append(answer)
            ask = steps.send(answer)
    area = memoryview(bytearray(6144))
    _, used = FramePacker(_FRAME_BYTES_MAX, 8).pack(area, [bytes(60), bytes(1514), bytes(64)], 0)
    guest.append(_FRAMES + bytes(area[:used]))
    return guest, host


@target("network", Side.HOST, lambda: [join(_said()[0])])
def host(data: bytes) -> None:
    session = ServerSession(_ADAPTER)
    for piece in cut(data):
        kind, payload = piece[:1], piece[1:]
        with suppress(MalformedNvsp, MalformedRndis):
            if kind == _NVSP:
                session.hear(nvsp.decode_message(payload, nvsp.GUEST_MESSAGES), _SIZES.__getitem__)
            elif kind == _RNDIS:
                session.control(rndis.decode_message(payload, rndis.GUEST_MESSAGES))
            else:
                frames: list[memoryview] = []
                try:
                    unpack_frames(memoryview(payload), _FRAME_BYTES_MAX, frames)
                finally:
                    assert all(14 <= len(frame) <= _FRAME_BYTES_MAX for frame in frames)
                    assert sum(map(len, frames)) <= len(payload)
        if session.takes_frames:
            assert session.phase is Phase.READY
            assert session.receive is not None
        for shape in (session.receive, session.send):
            assert shape is None or shape.pieces * shape.piece_bytes <= _SIZES[shape.gpadl]


@target("network", Side.GUEST, lambda: [join(_said()[1])])
def guest(data: bytes) -> None:
    steps = set_up(_RECEIVE, _SEND, 1500)
    ask, pieces = next(steps), cut(data)
    try:
        while True:
            quiet = isinstance(ask, Begin) or (isinstance(ask, Say) and not ask.answered)
            answer = b"" if quiet else next(pieces, None)
            if answer is None:
                return
            ask = steps.send(answer)
    except NetProtocolError:
        return
    except StopIteration as done:
        found = done.value
    assert found.section_bytes * found.sections <= _SEND.size_bytes
    assert found.frame_bytes_max + 44 <= found.section_bytes
    assert found.packets_max >= 1
