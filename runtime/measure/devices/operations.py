"""What is measured of each device class, and the peer that stands beside it. Pure data."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


class Means(enum.Enum):
    """What a row is about: its ratio is of these figures."""

    LATENCY = "p50"  # ours / the peer's
    RATE = "rate"  # ours / the peer's


class PeerKind(enum.Enum):
    PREAD = "pread(2) of the same file, one process"
    VETH = "a veth pair, C on both sides"
    TAP = "a plain TAP, C on both sides"
    PIPE = "two pipes, C on both sides"
    SOCKET = "a seqpacket socket, C on both sides"
    STREAM = "a Unix stream socket, C on both sides"
    NBDKIT = "nbdkit memory, the same fio job"
    QEMU = "qemu's NBD server, the same fio job"
    DISK_API = "the disk's own API in its partition"


@dataclass(frozen=True, slots=True)
class Peer:
    kind: PeerKind
    payload_bytes: int
    means: Means


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A row: one load of one machine."""

    device: str  # the machine's kind
    text: str
    load: str  # what the guest calls it
    toml: str  # the table that makes the guest do it
    means: Means
    peers: Sequence[Peer] = ()
    bytes_per_operation: int = 0  # of payload, for GB/s; 0: nobody asks
    at_least_gb_per_s: float | None = None  # a goal


class Look(enum.Enum):
    """What somebody outside of the machine does, again and again."""

    KEY = "a viewer presses a key"
    STROKE = "a viewer presses a button of the mouse"
    PICTURE = "a viewer asks for the whole picture"
    KEY_VALUE = "the operator asks for a key's value"
    NBD_READS = "an NBD client reads"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideOperation:
    """A row whose clock is outside of the machine: what is used there is in no guest's hands."""

    device: str  # a class of runtime.measure.devices.outside
    text: str
    look: Look
    means: Means
    peers: Sequence[Peer] = ()
    bytes_per_operation: int = 0
    at_least_gb_per_s: float | None = None


_LATENCY, _RATE = Means.LATENCY, Means.RATE
SCREEN_WIDTH: Final = 1024  # pixels, of four bytes
SCREEN_HEIGHT: Final = 768

OPERATIONS: Final = (
    Operation(
        device="disk",
        text="4 KiB read",
        load="4 KiB reads",
        toml="{ bytes = 4096, seconds = <seconds> }",
        means=_LATENCY,
        peers=(Peer(PeerKind.PREAD, 4096, _LATENCY),),
    ),
    Operation(
        device="disk",
        text="4 KiB random reads, depth 32",
        load="4 KiB reads, 32 at a time",
        toml="{ bytes = 4096, depth = 32, seconds = <seconds> }",
        means=_RATE,
        peers=(Peer(PeerKind.PREAD, 4096, _RATE),),
    ),
    Operation(
        device="disk",
        text="64 KiB writes, depth 4",
        load="64 KiB writes, 4 at a time",
        toml='{ operation = "write", bytes = 65536, depth = 4, seconds = <seconds> }',
        means=_RATE,
        bytes_per_operation=65536,
    ),
    Operation(
        device="net",
        text="64-byte frame to another guest and back",
        load="64-byte frames, there and back",
        toml="{ bytes = 64 }",
        means=_LATENCY,
        peers=(Peer(PeerKind.VETH, 64, _LATENCY), Peer(PeerKind.TAP, 64, _LATENCY)),
    ),
    Operation(
        device="net",
        text="1,514-byte frames to another guest",
        load="1514-byte frames, one way",
        toml="{ bytes = 1514, flow = true }",
        means=_RATE,
        peers=(Peer(PeerKind.VETH, 1514, _RATE), Peer(PeerKind.TAP, 1514, _RATE)),
        bytes_per_operation=1514,
    ),
    Operation(
        device="net",
        text="64 KiB frames to another guest",
        load="65535-byte frames, one way",
        toml="{ bytes = 65535, flow = true }",
        means=_RATE,
        peers=(Peer(PeerKind.VETH, 65535, _RATE), Peer(PeerKind.TAP, 65535, _RATE)),
        bytes_per_operation=65535,
        at_least_gb_per_s=1.0,
    ),
    Operation(
        device="serial",
        text="64 bytes to the line's end and back",
        load="64-byte pieces, there and back",
        toml="{ bytes = 64 }",
        means=_LATENCY,
        peers=(Peer(PeerKind.PIPE, 64, _LATENCY),),
    ),
    Operation(
        device="serial",
        text="a flow of 4 KiB pieces and back",
        load="4096-byte pieces, a flow",
        toml="{ bytes = 4096, flow = true }",
        means=_RATE,
        bytes_per_operation=4096,
    ),
    Operation(
        device="echo",
        text="64-byte request and reply",
        load="64-byte exchanges",
        toml="",
        means=_LATENCY,
        peers=(Peer(PeerKind.SOCKET, 64, _LATENCY),),
    ),
    Operation(
        device="streams",
        text="64 bytes to another guest and back",
        load="64-byte pieces of a stream, there and back",
        toml="{ bytes = 64 }",
        means=_LATENCY,
        peers=(Peer(PeerKind.STREAM, 64, _LATENCY),),
    ),
    Operation(
        device="streams",
        text="a flow of 64 KiB pieces to another guest",
        load="65536-byte pieces of a stream, one way",
        toml="{ bytes = 65536, flow = true }",
        means=_RATE,
        bytes_per_operation=65536,
    ),
)

OUTSIDE_OPERATIONS: Final = (
    OutsideOperation(
        device="screen",
        text="a viewer's key to its letter on the viewer's screen",
        look=Look.KEY,
        means=_LATENCY,
    ),
    OutsideOperation(
        device="screen", text="a viewer's click to what it paints, seen", look=Look.STROKE, means=_LATENCY
    ),
    OutsideOperation(
        device="screen",
        text=f"updates of a whole screen, {SCREEN_WIDTH} x {SCREEN_HEIGHT}",
        look=Look.PICTURE,
        means=_RATE,
        bytes_per_operation=SCREEN_WIDTH * SCREEN_HEIGHT * 4,
    ),
    OutsideOperation(
        device="integration",
        text="a key's value through the management socket",
        look=Look.KEY_VALUE,
        means=_LATENCY,
    ),
    OutsideOperation(
        device="nbd",
        text="4 KiB random reads, depth 32, by fio",
        look=Look.NBD_READS,
        means=_RATE,
        peers=(
            Peer(PeerKind.NBDKIT, 4096, _RATE),
            Peer(PeerKind.QEMU, 4096, _RATE),
            Peer(PeerKind.DISK_API, 4096, _RATE),
        ),
    ),
)
