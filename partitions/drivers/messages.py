"""What a stack and its driver partition say to each other: SynIC messages between two ports of their own.

    stack -> driver    BEGIN(generation)      forget what you were told; here is all that stands
                       SERVE(...)             serve this channel; said again, it changes nothing
                       STOP(number)           stop it, and say so; also one that you never heard of
                       END(generation)        that was all: stop what was not among it, replay, serve
                       STICK(0)               a fault on purpose: serve no channel any more
                       FAULTS(0)              look at the board in your state: what is armed has changed
                       LEAVE(0)               your device is out of the machine: close it, and end
                       USED(guest, ns)        it has a cap, and had so much of it elsewhere
    driver -> stack    READY(...)             after END: everything is replayed and served
                       OPENED(number, status) after SERVE
                       STOPPED(number)        nothing of that channel is touched any more
                       LOST(number, ...)      its guest broke it, or its worker failed for good
                       ASKED(number, count)   its guest wants so many sub-channels in all

Every command can be said twice, and an opening of a channel has a number that no other opening ever has. So a new
root says all that stands again, and so does a root to a new driver; what was on its way to or from a dead process
does no harm. Before the BEGIN of its own generation a driver listens to nothing: it is for its predecessor.

All integers are little-endian; a message is at most 240 bytes.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import ClassVar, Final, Self

from bus.memory import PAGE_BYTES
from bus.packets import GpaRange
from partitions.stack.grant import GRANT_BYTES, Grant
from runtime.abi import MESSAGE_PAYLOAD_BYTES_MAX

GRANTS_MAX: Final = 8  # GPADLs of one channel at its opening
SHARE_STEP: Final = 328  # of 65536: half a percent of a processor
SHARES_MAX: Final = 255  # so many steps; who may have more is not counted
REASON_BYTES_MAX: Final = 160
_KIND: Final = struct.Struct("<II")  # kind, reserved


class MalformedDriverMessage(ValueError):
    """Not one of these. The speaker is trusted with less than this: it is dropped."""


class Kind(IntEnum):
    BEGIN = 1
    SERVE = 2
    STOP = 3
    END = 4
    STICK = 5
    FAULTS = 6
    LEAVE = 7
    USED = 8
    READY = 17
    OPENED = 18
    STOPPED = 19
    LOST = 20
    ASKED = 21


class ServeFlags(IntFlag):
    BROKER_ROUTE = 1  # signals set a flag in the driver's SIEF page
    SILENT = 2  # the guest polls: nobody signals it
    MESSAGES = 4  # no rings: the client sends, and waits for the reply (partitions.stack.served_endpoint)
    PROXY = 8  # that client stands for others
    RECEIVES = 16  # the second connection of a client: partitions.drivers.driven_device.CalledBothWays


_KNOWN_FLAGS: Final = 0x1F
_SUB_CHANNEL_SHIFT: Final = 5  # its index stands in the same byte: the message is full
SUB_CHANNEL_INDEX_MAX: Final = 7
WAITING: Final = ("adaptive", "spin", "block")  # by number
DEVICE_KINDS: Final = ("disk", "custom", "echo", "net", "serial")  # by number


@dataclass(frozen=True, slots=True)
class _Numbered:
    KIND: ClassVar[Kind]
    _FORM: ClassVar[struct.Struct] = struct.Struct("<Q")

    number: int

    def encode(self) -> bytes:
        return _head(self.KIND) + self._FORM.pack(self.number)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        return cls(*_exactly(cls._FORM, body))


@dataclass(frozen=True, slots=True)
class Begin(_Numbered):
    """The number is a generation: that of the driver's process."""

    KIND: ClassVar[Kind] = Kind.BEGIN


@dataclass(frozen=True, slots=True)
class End(_Numbered):
    """The number is the BEGIN's."""

    KIND: ClassVar[Kind] = Kind.END


@dataclass(frozen=True, slots=True)
class Stop(_Numbered):
    """The number is an opening's."""

    KIND: ClassVar[Kind] = Kind.STOP


@dataclass(frozen=True, slots=True)
class Stick(_Numbered):
    KIND: ClassVar[Kind] = Kind.STICK


@dataclass(frozen=True, slots=True)
class Faults(_Numbered):
    KIND: ClassVar[Kind] = Kind.FAULTS


@dataclass(frozen=True, slots=True)
class Leave(_Numbered):
    KIND: ClassVar[Kind] = Kind.LEAVE


@dataclass(frozen=True, slots=True)
class Used:
    """Said once: one that is lost was for a process that is gone."""

    KIND: ClassVar[Kind] = Kind.USED
    _FORM: ClassVar[struct.Struct] = struct.Struct("<QQ")

    guest: int
    time_ns: int

    def encode(self) -> bytes:
        return _head(self.KIND) + self._FORM.pack(self.guest, self.time_ns)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        return cls(*_exactly(cls._FORM, body))


@dataclass(frozen=True, slots=True)
class Stopped(_Numbered):
    KIND: ClassVar[Kind] = Kind.STOPPED


def share_steps(share: int) -> int:
    """For `Serve.share`, of a share as a ServiceBudget has it: rounded up."""
    steps = -(-share // SHARE_STEP)
    return steps if steps <= SHARES_MAX else 0


@dataclass(frozen=True, slots=True)
class Serve:
    KIND: ClassVar[Kind] = Kind.SERVE
    _FORM: ClassVar[struct.Struct] = struct.Struct("<QIIHBBIIQBBBB")

    number: int  # of this opening
    guest: int  # its partition
    relid: int
    flag: int  # the channel's event flag in the driver, and its record's number
    flags: ServeFlags
    waiting: str
    ring_pages: int
    downstream_page_offset: int
    ring_gpfn: int  # first page of the rings, as the guest numbers it
    grants: tuple[Grant, ...]
    device: int = 0  # which of the driver's, where it has several
    kind: str = "disk"  # of that one
    share: int = (
        0  # of a processor that the guest may have of the driver, in SHARE_STEP; 0: as much as it likes
    )
    sub_channel: int = 0  # its index; 0: it is the first channel

    def buffer(self, gpadl: int) -> GpaRange:
        """What the guest lent before it opened the channel. LookupError: no such GPADL, or pages out of order."""
        for grant in self.grants:
            if gpadl and grant.gpadl == gpadl:
                return GpaRange.contiguous(grant.guest_gpfn, grant.pages * PAGE_BYTES)
        raise LookupError(f"channel {self.relid} has no GPADL {gpadl:#x}")

    def encode(self) -> bytes:
        """ValueError: more than GRANTS_MAX grants, or SUB_CHANNEL_INDEX_MAX is exceeded."""
        if len(self.grants) > GRANTS_MAX:
            raise ValueError(f"{len(self.grants)} GPADLs of one channel; a driver is told of {GRANTS_MAX}")
        if self.sub_channel > SUB_CHANNEL_INDEX_MAX:
            raise ValueError(f"sub-channel {self.sub_channel}; a driver is told of {SUB_CHANNEL_INDEX_MAX}")
        fixed = self._FORM.pack(
            self.number,
            self.guest,
            self.relid,
            self.flag,
            self.flags | self.sub_channel << _SUB_CHANNEL_SHIFT,
            WAITING.index(self.waiting),
            self.ring_pages,
            self.downstream_page_offset,
            self.ring_gpfn,
            len(self.grants),
            self.device,
            DEVICE_KINDS.index(self.kind),
            self.share,
        )
        return _head(self.KIND) + fixed + b"".join(grant.encode() for grant in self.grants)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        fields = _exactly(cls._FORM, body[: cls._FORM.size])
        number, guest, relid, flag, flags, waiting = fields[:6]
        ring_pages, offset, ring_gpfn, count, device, kind, share = fields[6:]
        rest = body[cls._FORM.size :]
        if count > GRANTS_MAX or len(rest) != count * GRANT_BYTES:
            raise MalformedDriverMessage(f"{count} grants in {len(rest)} bytes")
        if waiting >= len(WAITING) or kind >= len(DEVICE_KINDS):
            raise MalformedDriverMessage(f"waiting {waiting}, a device of kind {kind}")
        grants = tuple(Grant.decode_all(rest))
        return cls(
            number,
            guest,
            relid,
            flag,
            ServeFlags(flags & _KNOWN_FLAGS),
            WAITING[waiting],
            ring_pages,
            offset,
            ring_gpfn,
            grants,
            device,
            DEVICE_KINDS[kind],
            share,
            flags >> _SUB_CHANNEL_SHIFT,
        )


@dataclass(frozen=True, slots=True)
class Ready:
    """When this generation was born, had everything attached, replayed, served: CLOCK_MONOTONIC, ns."""

    KIND: ClassVar[Kind] = Kind.READY
    _FORM: ClassVar[struct.Struct] = struct.Struct("<QIIQQQQ")

    generation: int
    channels: int
    died_at: int  # the step of bus.seam at which the one before died; 0: none
    born_ns: int
    restored_ns: int
    replayed_ns: int
    serving_ns: int

    def times(self) -> dict[str, int]:
        """For the log."""
        names = ("generation", "channels", "born_ns", "restored_ns", "replayed_ns", "serving_ns")
        return {name: getattr(self, name) for name in names}

    def encode(self) -> bytes:
        return _head(self.KIND) + self._FORM.pack(
            self.generation,
            self.channels,
            self.died_at,
            self.born_ns,
            self.restored_ns,
            self.replayed_ns,
            self.serving_ns,
        )

    @classmethod
    def decode(cls, body: bytes) -> Self:
        return cls(*_exactly(cls._FORM, body))


@dataclass(frozen=True, slots=True)
class Opened:
    KIND: ClassVar[Kind] = Kind.OPENED
    _FORM: ClassVar[struct.Struct] = struct.Struct("<QI")

    number: int
    status: int  # 0: it is served

    def encode(self) -> bytes:
        return _head(self.KIND) + self._FORM.pack(self.number, self.status)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        return cls(*_exactly(cls._FORM, body))


@dataclass(frozen=True, slots=True)
class Lost:
    KIND: ClassVar[Kind] = Kind.LOST
    _FORM: ClassVar[struct.Struct] = struct.Struct("<QI")

    number: int
    failed: bool  # the worker, for good; else the guest broke its ring
    reason: str

    def encode(self) -> bytes:
        text = self.reason.encode()[:REASON_BYTES_MAX]
        return _head(self.KIND) + self._FORM.pack(self.number, self.failed) + text

    @classmethod
    def decode(cls, body: bytes) -> Self:
        number, failed = _exactly(cls._FORM, body[: cls._FORM.size])
        text = body[cls._FORM.size :]
        if len(text) > REASON_BYTES_MAX:
            raise MalformedDriverMessage(f"a reason of {len(text)} bytes")
        return cls(number, bool(failed), text.decode(errors="replace"))


@dataclass(frozen=True, slots=True)
class Asked:
    """Of the guest of an opening: more channels like it. Said twice, it has them once."""

    KIND: ClassVar[Kind] = Kind.ASKED
    _FORM: ClassVar[struct.Struct] = struct.Struct("<QI")

    number: int
    count: int

    def encode(self) -> bytes:
        return _head(self.KIND) + self._FORM.pack(self.number, self.count)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        number, count = _exactly(cls._FORM, body)
        if count > SUB_CHANNEL_INDEX_MAX:
            raise MalformedDriverMessage(f"{count} sub-channels")
        return cls(number, count)


DriverMessage = (
    Begin | Serve | Stop | End | Stick | Faults | Leave | Used | Ready | Opened | Stopped | Lost | Asked
)

_DECODERS: Final[Mapping[int, Callable[[bytes], DriverMessage]]] = {
    kind.KIND: kind.decode
    for kind in (Begin, Serve, Stop, End, Stick, Faults, Leave, Used, Ready, Opened, Stopped, Lost, Asked)
}

assert _KIND.size + Serve._FORM.size + GRANTS_MAX * GRANT_BYTES <= MESSAGE_PAYLOAD_BYTES_MAX
assert _KIND.size + Lost._FORM.size + REASON_BYTES_MAX <= MESSAGE_PAYLOAD_BYTES_MAX


def decode_driver_message(payload: bytes) -> DriverMessage:
    """Raises MalformedDriverMessage."""
    if len(payload) < _KIND.size:
        raise MalformedDriverMessage(f"{len(payload)} bytes")
    kind, _ = _KIND.unpack_from(payload)
    if (decode := _DECODERS.get(kind)) is None:
        raise MalformedDriverMessage(f"kind {kind}")
    return decode(payload[_KIND.size :])


def _head(kind: Kind) -> bytes:
    return _KIND.pack(kind, 0)


def _exactly(form: struct.Struct, body: bytes) -> tuple[int, ...]:
    if len(body) != form.size:
        raise MalformedDriverMessage(f"{len(body)} bytes, not {form.size}")
    return form.unpack(body)
