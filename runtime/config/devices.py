"""The [[root.device]] tables of a config file."""

import enum
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from runtime.config.on_error import OnError
from runtime.config.shape import DriverName, Name, Shape
from runtime.config.sizes import DiskSize

QUEUES_MAX: Final = 8  # of one guest to one disk
Queues = Annotated[int, Meta(ge=1, le=QUEUES_MAX)]
ErrorCount = Annotated[int, Meta(ge=1, le=1_000_000)]
Mtu = Annotated[int, Meta(ge=576, le=65_521)]
ScreenSide = Annotated[int, Meta(ge=16, le=4096)]
InterfaceName = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,15}$")
]  # IFNAMSIZ of Linux, less its closing zero


class DeviceKind(enum.StrEnum):
    DISK = "disk"
    CUSTOM = "custom"  # requests and replies of any form, answered by a driver of the user's
    ECHO = "echo"  # answers each request with its own bytes; to measure what an exchange costs
    NET = "net"  # a network: a switch, whose ports are the partitions that have it
    SERIAL = "serial"  # a line of bytes, of one partition
    LINK = "link"  # joins two partitions by a channel of their own
    SWITCH = "switch"  # joins two partitions through the root, which copies each packet
    KEYBOARD = "keyboard"  # of one partition; whoever looks at its screen types
    MOUSE = "mouse"  # the same
    VIDEO = "video"  # a screen, of one partition; shown to VNC viewers


class BackendKind(enum.StrEnum):
    FILE = "file"
    MEMORY = "memory"
    OVERLAY = "overlay"  # of a disk: a read-only `base`, and what is written over it at `path`, or in memory
    SWITCH = "switch"  # of a net: nothing behind it
    TAP = "tap"  # of a net: an interface of the host's
    USER = "user"  # of a net: the host's sockets, by way of passt, without any privilege
    PTY = "pty"  # of a serial line
    SOCKET = "socket"  # of a serial line: one that listens at `path`
    CONSOLE = "console"  # of a serial line: `partvisor console`


class DeviceConfig(Shape, frozen=True, kw_only=True):
    """[[root.device]]: a real device, which the root owns."""

    name: Annotated[Name, Meta(description="What [[partition.device]] tables call it.")]
    kind: DeviceKind
    backend: Annotated[
        BackendKind | None,
        Meta(
            description="Where a disk's blocks are kept, what is behind a net, what a serial line leads to."
        ),
    ] = None
    mtu: Annotated[
        Mtu | None, Meta(description="Of a net: bytes behind the Ethernet header; left out: 1500.")
    ] = None
    driver: Annotated[
        DriverName | None,
        Meta(description="What drives it in the place of a backend, as 'package.module:Class'."),
    ] = None
    args: Annotated[dict[str, Any], Meta(description="Handed to the driver as they stand.")] = msgspec.field(
        default_factory=dict
    )
    forward: Annotated[
        tuple[str, ...],
        Meta(
            description="Of backend = 'user': what of the host leads to the guest, as 'tcp:127.0.0.1:8080:80'.",
            max_length=64,
        ),
    ] = ()
    interface: Annotated[InterfaceName | None, Meta(description="Of backend = 'tap': the host's.")] = None
    path: Annotated[
        Path | None,
        Meta(
            description="The backing file; relative to the folder of this config. For backend = 'file', or a driver."
        ),
    ] = None
    base: Annotated[
        Path | None,
        Meta(description="Of backend = 'overlay': the file or block device below, which is never written."),
    ] = None
    size: Annotated[
        DiskSize | None,
        Meta(
            description="Of the disk. For a file: created sparse at this size if missing, refused if shorter;"
            " left out: the size that the file has."
        ),
    ] = None
    width: Annotated[
        ScreenSide | None, Meta(description="Of a video: the most pixels in a row; left out: 1024.")
    ] = None
    height: Annotated[
        ScreenSide | None, Meta(description="Of a video: the most rows of pixels; left out: 768.")
    ] = None
    vnc: Annotated[
        str | None,
        Meta(
            description="Of a video: 'unix', a socket in the machine's folder, which is there in any case; or an"
            " address of this host alone, such as '127.0.0.1:5900'; port 0: any that is free."
        ),
    ] = None
    assigned_to: Annotated[
        Name | None,
        Meta(
            description="The partition that drives it itself; left out: the root, or a driver partition, does."
        ),
    ] = None
    on_error: Annotated[
        OnError | None,
        Meta(description="What is done when the disk, or what is behind the net, fails; left out: report."),
    ] = None
    error_threshold: Annotated[
        ErrorCount | None,
        Meta(description="Errors after which on_error degrades or removes it; left out: 3."),
    ] = None
    queues: Annotated[
        Queues | None,
        Meta(description="Of a disk: channels that a guest may open to it, each with a thread; left out: 1."),
    ] = None
    read_only: bool = False
    block_bytes: Annotated[Literal[512, 4096], Meta(description="The logical block, in bytes.")] = 512
