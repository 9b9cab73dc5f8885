"""The driver of a TAP interface: the switch's port to the host's own network stack.

The stack opens it, before it gives away the right to, and keeps it open: processes of the driver come and go, and the
host sees one interface that stays up.
"""

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final

from partitions.machine_plan import DevicePlan
from partitions.sdk.context import DriverContext
from partitions.sdk.net import NetDriver
from partitions.storage.backends import BackendError, BackendOpenError
from runtime.machine.host_interfaces import attach, bring_up, open_tun, remedy

FRAME_BYTES_MAX: Final = 65_535
_VANISHED: Final = (errno.EBADFD, errno.ENODEV)
_kept: dict[str, int] = {}  # descriptors of this process's interfaces, by device
_spare: dict[str, int] = {}  # of none yet: their interfaces are in use


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
            _kept[plan.name] = attach(plan.interface, _spare.get(plan.name))
        except OSError as error:
            raise BackendOpenError(error.errno or 0, remedy(plan.interface, error)) from error
        told = bring_up(plan.interface, plan.mtu)
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
    _spare[plan.name] = open_tun()
