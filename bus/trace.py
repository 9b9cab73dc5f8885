"""Trace memory: where a process stamps the hops of requests. bus/native/trace.h draws the layout; this is its twin.

The memory is made by who reads it, and handed to one process as a descriptor. The reader trusts none of it.
"""

import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from bus.memory import PAGE_BYTES, REQUIRED_SEALS

TRACKS: Final = 64  # threads of one process that can stamp
STAMPS: Final = 16_384  # of one thread that are kept, as a rule
STAMPS_MIN: Final = 128
STAMPS_MAX: Final = 1 << 20
NAMES: Final = 256  # channels, or routes, of one process
SERVER: Final = 1 << 63  # in a channel's number: stamped by who serves it
ROUTE: Final = 1 << 62  # it is a route of the hypervisor

_MAGIC: Final = 0x50565452
_VERSION: Final = 1
_HEADER: Final = struct.Struct(
    "<8IQII"
)  # magic, version, tsc, tracks, stamps, enabled, tracks used, names used; untracked, generations
_ENABLED_AT: Final = 20
_NAME: Final = struct.Struct("<QQ48s")
_TRACK: Final = struct.Struct("<QII")
_STAMP: Final = struct.Struct("<QQQII")
_NAMES_AT: Final = PAGE_BYTES
_TRACKS_AT: Final = _NAMES_AT + NAMES * _NAME.size

assert (_HEADER.size, _NAME.size, _TRACK.size, _STAMP.size) == (48, 64, 16, 32)


class Hop(IntEnum):
    """enum trace_hop: what had been done, or was about to be done, at the moment of the stamp."""

    CALL = 1
    WRITE = 2
    PUBLISH = 3
    SIGNAL = 4
    BROKER_WAKE = 5
    FLAG_SET = 6
    WAKE = 7
    TAKE = 8
    BACKEND_BEGIN = 9
    BACKEND_END = 10
    ANSWER = 11
    RECEIVE = 12
    RETURN = 13


class MalformedTrace(ValueError):
    """The memory is no trace any more: whoever stamps into it has broken it."""


@dataclass(frozen=True, slots=True)
class Stamp:
    ticks: int
    channel: int
    transaction_id: int
    hop: Hop


@dataclass(frozen=True, slots=True)
class ChannelName:
    """What a channel, or a route, is called, and the port on which its interrupts arrive."""

    channel: int
    port: int  # owner << 32 | port
    text: str


@dataclass(frozen=True, slots=True)
class Track:
    """One thread's stamps, in the order in which it made them."""

    thread: int
    stamps: tuple[Stamp, ...]
    lost: int  # made before these, and overwritten
    generation: int = 1  # of the process: those after a death stamp into the same memory


def channel_number(guest: int, relid: int) -> int:
    """The same on both sides; a server adds SERVER."""
    return (guest & 0x3FFF_FFFF) << 32 | relid & 0xFFFF_FFFF


def port_number(owner: int, port: int) -> int:
    return (owner & 0xFFFF_FFFF) << 32 | port & 0xFFFF_FFFF


def trace_bytes(tracks: int, stamps: int) -> int:
    return _TRACKS_AT + tracks * (PAGE_BYTES + stamps * _STAMP.size)


def create_trace(name: str, *, uses_tsc: bool, stamps: int = STAMPS, tracks: int = TRACKS) -> int:
    """A descriptor of new trace memory: switched on, sealed against any change of its size.

    ValueError: `stamps` is no power of two from STAMPS_MIN to STAMPS_MAX.
    """
    if not STAMPS_MIN <= stamps <= STAMPS_MAX or stamps & (stamps - 1):
        raise ValueError(f"{stamps} stamps a thread: want a power of two from {STAMPS_MIN} to {STAMPS_MAX}")
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, trace_bytes(tracks, stamps))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, REQUIRED_SEALS)
        os.pwrite(fd, _HEADER.pack(_MAGIC, _VERSION, uses_tsc, tracks, stamps, True, 0, 0, 0, 0, 0), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def enable(fd: int, on: bool) -> None:
    """Begin or end keeping stamps; a thread that is at one may still finish it."""
    os.pwrite(fd, struct.pack("<I", on), _ENABLED_AT)


class TraceReader:
    """Reads trace memory, also while it is written. Owns the descriptor."""

    def __init__(self, fd: int, *, stamps: int = STAMPS, tracks: int = TRACKS) -> None:
        self.fd, self._stamps, self._tracks = fd, stamps, tracks

    def close(self) -> None:
        os.close(self.fd)

    @property
    def untracked(self) -> int:
        """Stamps of threads for which there was no track."""
        return int(_HEADER.unpack(os.pread(self.fd, _HEADER.size, 0))[8])

    def names(self) -> list[ChannelName]:
        used = min(int(_HEADER.unpack(os.pread(self.fd, _HEADER.size, 0))[7]), NAMES)
        content = os.pread(self.fd, used * _NAME.size, _NAMES_AT)
        return [
            ChannelName(channel, port, text.split(b"\0")[0].decode(errors="replace"))
            for channel, port, text in _NAME.iter_unpack(content)
        ]

    def tracks(self) -> Iterator[Track]:
        """Raises MalformedTrace."""
        used = min(int(_HEADER.unpack(os.pread(self.fd, _HEADER.size, 0))[6]), self._tracks)
        for number in range(used):
            at = _TRACKS_AT + number * (PAGE_BYTES + self._stamps * _STAMP.size)
            written, thread, generation = _TRACK.unpack(os.pread(self.fd, _TRACK.size, at))
            kept = min(written, self._stamps)
            content = os.pread(self.fd, self._stamps * _STAMP.size, at + PAGE_BYTES)
            later = int(_TRACK.unpack(os.pread(self.fd, _TRACK.size, at))[0])
            # What was written meanwhile has overwritten the oldest, and one more may be half written.
            passed = later - written + 1 if later != written or kept == self._stamps else 0
            kept = max(kept - passed, 0)
            yield Track(thread, self._decode(content, written, kept), written - kept, generation)

    def _decode(self, content: bytes, written: int, kept: int) -> tuple[Stamp, ...]:
        stamps = []
        for index in range(written - kept, written):
            ticks, channel, identity, hop, _ = _STAMP.unpack_from(content, index % self._stamps * _STAMP.size)
            try:
                stamps.append(Stamp(ticks, channel, identity, Hop(hop)))
            except ValueError as error:
                raise MalformedTrace(f"hop {hop}") from error
        return tuple(stamps)
