"""Namespaces of a partition's own: its users, its network (with nothing in it), its IPC, its host name, its mounts.

Not a PID namespace. The first process in one has PID 1, and PID 1 can't be ended by a signal that it sends itself, nor
by one that it has no handler for: faults on purpose and orderly ends would stop working. Thread ids inside would
differ from those that the hypervisor watches and schedules. What such a namespace hides, the other walls refuse:
signals by seccomp and Landlock, /proc by Landlock.
"""

import os
from typing import Final

from partitions.sandbox import kernel

NEW_USER: Final = 0x1000_0000
NEW_NETWORK: Final = 0x4000_0000
NEW_IPC: Final = 0x0800_0000
NEW_HOST_NAME: Final = 0x0400_0000
NEW_MOUNTS: Final = 0x0002_0000
NAMES: Final = {
    NEW_USER: "user namespace",
    NEW_NETWORK: "network namespace",
    NEW_IPC: "IPC namespace",
    NEW_HOST_NAME: "UTS namespace",
    NEW_MOUNTS: "mount namespace",
}
PARTITION: Final = NEW_USER | NEW_NETWORK | NEW_IPC | NEW_HOST_NAME | NEW_MOUNTS
ROOT: Final = NEW_IPC | NEW_HOST_NAME  # its devices may be of the host's network
_ALL_USERS: Final = "4294967295"
_NOBODY: Final = 65534  # who a partition is to itself


def is_of_the_host() -> bool:
    """Whether this process is in the first user namespace, where its capabilities are real."""
    with open("/proc/self/uid_map") as file:
        return file.read().split()[-1:] == [_ALL_USERS]


def enter(wanted: int) -> dict[str, str]:
    """Into new namespaces, in one call if the host allows all; otherwise one by one.

    Returns:
        What could not be had: its name, and why.
    """
    user, group = os.geteuid(), os.getegid()
    missing: dict[str, str] = {}
    entered = 0
    try:
        kernel.unshare(wanted)
        entered = wanted
    except OSError:
        for flag, name in NAMES.items():  # the user's first: with it we may have the others
            if wanted & flag:
                try:
                    kernel.unshare(flag)
                    entered |= flag
                except OSError as error:
                    missing[name] = os.strerror(error.errno or 0)
    if entered & NEW_USER:
        _map_user(user, group)
    return missing


def _map_user(user: int, group: int) -> None:
    """Unmapped, everything works as well: only that numbers look odd inside. A host may forbid it."""
    try:
        for file, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{_NOBODY} {user} 1"),
            ("gid_map", f"{_NOBODY} {group} 1"),
        ):
            descriptor = os.open(f"/proc/self/{file}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, text.encode())
            finally:
                os.close(descriptor)
    except OSError:
        pass
