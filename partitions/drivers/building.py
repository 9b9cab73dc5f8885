"""A driver partition before its first process: its rights, its memory, its VP."""

from typing import Final

from partitions.drivers.process import DEVICE_MEMORY_GPFN, STATE_GPFN
from partitions.drivers.state import STATE_PAGES
from runtime.abi import DEFAULT_PRIVILEGES, PAGE_BYTES, PartitionProperty, Privilege
from runtime.hypercalls.caller import HypercallPort

DRIVER_PRIVILEGES: Final = DEFAULT_PRIVILEGES | Privilege.POST_MESSAGES | Privilege.SIGNAL_EVENTS


def build(call: HypercallPort, driver: int, memory_bytes: int, device_pages: int) -> None:
    """What was just created. HypercallError: too little memory, mostly.

    Args:
        memory_bytes: for the driver itself.
        device_pages: the memory that is its device; 0: it has another.
    """
    call.set_privileges(driver, DRIVER_PRIVILEGES)
    call.set_property(driver, PartitionProperty.OUTLIVES_PROCESS, 1)
    call.deposit(driver, memory_bytes // PAGE_BYTES + device_pages)
    call.initialize(driver)
    call.create_vp(0, driver)
    call.map_gpa_pages(STATE_GPFN, STATE_PAGES, partition=driver)
    if device_pages:
        call.map_gpa_pages(DEVICE_MEMORY_GPFN, device_pages, partition=driver)
