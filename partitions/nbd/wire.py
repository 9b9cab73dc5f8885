"""NBD's handshake as bytes: fixed newstyle. Big-endian. Source: github.com/NetworkBlockDevice/nbd doc/proto.md.

The transmission phase, which follows, is partitions/storage/nbd_wire.h.
"""

import errno
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

GREETING_MAGIC: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = b"IHAVEOPT"
REPLY_MAGIC: Final = 0x0003_E889_0455_65A9
NAME_BYTES_MAX: Final = 4096  # the protocol's
OPTION_BYTES_MAX: Final = 8192  # of an option's data: a name, and all information that there is to ask for
CLIENT_FLAGS_BYTES: Final = 4

_GREETING: Final = struct.Struct(">8s8sH")
_OPTION: Final = struct.Struct(">8sII")
_REPLY: Final = struct.Struct(">QIII")
_EXPORT: Final = struct.Struct(">QH")
_INFO_EXPORT: Final = struct.Struct(">HQH")
_INFO_BLOCK_SIZE: Final = struct.Struct(">HIII")
_LEGACY_PADDING: Final = bytes(124)  # behind an answer to EXPORT_NAME, unless the client wants it away

assert _GREETING.size == 18
assert _OPTION.size == 16
assert _REPLY.size == 20
assert _INFO_EXPORT.size == 12
assert _INFO_BLOCK_SIZE.size == 14
OPTION_HEAD_BYTES: Final = _OPTION.size


class HandshakeFlags(IntFlag):
    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7


class Reply(IntEnum):
    ACK = 1
    SERVER = 2
    INFO = 3
    ERR_UNSUPPORTED = 0x8000_0001
    ERR_POLICY = 0x8000_0002
    ERR_INVALID = 0x8000_0003
    ERR_UNKNOWN = 0x8000_0006
    ERR_SHUTDOWN = 0x8000_0007


class Info(IntEnum):
    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class ExportFlags(IntFlag):
    HAS_FLAGS = 1
    READ_ONLY = 2
    SEND_FLUSH = 4
    SEND_FUA = 8
    SEND_TRIM = 32
    SEND_WRITE_ZEROES = 64
    CAN_MULTI_CONN = 256


class MalformedOption(Exception):
    """What a client sent is no option. Branch on `fatal`: then the stream cannot be followed any more."""

    def __init__(self, text: str, *, fatal: bool) -> None:
        super().__init__(text)
        self.fatal = fatal


@dataclass(frozen=True, slots=True)
class ExportDescription:
    """What is exported, as clients are told."""

    name: str
    description: str
    size_bytes: int
    block_bytes: int
    preferred_bytes: int
    max_payload_bytes: int
    read_only: bool
    can_discard: bool

    @property
    def flags(self) -> ExportFlags:
        """Several connections share one channel, and a flush is of the whole disk: so multi-conn is true."""
        flags = (
            ExportFlags.HAS_FLAGS | ExportFlags.SEND_FLUSH | ExportFlags.SEND_FUA | ExportFlags.CAN_MULTI_CONN
        )
        if self.read_only:
            return flags | ExportFlags.READ_ONLY
        flags |= ExportFlags.SEND_WRITE_ZEROES
        return flags | ExportFlags.SEND_TRIM if self.can_discard else flags


def build_greeting() -> bytes:
    flags = HandshakeFlags.FIXED_NEWSTYLE | HandshakeFlags.NO_ZEROES
    return _GREETING.pack(GREETING_MAGIC, OPTION_MAGIC, flags)


def parse_client_flags(data: bytes) -> HandshakeFlags:
    """MalformedOption: flags that we did not offer."""
    value = int.from_bytes(data, "big")
    if value & ~int(HandshakeFlags.FIXED_NEWSTYLE | HandshakeFlags.NO_ZEROES):
        raise MalformedOption(f"client flags {value:#x}", fatal=True)
    return HandshakeFlags(value)


def parse_option_head(data: bytes) -> tuple[int, int]:
    """Which option, and how many bytes of data follow. MalformedOption."""
    magic, option, length = _OPTION.unpack(data)
    if magic != OPTION_MAGIC:
        raise MalformedOption("no option", fatal=True)
    if length > OPTION_BYTES_MAX:
        raise MalformedOption(f"an option of {length} bytes", fatal=True)
    return option, length


def parse_name(data: bytes) -> str:
    if len(data) > NAME_BYTES_MAX:
        raise MalformedOption(f"a name of {len(data)} bytes", fatal=False)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise MalformedOption("a name that is not UTF-8", fatal=False) from error


def parse_info_request(data: bytes) -> tuple[str, frozenset[int]]:
    """Of INFO and GO: the export's name, and what else the client asks for. MalformedOption."""
    if len(data) < 6 or len(data) < 6 + (name_bytes := int.from_bytes(data[:4], "big")):
        raise MalformedOption("an information request cut short", fatal=False)
    name, rest = parse_name(data[4 : 4 + name_bytes]), data[4 + name_bytes :]
    (count,) = struct.unpack_from(">H", rest)
    if len(rest) != 2 + 2 * count:
        raise MalformedOption(f"{len(rest) - 2} bytes for {count} kinds of information", fatal=False)
    return name, frozenset(struct.unpack_from(f">{count}H", rest, 2))


def build_reply(option: int, kind: Reply, data: bytes = b"") -> bytes:
    return _REPLY.pack(REPLY_MAGIC, option, kind, len(data)) + data


def build_export_answer(export: ExportDescription, flags: HandshakeFlags) -> bytes:
    """To EXPORT_NAME; the transmission phase follows."""
    padding = b"" if flags & HandshakeFlags.NO_ZEROES else _LEGACY_PADDING
    return _EXPORT.pack(export.size_bytes, export.flags) + padding


def build_server(name: str) -> bytes:
    """The data of a SERVER reply to LIST."""
    encoded = name.encode()
    return len(encoded).to_bytes(4, "big") + encoded


def build_info(export: ExportDescription, kind: Info) -> bytes:
    """The data of an INFO reply."""
    match kind:
        case Info.EXPORT:
            return _INFO_EXPORT.pack(kind, export.size_bytes, export.flags)
        case Info.BLOCK_SIZE:
            sizes = export.block_bytes, export.preferred_bytes, export.max_payload_bytes
            return _INFO_BLOCK_SIZE.pack(kind, *sizes)
        case Info.NAME:
            return kind.to_bytes(2, "big") + export.name.encode()
        case Info.DESCRIPTION:
            return kind.to_bytes(2, "big") + export.description.encode()


# An errno of the disk's, as a reply of the transmission phase has it: the protocol's own numbers, which are Linux's.
_ERRORS: Final = {
    errno.EPERM: errno.EPERM,
    errno.EROFS: errno.EPERM,
    errno.ENOMEM: errno.ENOMEM,
    errno.EINVAL: errno.EINVAL,
    errno.ENOSPC: errno.ENOSPC,
    errno.EOPNOTSUPP: errno.EINVAL,
    errno.ENODEV: errno.ESHUTDOWN,
}


def error_of(number: int) -> int:
    return _ERRORS.get(number, errno.EIO)
