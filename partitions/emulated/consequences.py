"""What follows from an access, once its device has changed: an interrupt, a disk's request, a reset."""

import contextlib
import threading
from collections.abc import Callable
from typing import Final

import trio

from partitions.emulated.disk_medium import carry_out
from partitions.emulated.guest import EmulatedGuest
from partitions.emulated.ide import DiskRequest, IdeDisk
from partitions.emulated.keyboard import KeyboardController
from runtime.abi import HypercallCode, HypercallError
from runtime.hypercalls.caller import HypercallPort

VECTOR_OF_IRQ_0: Final = 0x20  # where operating systems put a PC's sixteen interrupt lines
_INTERRUPTED_VP: Final = 0


class Consequences:
    """Of the accesses of all children of one parent. They take trio, and no access waits for them."""

    def __init__(
        self,
        hypercalls: HypercallPort,
        nursery: trio.Nursery,
        lock: threading.RLock,
        log: Callable[..., None],
    ) -> None:
        """`lock`: guards the devices."""
        self._call, self._nursery, self._lock, self._log = hypercalls, nursery, lock, log
        self._token = trio.lowlevel.current_trio_token()

    def follow_soon(self, guest: EmulatedGuest) -> None:
        """From the threads that answer. What follows takes trio, and nobody waits for it."""
        if not all(each.device.is_quiet for each in guest.devices.devices):
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self.follow, guest)

    def follow(self, guest: EmulatedGuest) -> None:
        with self._lock:
            self._follow_devices(guest)

    def _follow_devices(self, guest: EmulatedGuest) -> None:
        for place, each in enumerate(guest.devices.devices):
            device = each.device
            if isinstance(device, IdeDisk):
                if device.request is not None and place not in guest.running:
                    guest.running.add(place)
                    self._nursery.start_soon(self._run_requests, guest, place, device)
            elif isinstance(device, KeyboardController) and device.take_reset():
                self._reset(guest)
            if each.plan.irq is not None and device.take_interrupt():
                self._interrupt(guest, each.plan.irq)

    def _interrupt(self, guest: EmulatedGuest, irq: int) -> None:
        with contextlib.suppress(HypercallError):  # it has died
            self._call.call(
                HypercallCode.ASSERT_VIRTUAL_INTERRUPT,
                partition=guest.partition,
                vp=_INTERRUPTED_VP,
                vector=VECTOR_OF_IRQ_0 + irq,
            )

    def _reset(self, guest: EmulatedGuest) -> None:
        """A reset ends a partition: nothing starts it again."""
        self._log("emulation.reset", guest=guest.name)
        with contextlib.suppress(HypercallError):
            self._call.finalize(guest.partition)

    async def _run_requests(self, guest: EmulatedGuest, place: int, disk: IdeDisk) -> None:
        """Until the device asks for nothing more."""
        each = guest.devices.devices[place]
        assert each.plan.device is not None
        medium = guest.disks[each.plan.device]
        while (request := self._request_of(disk)) is not None:
            data = await trio.to_thread.run_sync(carry_out, medium, request)
            with self._lock:
                disk.complete(request, data)
                each.record.save(disk.save())
        guest.running.discard(place)
        self.follow(guest)

    def _request_of(self, disk: IdeDisk) -> DiskRequest | None:
        with self._lock:
            return disk.request
