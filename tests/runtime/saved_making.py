"""Saved partitions for tests: descriptions, and files that are whole."""

import os
from pathlib import Path

from runtime.abi import PAGE_BYTES
from runtime.machine import saved_file
from runtime.machine.saved_partition import (
    Description,
    DiskIdentity,
    HypervisorState,
    SavedDevice,
    SavedProcessor,
    SavedSlot,
)


def description(*slots: SavedSlot, vps: int = 1) -> Description:
    processors = [
        SavedProcessor(
            index, {0x40000080: 1}, bytes(PAGE_BYTES), bytes(PAGE_BYTES), bytes(32), [None, 5, None, 0]
        )
        for index in range(vps)
    ]
    return Description(
        "machine",
        "one",
        "module:main",
        5,
        [DiskIdentity("disk0", "/somewhere", 1 << 20, 7, 8, 9)],
        [SavedDevice("uart", b"\1\2\3")],
        HypervisorState(77, 4096, 100, 1 << 40, 3, 4, processors, list(slots)),
        0,
        0,
    )


def write(path: Path, state: bytes, memory: dict[int, dict[int, bytes]] | None = None, pages: int = 8) -> int:
    """`memory`: by GPFN, own slots of `pages` pages; in each, by number, pages that are not zero."""
    memory = memory or {}
    slots = [SavedSlot(gpfn, pages, True, True) for gpfn in sorted(memory)]
    slots.append(SavedSlot(1 << 30, 4, False, False))  # somebody else's
    fds = [memory_fd(memory[slot.gpfn], pages) for slot in slots if slot.own]
    try:
        return saved_file.write(path, description(*slots), state, fds)
    finally:
        for fd in fds:
            os.close(fd)


def memory_fd(filled: dict[int, bytes], pages: int) -> int:
    fd = os.memfd_create("memory", os.MFD_CLOEXEC)
    os.ftruncate(fd, pages * PAGE_BYTES)
    for number, page in filled.items():
        os.pwrite(fd, page, number * PAGE_BYTES)
    return fd
