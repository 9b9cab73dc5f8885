"""From one [[root.device]] table to its driver, in whichever process that is to live."""

import mmap
import os
from typing import Any

from partitions.machine_plan import DevicePlan
from partitions.sdk.context import DriverContext
from partitions.sdk.loading import load_driver


def open_driver(
    plan: DevicePlan, memory_fd: int | None, backing_fd: int | None, bases: tuple[type[Any], ...]
) -> Any:
    """The driver of `plan`, an object of one of `bases`. Takes both descriptors over. DriverLoadError."""
    assert plan.driver is not None
    return load_driver(plan.driver, make_context(plan, memory_fd, backing_fd), bases)


def make_context(plan: DevicePlan, memory_fd: int | None, backing_fd: int | None) -> DriverContext:
    """What is known of the device, with what was opened for it."""
    size_bytes, memory = plan.size_bytes, None
    if size_bytes is None and backing_fd is not None:
        size_bytes = _size_of(backing_fd)
    if memory_fd is not None:
        memory = memoryview(mmap.mmap(memory_fd, plan.memory_pages * mmap.PAGESIZE))[:size_bytes]
        os.close(memory_fd)
    return DriverContext(
        plan.name, plan.kind, plan.args, size_bytes, plan.block_bytes, plan.read_only, backing_fd, memory
    )


def _size_of(descriptor: int) -> int | None:
    """Of a file or a block device; None: empty, or of a kind that has none."""
    try:
        size_bytes = os.lseek(descriptor, 0, os.SEEK_END)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except OSError:
        return None
    return size_bytes or None
