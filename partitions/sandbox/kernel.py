"""Calls that Python's library lacks, as functions that raise OSError."""

import ctypes
import os
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(what: str, number: int, *arguments: object) -> int:
    """A call by number. Arguments are integers, bytes, ctypes pointers or None."""
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *words), what)


def prctl(what: str, option: int, argument: int = 0) -> int:
    unused = ctypes.c_ulong(0)
    return _checked(_libc.prctl(option, ctypes.c_ulong(argument), unused, unused, unused), what)


def unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), "unshare")


def capset(header: bytes, data: bytes) -> None:
    _checked(_libc.capset(header, data), "capset")


def capget(header: bytes, data_bytes: int) -> bytes:
    data = ctypes.create_string_buffer(data_bytes)
    _checked(_libc.capget(ctypes.create_string_buffer(header, len(header)), data), "capget")
    return data.raw
