"""What devices have outside of the machine: made, and kept open, before the root gives away the right to make it."""

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from partitions.drivers.device_classes import class_of
from partitions.machine_plan import DevicePlan
from partitions.storage.backends import BackendOpenError


def open_outside(devices: Iterable[Mapping[str, Any]], log: Callable[..., None], *, first: bool) -> None:
    """Raises BackendOpenError. Who opens one of them later in this process gets the same.

    Args:
        devices: without those that a partition has to itself already.
        first: of the machine's roots. Drivers of an earlier one's may live, and have their interfaces.
    """
    for table in devices:
        plan = DevicePlan.from_table(table)
        if (plan.kind == "serial" and plan.driver is None) or plan.backend == "tap":
            try:
                opened = class_of(plan.kind).open_backing(plan, log)
            except BackendOpenError as error:
                if first or plan.backend != "tap" or error.errno != errno.EBUSY:
                    raise
                _open_when_free(plan)
                continue
            if opened is not None:
                os.close(opened)


def _open_when_free(plan: DevicePlan) -> None:
    from partitions.net.tap import open_when_free

    open_when_free(plan)
