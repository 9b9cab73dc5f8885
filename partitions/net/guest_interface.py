"""A TAP interface in the namespace of the calling process: made before its capabilities are given away.

Frames that programs of this namespace send come out of the descriptor, and what is written there they receive. There
are no offloads: the kernel segments and checksums before a frame comes out, and checks what goes in.
"""

import contextlib
import fcntl
import os
import socket
import struct
from ipaddress import IPv4Interface
from typing import Final

from partitions.sandbox import namespaces
from runtime.config.tap_order import TapOrder

NAME: Final = "eth0"
_TUN: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x4004_54CA
_TAP_WITHOUT_HEADER: Final = 0x0002 | 0x1000  # IFF_TAP | IFF_NO_PI
_SET_FLAGS, _SET_ADDRESS, _SET_MASK = 0x8914, 0x8916, 0x891C
_SET_MTU, _SET_HARDWARE, _ADD_ROUTE = 0x8922, 0x8924, 0x890B
_IFF_UP: Final = 1
_ETHERNET: Final = 1  # ARPHRD_ETHER
_RTF_UP_GATEWAY: Final = 0x0001 | 0x0002
_FLAGS: Final = struct.Struct("16sH22x")  # struct ifreq, of linux/if.h
_NUMBER: Final = struct.Struct("16si20x")
_SOCKADDR: Final = struct.Struct("16sH2x4s16x")
_HARDWARE: Final = struct.Struct("16sH6s16x")
_ROUTE: Final = struct.Struct("=8x16s16s16sHh4xQQh6xQQQH6x")  # struct rtentry, of linux/route.h; x86-64
_SOCKADDR_IN: Final = struct.Struct("=H2x4s8x")
_PING_GROUPS: Final = "/proc/sys/net/ipv4/ping_group_range"  # who may ping without a capability
_LOW_PORTS: Final = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
_NO_IPV6: Final = "/proc/sys/net/ipv6/conf/default/disable_ipv6"

assert _ROUTE.size == 120
assert _FLAGS.size == _NUMBER.size == _SOCKADDR.size == _HARDWARE.size == 40


def make(order: TapOrder, mac: bytes) -> int:
    """The descriptor of the interface, up and with its addresses. Raises OSError: this host does not give one."""
    descriptor = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with contextlib.suppress(OSError):  # it would talk by itself, and has nobody to talk to
            _write(_NO_IPV6, "1")
        name = NAME.encode()
        fcntl.ioctl(descriptor, _TUNSETIFF, _FLAGS.pack(name, _TAP_WITHOUT_HEADER))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SET_HARDWARE, _HARDWARE.pack(name, _ETHERNET, mac))
            fcntl.ioctl(control, _SET_MTU, _NUMBER.pack(name, order.mtu))
            if order.address:
                interface = IPv4Interface(order.address)
                for what, address in ((_SET_ADDRESS, interface.ip), (_SET_MASK, interface.netmask)):
                    fcntl.ioctl(control, what, _SOCKADDR.pack(name, socket.AF_INET, address.packed))
            for one in (b"lo", name):
                fcntl.ioctl(control, _SET_FLAGS, _FLAGS.pack(one, _IFF_UP))
            if order.gateway:
                fcntl.ioctl(control, _ADD_ROUTE, _route_by(order.gateway))
        with contextlib.suppress(OSError):  # a server of its own may listen at any port
            _write(_LOW_PORTS, "0")
        with contextlib.suppress(OSError):  # then ping needs what nobody here has
            _write(_PING_GROUPS, f"{os.getegid()} {os.getegid()}")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _route_by(gateway: str) -> bytes:
    """The default route."""
    anywhere = _SOCKADDR_IN.pack(socket.AF_INET, bytes(4))
    by = _SOCKADDR_IN.pack(socket.AF_INET, socket.inet_aton(gateway))
    return _ROUTE.pack(anywhere, by, anywhere, _RTF_UP_GATEWAY, 0, 0, 0, 0, 0, 0, 0, 0)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _probe() -> None:
    """Make one, as a partition's process does. Raises OSError."""
    namespaces.enter(namespaces.NEW_USER | namespaces.NEW_NETWORK)
    os.close(make(TapOrder("probe"), b"\x02\0\0\0\0\1"))


if __name__ == "__main__":
    try:
        _probe()
    except OSError as error:
        raise SystemExit(f"{error.filename or _TUN}: {error.strerror or error}") from error
