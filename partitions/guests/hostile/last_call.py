"""System calls that no honest program makes: the guest says which one it is about to make, and should end by it."""

import ctypes
import os
from typing import Any, Final

from partitions.child import Partition
from partitions.guests.hostile.orders import Orders
from partitions.guests.hostile.processes import call_by_number
from partitions.guests.hostile.walls import require_walls

_ATTACH: Final = 16  # of ptrace
_NEW_EVERYTHING: Final = 0x7C02_0000
_buffer: Final = ctypes.create_string_buffer(64)
_vector: Final = (ctypes.c_ulong * 2)(ctypes.addressof(_buffer), 64)


def _arguments(parent: int) -> dict[str, tuple[int, ...]]:
    """Number and arguments, as whoever means it would call; x86-64."""
    vector, root, none = ctypes.addressof(_vector), ctypes.addressof(_buffer), 0
    return {
        "ptrace": (101, _ATTACH, parent, 0, 0),
        "process_vm_readv": (310, parent, vector, 1, vector, 1, 0),
        "process_vm_writev": (311, parent, vector, 1, vector, 1, 0),
        "pidfd_getfd": (438, 0, 3, 0),
        "kcmp": (312, os.getpid(), parent, 0, 1, 1),
        "mount": (165, root, root, root, 0, none),
        "unshare": (272, _NEW_EVERYTHING),
        "setns": (308, 0, 0),
        "chroot": (161, root),
        "open_by_handle_at": (304, 0, root, 0),
        "bpf": (321, 0, root, 64),
        "userfaultfd": (323, 0),
    }


CALLS: Final = frozenset(_arguments(0))


def last(partition: Partition) -> int:
    """args: call. Waits for an order, answers that it is about to make it, makes it, answers that it still lives."""
    require_walls()
    orders = Orders(partition)
    arguments = _arguments(os.getppid())[str(partition.args["call"])]
    _buffer.value = b"/proc"
    while orders.next() is not None:
        before: dict[str, Any] = {"about_to_call": partition.args["call"]}
        orders.answer(before)
        try:
            came = str(call_by_number(*arguments))
        except OSError as error:
            came = error.strerror or str(error.errno)
        orders.answer({"still_alive": came})
    return 0
