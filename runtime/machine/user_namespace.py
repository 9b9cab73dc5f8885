"""A user namespace for a process that is about to be executed, so that its user can look into it later.

A sandboxed partition is not dumpable: that closes its /proc/PID/fd, maps and mem to other processes of its user. To
`partvisor`, too, unless it holds CAP_SYS_PTRACE over the user namespace that the program was executed in. Over the
host's only real root does; over one that a user has made, that user does. So the zygote and the first root, from whose
memory all others are copied, are executed in a namespace of the user's own, with the user as its root.

Source: Linux kernel/ptrace.c, __ptrace_may_access; fs/proc/base.c, task_dump_owner; user_namespaces(7).
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

_CLONE_NEWUSER: Final = 0x1000_0000
_CAP_SYS_PTRACE: Final = 19
_HEADER: Final = struct.pack("=Ii", 0x2008_0522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
_DATA_BYTES: Final = 24

_libc: Final = ctypes.CDLL(None, use_errno=True)


def is_needed() -> bool:
    """Not by who may look into everything anyway: real root."""
    data = ctypes.create_string_buffer(_DATA_BYTES)
    header = ctypes.create_string_buffer(_HEADER, len(_HEADER))
    may_look = _libc.capget(header, data) == 0 and data.raw[_CAP_SYS_PTRACE // 8] >> _CAP_SYS_PTRACE % 8 & 1
    return not may_look


def enter_before_exec() -> None:
    """In a process with one thread, before its exec. Nothing happens where it is not needed, or not allowed."""
    if not is_needed():
        return
    user, group = os.geteuid(), os.getegid()
    if _libc.unshare(_CLONE_NEWUSER) != 0:
        return
    try:
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            descriptor = os.open(f"/proc/self/{file}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, text.encode())
            finally:
                os.close(descriptor)
    except OSError:  # then it has no right over itself, and stays dumpable
        pass
