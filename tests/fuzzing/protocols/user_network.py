"""A network in user space: what passt, or whoever is at the other end of its socket, says to the driver."""

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

from partitions.net.first_contact import HELD_FRAMES_MAX, _is_for_an_unknown_guest
from partitions.net.frames import ADDRESS_BYTES, ETHERNET_HEADER_BYTES
from partitions.net.user import FRAME_BYTES_MAX, UNSENT_BYTES_MAX, UserDriver
from partitions.sdk.context import DriverContext
from partitions.storage.backends import BackendError
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.targets import Side, declare, target

_LIMIT = 3  # frames at a time
_LENGTH_BYTES = 4  # in front of a frame

declare("user-network", Side.CLIENT)


def _framed(frame: bytes) -> bytes:
    return struct.pack(">I", len(frame)) + frame


def _seeds() -> list[bytes]:
    frames = [_framed(bytes([number]) * size) for number, size in enumerate((14, 60, 1514, 60, 60, 60))]
    whole = b"".join(frames)
    to_nobody = bytes(6) + b"passt." + b"\x08\x00" + bytes(16) + bytes([10, 0, 2, 15]) + bytes(20)
    to_all = b"\xff" * 6 + to_nobody[6:]
    return [
        join(frames),
        join([whole[:3], whole[3:200], whole[200:]]),
        join([whole]),
        join([_framed(to_nobody), frames[1], _framed(to_all), b"", _framed(to_nobody) * 5, frames[2]]),
    ]


@target("user-network", Side.CLIENT, _seeds)
def client(data: bytes) -> None:
    """Frames come out as they stand in the bytes, in order, wherever those were cut; nonsense takes the link down.

    But for those that are meant for whoever is the guest: they may wait for its address, and get it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    driver = UserDriver(DriverContext("net0", "net", {}, None, 512, False, ours.detach(), None), 1500)
    said, frames, broken = b"", list[bytes](), False
    try:
        with theirs:
            theirs.setblocking(False)
            for piece in cut(data):
                if not piece or broken:
                    continue
                theirs.sendall(piece)
                said += piece
                try:
                    for taken in _received(driver):
                        frames += taken
                except BackendError:
                    broken = True
                assert driver.link_up is not broken
                if not broken:
                    assert driver.transmit([memoryview(bytes(60))]) == 1
                assert len(driver._unsent) <= UNSENT_BYTES_MAX + FRAME_BYTES_MAX
        if not broken:
            with suppress(BackendError):  # it went away without reading what it was sent
                frames += [frame for taken in _received(driver) for frame in taken]
            assert not driver.link_up
    finally:
        driver.close()
    assert all(ETHERNET_HEADER_BYTES <= len(frame) <= FRAME_BYTES_MAX for frame in frames)
    sent, rest = _whole_frames(said)
    nonsense = len(rest) >= _LENGTH_BYTES and not _is_length(rest)
    assert broken is nonsense  # and what is in front of it has come out
    known = [frame for frame in sent if not _is_for_an_unknown_guest(frame)]
    unknown = {frame[ADDRESS_BYTES:] for frame in sent if _is_for_an_unknown_guest(frame)}
    assert [
        frame for frame in frames if not _is_question(frame) and frame[ADDRESS_BYTES:] not in unknown
    ] == [frame for frame in known if not _is_question(frame) and frame[ADDRESS_BYTES:] not in unknown]


def _received(driver: UserDriver) -> Iterator[list[bytes]]:
    """Until nothing comes, and nothing has moved: what waits for an address may leave nothing to be handed out."""
    waiting = -1
    while (taken := driver.receive(_LIMIT)) or waiting != len(driver._reader._data):
        waiting = len(driver._reader._data)
        assert len(taken) <= _LIMIT + HELD_FRAMES_MAX + 1  # those that waited, and a question
        yield taken


def _whole_frames(data: bytes) -> tuple[list[bytes], bytes]:
    """Those that stand in front, and what comes then."""
    frames = []
    while _is_length(data) and len(data) >= (
        end := _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "big")
    ):
        frames.append(data[_LENGTH_BYTES:end])
        data = data[end:]
    return frames, data


def _is_length(data: bytes) -> bool:
    length = int.from_bytes(data[:_LENGTH_BYTES], "big")
    return len(data) >= _LENGTH_BYTES and ETHERNET_HEADER_BYTES <= length <= FRAME_BYTES_MAX


def _is_question(frame: bytes) -> bool:
    return frame[:ADDRESS_BYTES] == b"\xff" * ADDRESS_BYTES and frame[12:14] == b"\x08\x06"
