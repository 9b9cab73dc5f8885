"""One viewer's connection as the server sees it: bytes in, bytes and events out. No I/O.

VERSION -> SECURITY (not before 3.7: there the server decides) -> INIT -> READY
"""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, TypeAlias

from partitions.display.pixel_format import MAPPED, NATIVE, PixelFormat
from partitions.display.rfb_wire import (
    SECURITY_DONE,
    SECURITY_NONE,
    SERVER_VERSION,
    VERSION_BYTES,
    CutText,
    Encoding,
    FromViewer,
    KeyEvent,
    PointerEvent,
    RfbError,
    SetEncodings,
    SetPixelFormat,
    UpdateRequest,
    colour_map,
    refusal,
    security_types,
    server_init,
    take_message,
)

_PIXELS: Final = (Encoding.ZRLE, Encoding.ZLIB)  # that a viewer may choose beside RAW
NEWEST_MINOR: Final = 8


class Phase(Enum):
    VERSION = auto()
    SECURITY = auto()
    INIT = auto()
    READY = auto()
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class Send:
    """To the viewer, as it stands."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Began:
    """It is there; the first thing that it does is to ask for an update."""


Event: TypeAlias = Send | Began | UpdateRequest | KeyEvent | PointerEvent


@dataclass(slots=True)
class RfbSession:
    name: str  # of what is shown
    width: int
    height: int
    refused: str | None = None  # why nobody may come in
    phase: Phase = Phase.VERSION
    minor: int = 0
    pixel_format: PixelFormat = NATIVE
    encoding: Encoding = Encoding.RAW
    may_resize: bool = False  # it can be told that the screen has another size
    _data: bytearray = field(default_factory=bytearray)

    def greeting(self) -> bytes:
        return SERVER_VERSION

    def receive(self, data: bytes) -> list[Event]:
        """What the bytes mean, with those that were left before. RfbError: the connection is to end."""
        self._data += data
        events: list[Event] = []
        while (step := self._step()) is not None:
            events += step
        return events

    def _step(self) -> list[Event] | None:
        """None: more bytes are needed."""
        match self.phase:
            case Phase.VERSION:
                return self._version()
            case Phase.SECURITY:
                if (chosen := self._take(1)) is None:
                    return None
                if chosen[0] != SECURITY_NONE:
                    raise RfbError(f"security type {chosen[0]}")
                self.phase = Phase.INIT
                return [Send(SECURITY_DONE)] if self.minor >= NEWEST_MINOR else []
            case Phase.INIT:
                if self._take(1) is None:  # whether others may stay: they may
                    return None
                self.phase = Phase.READY
                return [Send(server_init(self.width, self.height, NATIVE, self.name)), Began()]
            case Phase.READY:
                message = take_message(self._data)
                return None if message is None else self._obey(message)
            case Phase.REFUSED:
                self._data.clear()
        return None

    def _take(self, count: int) -> bytes | None:
        if len(self._data) < count:
            return None
        taken = bytes(self._data[:count])
        del self._data[:count]
        return taken

    def _version(self) -> list[Event] | None:
        if (line := self._take(VERSION_BYTES)) is None:
            return None
        if line[:8] != b"RFB 003." or not line[8:11].isdigit() or line[11:] != b"\n":
            raise RfbError(f"a version that is none: {line!r}")
        said = int(line[8:11])
        # Section 7.1.1: what is not known is taken for 3.3; those that say more than we are 3.8.
        self.minor = min(said, NEWEST_MINOR) if said >= 7 else 3
        if self.refused is not None:
            self.phase = Phase.REFUSED
            return [Send(refusal(self.minor, self.refused))]
        self.phase = Phase.SECURITY if self.minor >= 7 else Phase.INIT
        return [Send(security_types(self.minor))]

    def _obey(self, message: FromViewer) -> list[Event]:
        match message:
            case SetPixelFormat(wanted):
                if wanted.true_colour:
                    self.pixel_format = wanted
                    return []
                if wanted.bits != MAPPED.bits:
                    raise RfbError(f"a colour map with pixels of {wanted.bits} bits")
                self.pixel_format = MAPPED
                return [Send(colour_map(MAPPED))]
            case SetEncodings(encodings):
                self.encoding = next((one for one in _in_order(encodings) if one in _PIXELS), Encoding.RAW)
                self.may_resize = Encoding.DESKTOP_SIZE in encodings
                return []
            case CutText():
                return []
            case event:
                return [event]


def _in_order(encodings: tuple[int, ...]) -> list[Encoding]:
    """Those that we know, up to the first that says: as they are."""
    known = [Encoding(one) for one in encodings if one in Encoding.__members__.values()]
    return known[: known.index(Encoding.RAW)] if Encoding.RAW in known else known
