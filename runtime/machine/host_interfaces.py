"""TAP interfaces of the host's: attached to, and brought up, by who has the right to."""

import fcntl
import os
import socket
import struct
from typing import Final

TUN: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x4004_54CA
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_SIOCSIFMTU: Final = 0x8922
_IFF_UP: Final = 1
_NAME_AND_FLAGS: Final = struct.Struct("16sH22x")  # struct ifreq, of linux/if.h
_NAME_AND_NUMBER: Final = struct.Struct("16si20x")

assert _NAME_AND_FLAGS.size == _NAME_AND_NUMBER.size == 40


def open_tun() -> int:
    """A descriptor that stands for no interface yet. OSError."""
    return os.open(TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)


def attach(interface: str, spare: int | None = None) -> int:
    """A descriptor of the interface, which is made if there is none, and then goes with its last descriptor. OSError.

    Args:
        spare: of `open_tun`, to be used in the place of a new one; it stays the caller's.
    """
    descriptor = open_tun() if spare is None else os.dup(spare)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, _NAME_AND_FLAGS.pack(interface.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def remedy(interface: str, error: OSError) -> str:
    """For whoever wanted it."""
    command = f"ip tuntap add dev {interface} mode tap user $USER"
    return f"{interface}: {error.strerror}: have it made for you, by: {command}"


def bring_up(interface: str, mtu: int | None) -> dict[str, str]:
    """What could not be done: for who made the interface to do."""
    name = interface.encode()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            if mtu is not None:
                fcntl.ioctl(control, _SIOCSIFMTU, _NAME_AND_NUMBER.pack(name, mtu))
            _, flags = _NAME_AND_FLAGS.unpack(
                fcntl.ioctl(control, _SIOCGIFFLAGS, _NAME_AND_FLAGS.pack(name, 0))
            )
            if not flags & _IFF_UP:
                fcntl.ioctl(control, _SIOCSIFFLAGS, _NAME_AND_FLAGS.pack(name, flags | _IFF_UP))
    except OSError as error:
        return {"not_set_up": error.strerror or str(error)}
    return {}
