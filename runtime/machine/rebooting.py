"""A machine that begins again: every partition ends, and a new root builds what the config says by then."""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

import trio

from runtime.machine.events import EventLog
from runtime.machine.firmware import BOOT_MS_MAX
from runtime.machine.power_state import PowerState
from runtime.machine.process import first_of
from runtime.machine.questions import RequestRefused

STOP_GRACE_MS: Final = 2_000  # between asking the partitions to end and killing them


class AsksHypervisor(Protocol):
    async def __call__(self, verb: str, **values: object) -> Mapping[str, Any]: ...


class Rebooting:
    """Of one machine."""

    def __init__(
        self,
        state: PowerState,
        log: EventLog,
        ask_hypervisor: AsksHypervisor,
        warm_standby: Callable[[], Awaitable[None]],
    ) -> None:
        self._state, self._log = state, log
        self._ask_hypervisor, self._warm_standby = ask_hypervisor, warm_standby
        self._began_s: float | None = None  # time.monotonic(), while one is under way
        self.first_root_is_over = False  # its end was wanted, by a reboot

    @property
    def is_under_way(self) -> bool:
        return self._began_s is not None

    async def begin(self, nursery: trio.Nursery | None) -> None:
        """Returns at once; `nursery` is the machine's, None before its power-on. RequestRefused: not now."""
        if nursery is None or not self._state.is_up or self.is_under_way:
            raise RequestRefused("the machine is starting, or ending")
        self._began_s, self.first_root_is_over = time.monotonic(), True
        try:
            await self._ask_hypervisor("reboot", grace_ms=STOP_GRACE_MS)
        except BaseException:
            self._began_s = None
            raise
        self._log.append("machine.rebooting")
        self._state.begin_again()
        nursery.start_soon(self._see_through)

    async def _see_through(self) -> None:
        state = self._state
        with trio.move_on_after((BOOT_MS_MAX + 2 * STOP_GRACE_MS) / 1000) as scope:
            await first_of(state.ready, state.ended)
        if scope.cancelled_caught:
            state.end("the machine did not come back from its reboot", failed=True)
        began_s, self._began_s = self._began_s, None
        if state.ready.is_set() and began_s is not None:
            self._log.append("machine.rebooted", took_ms=round((time.monotonic() - began_s) * 1000))
            await self._warm_standby()
