"""What devices have outside of the machine: made, and kept open, before the root gives away the right to make it."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from partitions.machine_plan import DevicePlan
from partitions.net.tap import open_tap
from partitions.serial.backends import open_line


def open_outside(devices: Iterable[Mapping[str, Any]], log: Callable[..., None]) -> None:
    """Raises BackendOpenError. Who opens one of them later in this process gets the same."""
    for table in devices:
        plan, opened = DevicePlan.from_table(table), None
        if plan.kind == "serial" and plan.driver is None:
            opened = open_line(plan, log)
        elif plan.backend == "tap":
            opened = open_tap(plan, log)
        if opened is not None:
            os.close(opened)
