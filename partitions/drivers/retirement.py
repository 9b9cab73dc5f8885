"""A driver partition whose device is taken out of the machine: it ends, and all that it held goes back.

Its channels are closed by then, so nothing is under way. Its process is asked to leave first, so that its driver's
`close` is called; one that does not leave is killed, and what it wrote is with the kernel all the same.
"""

import contextlib
from typing import TYPE_CHECKING, Final

import trio

from partitions.drivers.messages import Leave
from partitions.drivers.phase import Phase
from partitions.stack.vmbus_ports import driver_port
from runtime.abi import HypercallError, PartitionState

if TYPE_CHECKING:
    from partitions.drivers.partition import DriverPartition

LEAVE_MS_MAX: Final = 1_000  # for a driver's `close`
_LOOK_S: Final = 0.01


async def dismiss(driver: "DriverPartition") -> None:
    """Have its process close the device and end. It is served by nobody afterwards, and by another one if asked for."""
    if driver.phase not in (Phase.STARTING, Phase.SERVING):
        return
    driver._tell(Leave(0))
    with trio.move_on_after(LEAVE_MS_MAX / 1000), contextlib.suppress(HypercallError):
        while driver.call.get_exit_status(driver.partition) is None:
            await trio.sleep(_LOOK_S)


def retire(driver: "DriverPartition") -> None:
    """Nobody hears of it any more; its process is killed, its partition deleted as soon as that is over."""
    stack = driver.stack
    driver.phase = Phase.ENDED
    if driver.look in stack.watchers:  # it was made altogether
        stack.watchers.remove(driver.look)
        stack.budgets.listeners.pop(driver.partition, None)
    stack.listeners.pop(driver_port(driver.partition), None)
    stack.backings.forget(driver.name)
    driver._state = None
    if driver._state_pages is not None:
        driver._state_pages.give_back()
    if driver._passage is not None:
        driver._passage.close()
    with contextlib.suppress(HypercallError):
        driver.call.finalize(driver.partition)
    stack.nursery.start_soon(_delete, driver)


async def _delete(driver: "DriverPartition") -> None:
    with contextlib.suppress(HypercallError):
        while driver.call.get_state(driver.partition) is not PartitionState.FINALIZED:
            await trio.sleep(_LOOK_S)
        driver.call.delete(driver.partition)
