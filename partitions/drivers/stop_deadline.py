"""A driver that does not let go of a channel when it is told to.

Its guest waits for that: to it, pages are its own again only once nobody else touches them. So the driver has as
long as a channel may stand still, and then its process is ended, and with it all that it has mapped. Another one
goes on.
"""

import contextlib
from typing import TYPE_CHECKING

import trio

from runtime.abi import HypercallError

if TYPE_CHECKING:
    from partitions.drivers.partition import DriverPartition


def begin(driver: "DriverPartition", relid: int, has_stopped: trio.Event) -> None:
    driver._stack.nursery.start_soon(_enforce, driver, relid, has_stopped)


async def _enforce(driver: "DriverPartition", relid: int, has_stopped: trio.Event) -> None:
    stuck_ms = int(driver._machine["stuck_ms"])
    with trio.move_on_after(stuck_ms / 1000):
        await has_stopped.wait()
        return
    driver._stack.log("driver.unresponsive", device=driver.name, relid=relid, stuck_ms=stuck_ms)
    with contextlib.suppress(HypercallError):  # in the hypervisor itself nobody ends it
        driver.call.end_process(driver.partition)
