"""The driver of a TAP interface: the switch's port to the host's own network stack.

The stack opens it, before it gives away the right to, and keeps it open: processes of the driver come and go, and the
host sees one interface that stays up.
"""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final

from partitions.machine_plan import DevicePlan
from partitions.sdk.context import DriverContext
from partitions.sdk.net import NetDriver
from partitions.storage.backends import BackendError, BackendOpenError

FRAME_BYTES_MAX: Final = 65_535
_TUN: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x4004_54CA
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_SIOCSIFMTU: Final = 0x8922
_IFF_UP: Final = 1
_NAME_AND_FLAGS: Final = struct.Struct("16sH22x")  # struct ifreq, of linux/if.h
_NAME_AND_NUMBER: Final = struct.Struct("16si20x")
_VANISHED: Final = (errno.EBADFD, errno.ENODEV)
_kept: dict[str, int] = {}  # descriptors of this process's interfaces, by device
_spare: dict[str, int] = {}  # of none yet: their interfaces are in use

assert _NAME_AND_FLAGS.size == _NAME_AND_NUMBER.size == 40


class TapDriver(NetDriver):
    """On a descriptor of the interface."""

    def __init__(self, context: DriverContext, mtu: int) -> None:
        super().__init__(context)
        assert context.backing_fd is not None
        self.mtu, self._fd, self._is_gone = mtu, context.backing_fd, False

    def transmit(self, frames: Sequence[memoryview]) -> int:
        """BackendError: the interface is down, or gone."""
        taken = 0
        try:
            for frame in frames:
                os.write(self._fd, frame)
                taken += 1
        except BlockingIOError:
            pass
        except OSError as error:
            self._failed(error)
        return taken

    def receive(self, limit: int) -> list[bytes]:
        frames: list[bytes] = []
        try:
            while len(frames) < limit:
                frames.append(os.read(self._fd, FRAME_BYTES_MAX))
        except BlockingIOError:
            pass
        except OSError as error:
            if not frames:
                self._failed(error)
        return frames

    def _failed(self, error: OSError) -> None:
        self._is_gone |= error.errno in _VANISHED
        raise BackendError(error.errno or 0, error.strerror or "") from error

    @property
    def descriptor(self) -> int | None:
        return self._fd

    @property
    def link_up(self) -> bool:
        return not self._is_gone


def open_tap(plan: DevicePlan, log: Callable[..., None]) -> int:
    """A descriptor of the interface, the caller's own. Raises BackendOpenError.

    It is made if there is none, given its MTU, and brought up, as far as this process may.
    """
    if plan.name not in _kept:
        assert plan.interface is not None
        try:
            _kept[plan.name] = _attach(plan.interface, _spare.get(plan.name))
        except OSError as error:
            remedy = f"ip tuntap add dev {plan.interface} mode tap user $USER"
            raise BackendOpenError(
                error.errno or 0, f"{plan.interface}: {error.strerror}: have it made for you, by: {remedy}"
            ) from error
        told = _bring_up(plan.interface, plan.mtu)
        log("net.tap_ready", device=plan.name, interface=plan.interface, **told)
    return os.dup(_kept[plan.name])


def let_go(device: str) -> None:
    """This process keeps the interface no longer: somebody else has a descriptor of it, or it goes."""
    if (descriptor := _kept.pop(device, None)) is not None:
        os.close(descriptor)


def open_when_free(plan: DevicePlan) -> None:
    """For a root that takes over, while a driver partition that outlived its predecessor has the interface: who opens
    it later, once that partition has ended, needs no more than what is taken here. OSError: there is no /dev/net/tun.

    The interface must have been made for good: the other kind goes with its last descriptor, and only who may make
    interfaces makes it anew.
    """
    _spare[plan.name] = _open_tun()


def _open_tun() -> int:
    return os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)


def _attach(interface: str, spare: int | None) -> int:
    descriptor = _open_tun() if spare is None else os.dup(spare)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, _NAME_AND_FLAGS.pack(interface.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _bring_up(interface: str, mtu: int | None) -> dict[str, str]:
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
