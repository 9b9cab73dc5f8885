"""What is measured of each device class, and the peer that stands beside it. Pure data."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from runtime.measure.devices import paths
from runtime.measure.devices.paths import Way


class Means(enum.Enum):
    """What a row is about: its ratio is of these figures."""

    LATENCY = "p50"  # ours / the peer's
    RATE = "rate"  # ours / the peer's


class PeerKind(enum.Enum):
    PREAD = "pread(2) of the same file, one process, Python"
    PWRITE = "pwrite(2) into a file, one process, Python"
    VETH = "a veth pair, C on both sides"
    TAP = "a plain TAP, C on both sides"
    PIPE = "two pipes, C on both sides"
    PTY = "a pty, C on both sides"
    PTY_PYTHON = "a pty, Python on both sides"
    PTY_ECHO = "a flow through a pty and back, Python on both sides"
    PIPE_ECHO = "a flow through two pipes and back, Python on both sides"
    SOCKET = "a seqpacket socket, C on both sides"
    STREAM = "a Unix stream socket, C on both sides"
    STREAM_PYTHON = "a Unix stream socket, Python on both sides"
    STREAM_FLOW = "a flow through a Unix stream socket, Python on both sides"
    VSOCK = "AF_VSOCK loopback, Python on both sides"
    VSOCK_FLOW = "a flow over AF_VSOCK loopback, Python on both sides"
    MEMCPY = "a copy of as many bytes, one process, Python"
    NBDKIT_READ = "nbdkit memory, the same client in Python"
    NBDKIT = "nbdkit memory, the same fio job"
    QEMU = "qemu's NBD server, the same fio job"


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
    short: str  # beside a bar
    load: str  # what the guest calls it
    toml: str  # the table that makes the guest do it
    means: Means
    way: Way = ()  # of one operation after the other
    overlaps: bool = False  # many are under way at a time, each a request with an id of its own
    traced_seconds: float = 0.2  # less, where there is one every few microseconds
    peers: Sequence[Peer] = ()
    bytes_per_operation: int = 0  # of payload, for GB/s; 0: nobody asks
    at_least_gb_per_s: float | None = None  # a goal


class Look(enum.Enum):
    """What somebody outside of the machine does, again and again."""

    KEY = "a viewer presses a key"
    STROKE = "a viewer presses a button of the mouse"
    PICTURE = "a viewer asks for the whole picture"
    KEY_VALUE = "the operator asks for a key's value"
    NBD_READ = "an NBD client reads a block and waits for it"
    NBD_JOB = "fio reads"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideOperation:
    """A row whose clock is outside of the machine: what is used there is in no guest's hands."""

    device: str  # a class of runtime.measure.devices.outside
    text: str
    short: str  # beside a bar
    look: Look
    means: Means
    way: Way = ()
    overlaps: bool = False
    traced_seconds: float = 0.2
    peers: Sequence[Peer] = ()
    bytes_per_operation: int = 0
    at_least_gb_per_s: float | None = None


_LATENCY, _RATE = Means.LATENCY, Means.RATE
SCREEN_WIDTH: Final = 1024  # pixels, of four bytes
SCREEN_HEIGHT: Final = 768
SCREEN_BYTES: Final = SCREEN_WIDTH * SCREEN_HEIGHT * 4

OPERATIONS: Final = (
    Operation(
        device="disk",
        text="4 KiB read",
        short="disk, 4 KiB read",
        load="4 KiB reads",
        toml="{ bytes = 4096, seconds = <seconds> }",
        means=_LATENCY,
        way=paths.DISK,
        traced_seconds=0.05,
        peers=(Peer(PeerKind.PREAD, 4096, _LATENCY),),
    ),
    Operation(
        device="disk",
        text="4 KiB random reads, depth 32",
        short="disk, 32 reads at a time",
        load="4 KiB reads, 32 at a time",
        toml="{ bytes = 4096, depth = 32, seconds = <seconds> }",
        means=_RATE,
        overlaps=True,
        traced_seconds=0.03,
        peers=(Peer(PeerKind.PREAD, 4096, _RATE),),
    ),
    Operation(
        device="disk",
        text="64 KiB writes, depth 4",
        short="disk, 4 writes of 64 KiB",
        load="64 KiB writes, 4 at a time",
        toml='{ operation = "write", bytes = 65536, depth = 4, seconds = <seconds> }',
        means=_RATE,
        overlaps=True,
        traced_seconds=0.05,
        peers=(Peer(PeerKind.PWRITE, 65536, _RATE),),
        bytes_per_operation=65536,
    ),
    Operation(
        device="net",
        text="64-byte frame to another guest and back",
        short="net, a frame and back",
        load="64-byte frames, there and back",
        toml="{ bytes = 64 }",
        means=_LATENCY,
        way=paths.NET,
        peers=(Peer(PeerKind.VETH, 64, _LATENCY), Peer(PeerKind.TAP, 64, _LATENCY)),
    ),
    Operation(
        device="net",
        text="1,514-byte frames to another guest",
        short="net, a flow of 1,514 bytes",
        load="1514-byte frames, one way",
        toml="{ bytes = 1514, flow = true }",
        means=_RATE,
        peers=(Peer(PeerKind.VETH, 1514, _RATE), Peer(PeerKind.TAP, 1514, _RATE)),
        bytes_per_operation=1514,
    ),
    Operation(
        device="net",
        text="64 KiB frames to another guest",
        short="net, a flow of 64 KiB",
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
        short="serial, 64 bytes and back",
        load="64-byte pieces, there and back",
        toml="{ bytes = 64 }",
        means=_LATENCY,
        way=paths.SERIAL,
        peers=tuple(Peer(kind, 64, _LATENCY) for kind in (PeerKind.PTY, PeerKind.PTY_PYTHON, PeerKind.PIPE)),
    ),
    Operation(
        device="serial",
        text="a flow of 4 KiB pieces and back",
        short="serial, a flow and back",
        load="4096-byte pieces, a flow",
        toml="{ bytes = 4096, flow = true }",
        means=_RATE,
        peers=(Peer(PeerKind.PTY_ECHO, 4096, _RATE), Peer(PeerKind.PIPE_ECHO, 4096, _RATE)),
        bytes_per_operation=4096,
    ),
    Operation(
        device="echo",
        text="64-byte request and reply",
        short="echo, 64 bytes",
        load="64-byte exchanges",
        toml="",
        means=_LATENCY,
        way=paths.ECHO,
        traced_seconds=0.05,
        peers=(Peer(PeerKind.SOCKET, 64, _LATENCY),),
    ),
    Operation(
        device="streams",
        text="64 bytes to another guest and back",
        short="stream, 64 bytes and back",
        load="64-byte pieces of a stream, there and back",
        toml="{ bytes = 64 }",
        means=_LATENCY,
        way=paths.STREAM,
        peers=tuple(
            Peer(kind, 64, _LATENCY) for kind in (PeerKind.STREAM, PeerKind.STREAM_PYTHON, PeerKind.VSOCK)
        ),
    ),
    Operation(
        device="streams",
        text="a flow of 64 KiB pieces to another guest",
        short="stream, a flow",
        load="65536-byte pieces of a stream, one way",
        toml="{ bytes = 65536, flow = true }",
        means=_RATE,
        peers=(Peer(PeerKind.STREAM_FLOW, 65536, _RATE), Peer(PeerKind.VSOCK_FLOW, 65536, _RATE)),
        bytes_per_operation=65536,
    ),
)

OUTSIDE_OPERATIONS: Final = (
    OutsideOperation(
        device="screen",
        text="a viewer's key to its letter on the viewer's screen",
        short="a key to its letter, seen",
        look=Look.KEY,
        means=_LATENCY,
        way=paths.KEY,
        peers=(Peer(PeerKind.STREAM_PYTHON, 64, _LATENCY),),
    ),
    OutsideOperation(
        device="screen",
        text="a viewer's click to what it paints, seen",
        short="a click to what it paints, seen",
        look=Look.STROKE,
        means=_LATENCY,
        way=paths.CLICK,
        peers=(Peer(PeerKind.STREAM_PYTHON, 64, _LATENCY),),
    ),
    OutsideOperation(
        device="screen",
        text=f"updates of a whole screen, {SCREEN_WIDTH} x {SCREEN_HEIGHT}",
        short="a whole screen, seen",
        look=Look.PICTURE,
        means=_RATE,
        way=paths.PICTURE,
        peers=(Peer(PeerKind.MEMCPY, SCREEN_BYTES, _RATE), Peer(PeerKind.STREAM_FLOW, SCREEN_BYTES, _RATE)),
        bytes_per_operation=SCREEN_BYTES,
    ),
    OutsideOperation(
        device="integration",
        text="a key's value through the management socket",
        short="a key's value, kvp",
        look=Look.KEY_VALUE,
        means=_LATENCY,
        way=paths.KEY_VALUE,
        peers=(Peer(PeerKind.STREAM_PYTHON, 64, _LATENCY),),
    ),
    OutsideOperation(
        device="nbd",
        text="4 KiB read, by a client in Python",
        short="nbd, 4 KiB read",
        look=Look.NBD_READ,
        means=_LATENCY,
        way=paths.NBD,
        traced_seconds=0.03,
        peers=(Peer(PeerKind.NBDKIT_READ, 4096, _LATENCY),),
    ),
    OutsideOperation(
        device="nbd",
        text="4 KiB random reads, depth 32, by fio",
        short="nbd, fio",
        look=Look.NBD_JOB,
        means=_RATE,
        peers=(
            Peer(PeerKind.NBDKIT, 4096, _RATE),
            Peer(PeerKind.QEMU, 4096, _RATE),
        ),
    ),
)
