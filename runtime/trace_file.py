"""A capture: what every process of a machine stamped, and how its ticks become time. Kept in one file."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import msgpack  # type: ignore[import-untyped]

from bus.trace import ChannelName, Hop, Stamp, Track
from runtime.exits import CommandError

CAPTURE_BYTES_MAX: Final = 1 << 30
_MAGIC: Final = "partvisor trace"
_VERSION: Final = 2  # 1 knew no generations
_STAMP: Final = struct.Struct("<QQQI")


class CaptureError(CommandError):
    """The file is no capture. One line."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment on two clocks: that of the stamps, and CLOCK_MONOTONIC."""

    ticks: int
    ns: int


@dataclass(frozen=True, slots=True)
class Process:
    """What the processes of one partition left: the first, and those that took over from it."""

    name: str
    names: tuple[ChannelName, ...]
    tracks: tuple[Track, ...]
    untracked: int  # stamps of threads that had no track


@dataclass(frozen=True, slots=True)
class Capture:
    begin: Moment
    end: Moment
    processes: tuple[Process, ...]

    @property
    def lost(self) -> int:
        """Stamps that were overwritten, or had no track."""
        return sum(one.untracked + sum(track.lost for track in one.tracks) for one in self.processes)

    def clock(self) -> Callable[[int], float]:
        """Ticks to ns of CLOCK_MONOTONIC: a straight line through both moments."""
        begin, end = self.begin, self.end
        slope = (end.ns - begin.ns) / (end.ticks - begin.ticks) if end.ticks > begin.ticks else 1.0

        def to_ns(ticks: int) -> float:
            return begin.ns + (ticks - begin.ticks) * slope

        return to_ns

    def encode(self) -> bytes:
        processes = [
            {
                "name": one.name,
                "names": [[name.channel, name.port, name.text] for name in one.names],
                "untracked": one.untracked,
                "tracks": [
                    [track.thread, track.generation, track.lost, _pack(track.stamps)] for track in one.tracks
                ],
            }
            for one in self.processes
        ]
        value = {
            "magic": _MAGIC,
            "version": _VERSION,
            "begin": [self.begin.ticks, self.begin.ns],
            "end": [self.end.ticks, self.end.ns],
            "processes": processes,
        }
        encoded: bytes = msgpack.packb(value, use_bin_type=True)
        return encoded

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """ValueError: it is none."""
        try:
            value: dict[str, Any] = msgpack.unpackb(content, raw=False)
            if value["magic"] != _MAGIC or value["version"] != _VERSION:
                raise ValueError("another magic or version")
            processes = tuple(
                Process(
                    str(one["name"]),
                    tuple(ChannelName(int(at), int(port), str(text)) for at, port, text in one["names"]),
                    tuple(
                        Track(int(thread), _unpack(data), int(lost), int(generation))
                        for thread, generation, lost, data in one["tracks"]
                    ),
                    int(one["untracked"]),
                )
                for one in value["processes"]
            )
            return cls(Moment(*map(int, value["begin"])), Moment(*map(int, value["end"])), processes)
        except (KeyError, TypeError, struct.error, msgpack.UnpackException) as error:
            raise ValueError(str(error)) from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises CaptureError."""
        try:
            if path.stat().st_size > CAPTURE_BYTES_MAX:
                raise CaptureError(f"{path}: larger than a trace can be ({CAPTURE_BYTES_MAX >> 20} MiB)")
            return cls.decode(path.read_bytes())
        except OSError as error:
            raise CaptureError(f"{path}: {error.strerror}") from error
        except ValueError as error:
            raise CaptureError(
                f"{path}: no trace: make one with partvisor run --trace FILE ({error})"
            ) from error


def _pack(stamps: tuple[Stamp, ...]) -> bytes:
    return b"".join(_STAMP.pack(one.ticks, one.channel, one.transaction_id, one.hop) for one in stamps)


def _unpack(data: bytes) -> tuple[Stamp, ...]:
    return tuple(
        Stamp(ticks, channel, identity, Hop(hop))
        for ticks, channel, identity, hop in _STAMP.iter_unpack(data)
    )
