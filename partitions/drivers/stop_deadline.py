"""A driver that does not let go of a channel when it is told to.

Its guest waits for that: to it, pages are its own again only once nobody else touches them. So the driver has as
long as a channel may stand still, and then its process is ended, and with it all that it has mapped. Another one
goes on.
"""

import contextlib

import trio

from partitions.stack.stack_resources import RootResources
from runtime.abi import HypercallError


def begin(
    stack: RootResources, driver: int, device: str, relid: int, stuck_ms: int, has_stopped: trio.Event
) -> None:
    """`driver`: the partition that was told to let go of the channel, and has `stuck_ms` for it."""
    stack.nursery.start_soon(_enforce, stack, driver, device, relid, stuck_ms, has_stopped)


async def _enforce(
    stack: RootResources, driver: int, device: str, relid: int, stuck_ms: int, has_stopped: trio.Event
) -> None:
    with trio.move_on_after(stuck_ms / 1000):
        await has_stopped.wait()
        return
    stack.log("driver.unresponsive", device=device, relid=relid, stuck_ms=stuck_ms)
    with contextlib.suppress(HypercallError):  # in the hypervisor itself nobody ends it
        stack.hypercalls.end_process(driver)
