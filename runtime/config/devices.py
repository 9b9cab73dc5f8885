"""The [[root.device]] tables of a config file."""

import enum
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from runtime.config.shape import DriverName, Name, Shape
from runtime.config.sizes import DiskSize

Mtu = Annotated[int, Meta(ge=576, le=65_521)]
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


class BackendKind(enum.StrEnum):
    FILE = "file"
    MEMORY = "memory"
    SWITCH = "switch"  # of a net: nothing behind it
    TAP = "tap"  # of a net: an interface of the host's
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
    interface: Annotated[InterfaceName | None, Meta(description="Of backend = 'tap': the host's.")] = None
    path: Annotated[
        Path | None,
        Meta(
            description="The backing file; relative to the folder of this config. For backend = 'file', or a driver."
        ),
    ] = None
    size: Annotated[
        DiskSize | None,
        Meta(
            description="Of the disk. For a file: created sparse at this size if missing, refused if shorter;"
            " left out: the size that the file has."
        ),
    ] = None
    read_only: bool = False
    block_bytes: Annotated[Literal[512, 4096], Meta(description="The logical block, in bytes.")] = 512
