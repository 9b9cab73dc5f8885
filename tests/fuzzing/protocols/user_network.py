"""A network in user space: what passt, or whoever is at the other end of its socket, says to the driver."""

import socket
import struct
from contextlib import suppress

from partitions.net.frames import ETHERNET_HEADER_BYTES
from partitions.net.user import FRAME_BYTES_MAX, UNSENT_BYTES_MAX, UserDriver
from partitions.sdk.context import DriverContext
from partitions.storage.backends import BackendError
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.targets import Side, declare, target

_LIMIT = 3  # frames at a time

declare("user-network", Side.CLIENT)


def _framed(frame: bytes) -> bytes:
    return struct.pack(">I", len(frame)) + frame


def _seeds() -> list[bytes]:
    frames = [_framed(bytes([number]) * size) for number, size in enumerate((14, 60, 1514, 60, 60, 60))]
    whole = b"".join(frames)
    return [join(frames), join([whole[:3], whole[3:200], whole[200:]]), join([whole])]


@target("user-network", Side.CLIENT, _seeds)
def client(data: bytes) -> None:
    """Frames come out as they stand in the bytes, in order, wherever those were cut; nonsense takes the link down."""
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
                    while taken := driver.receive(_LIMIT):
                        assert len(taken) <= _LIMIT
                        frames += taken
                except BackendError:
                    broken = True
                assert driver.link_up is not broken
                if not broken:
                    assert driver.transmit([memoryview(bytes(60))]) == 1
                assert len(driver._unsent) <= UNSENT_BYTES_MAX + FRAME_BYTES_MAX
        if not broken:
            with suppress(BackendError):  # it went away without reading what it was sent
                assert driver.receive(_LIMIT) == []
            assert not driver.link_up
    finally:
        driver.close()
    assert all(ETHERNET_HEADER_BYTES <= len(frame) <= FRAME_BYTES_MAX for frame in frames)
    found = b"".join(map(_framed, frames))
    assert said.startswith(found)
    good, length = _whole_frames(said[len(found) :])
    assert broken is (length is not None and not ETHERNET_HEADER_BYTES <= length <= FRAME_BYTES_MAX)
    assert good < _LIMIT if broken else good == 0  # those that came with the nonsense may be lost


def _whole_frames(data: bytes) -> tuple[int, int | None]:
    """How many stand in front, and the length of what comes then."""
    count = 0
    while len(data) >= 4:
        length = int.from_bytes(data[:4], "big")
        if not ETHERNET_HEADER_BYTES <= length <= FRAME_BYTES_MAX or len(data) < 4 + length:
            return count, length
        data = data[4 + length :]
        count += 1
    return count, None
