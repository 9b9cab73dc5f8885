"""What a process is, which decides what it may do."""

import enum


class Profile(enum.StrEnum):
    GUEST = "guest"  # a configured partition, with children or without
    PROGRAMS = (
        "programs"  # a guest's ordinary programs, and what runs them: sockets, files, none of its memory
    )
    DRIVER = (
        "driver"  # a driver partition, or a virtual machine monitor: works on descriptors that it was handed
    )
    ROOT = "root"  # opens the machine's devices by path


# What the stack puts into driver partitions. A guest's parent names its module, so a partition could claim one of
# these: a driver may call nothing of the kernel that would make that worth while.
DRIVER_MODULES = frozenset({"partitions.drivers.process", "partitions.drivers.vmm"})


def profile_of(module: str) -> Profile:
    """Of a partition that runs this module."""
    return Profile.DRIVER if module in DRIVER_MODULES else Profile.GUEST
