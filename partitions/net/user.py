"""The driver of a network in user space: frames to and from passt, which turns them into ordinary sockets of the host.

Nobody needs a privilege for it. passt (https://passt.top) is a program of the host's, which the platform starts with
the other end of a pair that the stack makes; on it each frame has its length before it, a big-endian u32. It answers
ARP and DHCP itself. When it ends, the platform starts another one, and sends what leads to it through the old socket;
when it can't, or the platform is gone, that socket ends, and the link is down.
"""

import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final

from partitions import platform_ends
from partitions.machine_plan import DevicePlan
from partitions.net.first_contact import FirstContact
from partitions.net.frames import ETHERNET_HEADER_BYTES
from partitions.sdk.context import DriverContext
from partitions.sdk.net import NetDriver
from partitions.storage.backends import BackendError

FRAME_BYTES_MAX: Final = 65_535
UNSENT_BYTES_MAX: Final = 256 << 10  # that passt has not taken; what comes then is dropped
_LENGTH: Final = struct.Struct(">I")
_PIECE_BYTES: Final = 256 << 10


class BrokenFraming(ValueError):
    """A length that no frame has: what follows cannot be found any more."""


class FrameReader:
    """Bytes in, frames out."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        self._data += data

    def take(self, limit: int) -> list[bytes]:
        """BrokenFraming: what is next is no frame. Those in front of it have come out before."""
        frames: list[bytes] = []
        at, data = 0, self._data
        while len(frames) < limit and len(data) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, at)
            if not ETHERNET_HEADER_BYTES <= length <= FRAME_BYTES_MAX:
                if frames:
                    break
                raise BrokenFraming(f"a frame of {length} bytes")
            if len(data) - at - _LENGTH.size < length:
                break
            at += _LENGTH.size
            frames.append(bytes(data[at : at + length]))
            at += length
        del data[:at]
        return frames


class UserDriver(NetDriver):
    def __init__(self, context: DriverContext, mtu: int) -> None:
        super().__init__(context)
        assert context.backing_fd is not None
        self.mtu = mtu
        self._socket = socket.socket(fileno=context.backing_fd)
        self._socket.setblocking(False)
        self._reader, self._unsent = FrameReader(), bytearray()
        self._first_contact = FirstContact()
        self._is_gone = False

    def transmit(self, frames: Sequence[memoryview]) -> int:
        """BackendError: passt is gone."""
        self._first_contact.guest_said(frames)
        self._flush()
        taken = 0
        for frame in frames:
            if len(self._unsent) > UNSENT_BYTES_MAX:
                self._flush()
                if len(self._unsent) > UNSENT_BYTES_MAX:
                    break
            self._unsent += _LENGTH.pack(len(frame))
            self._unsent += frame
            taken += 1
        self._flush()
        return taken

    def _flush(self) -> None:
        try:
            while self._unsent:
                sent = self._socket.send(self._unsent, socket.MSG_NOSIGNAL)
                del self._unsent[:sent]
        except BlockingIOError:
            pass
        except OSError as error:
            self._end()
            raise BackendError(error.errno or 0, error.strerror or "") from error

    def receive(self, limit: int) -> list[bytes]:
        """BackendError: what came makes no sense, which is the end of it."""
        return self._first_contact.pass_on(self._receive(limit))

    def _receive(self, limit: int) -> list[bytes]:
        if self._unsent and not self._is_gone:
            self._flush()
        try:
            if frames := self._reader.take(limit):
                return frames
            data, descriptors, _, _ = socket.recv_fds(self._socket, _PIECE_BYTES, 1)
            if descriptors:
                self._go_on_with(descriptors[0])
                return []
            if not data:
                self._end()
                return []
            self._reader.feed(data)
            return self._reader.take(limit)
        except BlockingIOError:
            return []
        except (OSError, BrokenFraming) as error:
            self._end()
            raise BackendError(getattr(error, "errno", None) or 0, str(error)) from error

    def _go_on_with(self, descriptor: int) -> None:
        """The platform has started another passt, behind this. What was under way with the last one is lost."""
        os.dup2(
            descriptor, self._socket.fileno(), inheritable=False
        )  # whoever waits for it waits for the number
        os.close(descriptor)
        self._socket.setblocking(False)
        self._reader = FrameReader()
        self._unsent.clear()

    def _end(self) -> None:
        self._is_gone = True
        self._unsent.clear()

    @property
    def descriptor(self) -> int | None:
        return self._socket.fileno()

    @property
    def link_up(self) -> bool:
        return not self._is_gone

    def close(self) -> None:
        self._socket.close()


def open_user(plan: DevicePlan, log: Callable[..., None]) -> int:
    """Our end of a new pair; the platform is given the other one, and starts passt on it."""
    return platform_ends.open_pair("user-net", {"device": plan.name})
