"""A machine that begins again: every partition ends, and a new root builds what the config says by then."""

import time
from typing import TYPE_CHECKING, Final

import trio

from runtime.machine.firmware import BOOT_MS_MAX
from runtime.machine.process import first_of
from runtime.machine.questions import RequestRefused

if TYPE_CHECKING:
    from runtime.machine.platform import Platform

STOP_GRACE_MS: Final = 2_000  # between asking the partitions to end and killing them


class Rebooting:
    """Of one platform."""

    def __init__(self, platform: "Platform") -> None:
        self._platform = platform
        self._began_s: float | None = None  # time.monotonic(), while one is under way
        self.first_root_is_over = False  # its end was wanted, by a reboot

    @property
    def is_under_way(self) -> bool:
        return self._began_s is not None

    async def begin(self) -> None:
        """Returns at once. RequestRefused: not now."""
        platform = self._platform
        if not platform._ready.is_set() or platform._outcome is not None or self.is_under_way:
            raise RequestRefused("the machine is starting, or ending")
        self._began_s, self.first_root_is_over = time.monotonic(), True
        try:
            await platform.ask_hypervisor("reboot", grace_ms=STOP_GRACE_MS)
        except BaseException:
            self._began_s = None
            raise
        platform.log.append("machine.rebooting")
        platform._built, platform._ready = False, trio.Event()
        assert platform._nursery is not None
        platform._nursery.start_soon(self._see_through)

    async def _see_through(self) -> None:
        platform = self._platform
        with trio.move_on_after((BOOT_MS_MAX + 2 * STOP_GRACE_MS) / 1000) as scope:
            await first_of(platform._ready, platform._ended)
        if scope.cancelled_caught:
            platform._end("the machine did not come back from its reboot", failed=True)
        began_s, self._began_s = self._began_s, None
        if platform._ready.is_set() and began_s is not None:
            platform.log.append("machine.rebooted", took_ms=round((time.monotonic() - began_s) * 1000))
            await platform._warm_standby()
