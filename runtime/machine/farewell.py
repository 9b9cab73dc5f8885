"""The friendly part of a machine's end: guests that use their shutdown service are asked first."""

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import trio

from runtime.config.model import MachineConfig
from runtime.machine.questions import RequestRefused
from runtime.machine.roster import Roster

SHUTDOWN_MS_MAX: Final = (
    3_000  # for those who have said that they will end; then they are told, as all others are
)
_LOOK_S: Final = 0.01


async def shut_down_guests(
    config: MachineConfig,
    roster: Roster,
    ask_root: Callable[..., Awaitable[Mapping[str, Any]]],
    ask_hypervisor: Callable[..., Awaitable[Mapping[str, Any]]],
    reason: str,
) -> None:
    """Returns at once where no partition has the service, or none uses it. Who is paused goes on, to hear of it."""
    with trio.move_on_after(SHUTDOWN_MS_MAX / 1000), contextlib.suppress(OSError, RequestRefused):
        await ask_hypervisor("resume")
    if not any(partition.integration for partition in config.partitions):
        return
    with trio.move_on_after(SHUTDOWN_MS_MAX / 1000), contextlib.suppress(OSError, RequestRefused):
        order = {"reason": reason, "timeout_s": SHUTDOWN_MS_MAX // 1000}
        answer = await ask_root("integration", service="shutdown", name="", order=order)
        while not set(answer["accepted"]) <= roster.exits.keys():
            await trio.sleep(_LOOK_S)
