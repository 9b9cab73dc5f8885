"""Breaking and replacing the root, or a driver partition, on purpose, as management asks for it."""

import signal

from bus.seam import DEATHS_MAX, PASSES_MAX, Step
from runtime.machine.platform import Platform
from runtime.machine.questions import RequestRefused
from runtime.reserved_names import ROOT


async def crash(platform: Platform, name: str, how: str) -> None:
    """RequestRefused: there is no such way, or nobody to do it."""
    match how:
        case "kill":
            await platform.ask_hypervisor("kill", name=name)
        case "hang":
            await platform.ask_hypervisor("kill", name=name, signal=int(signal.SIGSTOP))
        case "stuck":
            await platform.tell_root("stick", {"device": None if name == ROOT else name})
        case _:
            raise RequestRefused(f"{how!r} is no way to crash; kill, hang and stuck are")


async def arm_seam(
    platform: Platform, step: str, passes: int, deaths: int, driver: str | None = None
) -> None:
    """Have the root, or a driver partition, die at a named step. RequestRefused: no such step or number."""
    try:
        Step.named(step)
    except ValueError as error:
        raise RequestRefused(str(error)) from error
    if not 0 < passes <= PASSES_MAX or not 0 < deaths <= DEATHS_MAX:
        raise RequestRefused(f"want 1 to {PASSES_MAX} passes and 1 to {DEATHS_MAX} deaths")
    await platform.tell_root("seam", {"step": step, "passes": passes, "deaths": deaths, "device": driver})


async def service_root(platform: Platform) -> None:
    """Have a healthy root make room for its successor. RequestRefused: the config wants none."""
    if not platform.root_is_replaced:
        raise RequestRefused('the root has no successor: set on_root_failure = "standby" or "restart"')
    await platform.tell_root("retire")
