"""Files that the config wants created, before the root gives away the right to create any."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from partitions.machine_plan import DevicePlan
from partitions.storage.backends import FileBackend
from partitions.storage.opened_overlay import create_overlay


def create_missing(devices: Iterable[Mapping[str, Any]]) -> None:
    """Sparse, of the configured size. Raises BackendOpenError."""
    for table in devices:
        plan = DevicePlan.from_table(table)
        if plan.backend == "overlay" and plan.path is not None:
            create_overlay(plan.path)
            continue
        if plan.path is None or plan.size_bytes is None or plan.read_only or Path(plan.path).exists():
            continue
        FileBackend.open(plan.path, plan.size_bytes, create=True, block_bytes=plan.block_bytes).close()
