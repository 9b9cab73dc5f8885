"""The bodies of the five services' messages. Everything decoded is a copy that was checked: IcError.

A decoder takes what is longer than it needs, as guests of other makes send the host's whole buffer back.

Sources: openvmm vm/devices/hyperv_ic_protocol; Linux include/uapi/linux/hyperv.h.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, Self

from partitions.integration.wire import IcError, Version

_HEARTBEAT: Final = struct.Struct("<QI4x")
_SHUTDOWN: Final = struct.Struct("<III2048s")
_TIME_1: Final = struct.Struct("<QQQB3x")
_TIME_4: Final = struct.Struct("<QQBBB5x")
_KVP_HEAD: Final = struct.Struct("<BBxx")
_KVP_VALUE: Final = struct.Struct("<III512s2048s")
_KVP_INDEX: Final = struct.Struct("<I")
_VSS: Final = struct.Struct("<B7xI")
KEY_BYTES_MAX: Final = 512  # UTF-16 with its closing zero
VALUE_BYTES_MAX: Final = 2048  # the same
_NUL: Final = b"\0\0"
TIME_4_SINCE: Final = Version(4, 0)
_EPOCH_100NS: Final = 116_444_736_000_000_000  # from 1601 to 1970
NS_PER_TICK: Final = 100

assert _HEARTBEAT.size == 16
assert _SHUTDOWN.size == 2060
assert _TIME_1.size == 28
assert _TIME_4.size == 24
assert _KVP_VALUE.size == 2572
KVP_BODY_BYTES: Final = _KVP_HEAD.size + _KVP_INDEX.size + _KVP_VALUE.size
assert KVP_BODY_BYTES == 2580
assert _VSS.size == 12


def _unpack(layout: struct.Struct, body: bytes, at: int = 0) -> tuple[int, ...]:
    if len(body) < at + layout.size:
        raise IcError(f"a body of {len(body)} bytes; at least {at + layout.size}")
    return layout.unpack_from(body, at)


class Health(IntEnum):
    UNKNOWN = 0
    HEALTHY = 1
    CRITICAL = 2
    STOPPED = 3


@dataclass(frozen=True, slots=True)
class Heartbeat:
    sequence: int  # the guest answers with the next one
    health: int = Health.UNKNOWN

    def encode(self) -> bytes:
        return _HEARTBEAT.pack(self.sequence, self.health)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        sequence, health = _unpack(_HEARTBEAT, body)
        return cls(sequence, health)


class ShutdownFlags(IntFlag):
    FORCE = 1
    RESTART = 2
    HIBERNATE = 4


@dataclass(frozen=True, slots=True)
class Shutdown:
    reason: int = 0
    timeout_s: int = 0
    flags: int = ShutdownFlags(0)
    message: str = ""

    def encode(self) -> bytes:
        text = self.message[: 2048 // 2 - 1].encode("utf-16-le", "replace")[: 2048 - 2]
        return _SHUTDOWN.pack(self.reason, self.timeout_s, self.flags, text)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        if len(body) < _SHUTDOWN.size:
            raise IcError(f"a body of {len(body)} bytes; at least {_SHUTDOWN.size}")
        reason, timeout_s, flags, text = _SHUTDOWN.unpack_from(body)
        return cls(reason, timeout_s, flags, text.decode("utf-16-le", "replace").partition("\0")[0])


class TimeFlags(IntFlag):
    SYNC = 1  # set your clock
    SAMPLE = 2  # compare


@dataclass(frozen=True, slots=True)
class TimeSync:
    """Times in 100 ns; the host's since 1601. Before version 4 nobody says when the host took its time."""

    host_time: int
    reference_time: int  # of the guest, at that moment; 0 before version 4
    flags: int

    def encode(self, version: Version) -> bytes:
        if version >= TIME_4_SINCE:
            return _TIME_4.pack(self.host_time, self.reference_time, self.flags, 0, 0)
        return _TIME_1.pack(self.host_time, 0, 0, self.flags)

    @classmethod
    def decode(cls, body: bytes, version: Version) -> Self:
        if version >= TIME_4_SINCE:
            host, reference, flags, _, _ = _unpack(_TIME_4, body)
            return cls(host, reference, flags)
        host, _, _, flags = _unpack(_TIME_1, body)
        return cls(host, 0, flags)


def ticks_of(wall_ns: int) -> int:
    """From ns since 1970."""
    return wall_ns // NS_PER_TICK + _EPOCH_100NS


def wall_ns_of(ticks: int) -> int:
    return (ticks - _EPOCH_100NS) * NS_PER_TICK


class KvpOperation(IntEnum):
    GET = 0
    SET = 1
    DELETE = 2
    ENUMERATE = 3
    GET_IP = 4
    SET_IP = 5


class Pool(IntEnum):
    EXTERNAL = 0  # what the host tells the guest
    GUEST = 1  # what the guest tells the host
    AUTO = 2  # what its operating system tells the host by itself
    AUTO_EXTERNAL = 3


class KvpType(IntEnum):
    STRING = 1
    EXPAND_STRING = 2
    DWORD = 4
    QWORD = 11


def _text_bytes(text: str, limit: int, what: str) -> bytes:
    encoded = text.encode("utf-16-le", "surrogatepass") + _NUL
    if len(encoded) > limit or "\0" in text:
        raise ValueError(f"a {what} of {len(encoded)} bytes in UTF-16; at most {limit}, without zeros")
    return encoded


def _text_of(data: bytes, length: int, what: str) -> str:
    if not len(_NUL) <= length <= len(data) or length % 2:
        raise IcError(f"a {what} of {length} bytes")
    try:
        return data[:length].decode("utf-16-le").partition("\0")[0]
    except UnicodeDecodeError as error:
        raise IcError(f"a {what} that is not UTF-16") from error


@dataclass(frozen=True, slots=True)
class Kvp:
    """A request, or its answer. `index` counts with ENUMERATE alone."""

    operation: int
    pool: int
    key: str = ""
    value: str = ""
    index: int = 0
    value_type: int = KvpType.STRING

    def encode(self) -> bytes:
        """ValueError: key or value is too long."""
        key = _text_bytes(self.key, KEY_BYTES_MAX, "key")
        value = _text_bytes(self.value, VALUE_BYTES_MAX, "value")
        if self.value_type in (KvpType.DWORD, KvpType.QWORD):
            size = 4 if self.value_type == KvpType.DWORD else 8
            value = (int(self.value) & (1 << 8 * size) - 1).to_bytes(size, "little")
        pair = _KVP_VALUE.pack(self.value_type, len(key), len(value), key, value)
        index = _KVP_INDEX.pack(self.index) if self.operation == KvpOperation.ENUMERATE else b""
        head = _KVP_HEAD.pack(self.operation, self.pool)
        return (head + index + pair).ljust(KVP_BODY_BYTES, b"\0")

    @classmethod
    def decode(cls, body: bytes, *, is_answer: bool = False) -> Self:
        """What a request leaves empty is not looked at: a GET has no value, an ENUMERATE neither key nor value."""
        operation, pool = _unpack(_KVP_HEAD, body)
        at, index = _KVP_HEAD.size, 0
        if operation == KvpOperation.ENUMERATE:
            (index,) = _unpack(_KVP_INDEX, body, at)
            at += _KVP_INDEX.size
        if operation not in (KvpOperation.GET, KvpOperation.SET, KvpOperation.DELETE, KvpOperation.ENUMERATE):
            return cls(operation, pool)
        if len(body) < at + _KVP_VALUE.size:
            raise IcError(f"a body of {len(body)} bytes; at least {at + _KVP_VALUE.size}")
        kind, key_bytes, value_bytes, key, value = _KVP_VALUE.unpack_from(body, at)
        if not is_answer and operation == KvpOperation.ENUMERATE:
            return cls(operation, pool, index=index)
        name = _text_of(key, key_bytes, "key")
        if not is_answer and operation != KvpOperation.SET:
            return cls(operation, pool, name)
        return cls(operation, pool, name, _value_of(kind, value, value_bytes), index, kind)


def _value_of(kind: int, data: bytes, length: int) -> str:
    match kind:
        case KvpType.STRING | KvpType.EXPAND_STRING:
            return _text_of(data, length, "value")
        case KvpType.DWORD if length == 4:
            return str(int.from_bytes(data[:4], "little"))
        case KvpType.QWORD | 8 if length == 8:  # Linux says 8
            return str(int.from_bytes(data[:8], "little"))
    raise IcError(f"a value of type {kind}, {length} bytes")


class SnapshotOperation(IntEnum):
    CREATE = 0
    DELETE = 1
    CHECK = 2  # whether it can be backed up while it runs
    GET_DRIVE_MAP = 3
    COMPLETE = 4
    FREEZE = 5
    THAW = 6
    AUTO_RECOVER = 7


NO_AUTO_RECOVERY: Final = 5  # of a CHECK's answer: can be backed up, and wants no recovery afterwards


@dataclass(frozen=True, slots=True)
class Snapshot:
    operation: int
    flags: int = 0

    def encode(self) -> bytes:
        return _VSS.pack(self.operation, self.flags)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        operation, flags = _unpack(_VSS, body)
        return cls(operation, flags)
