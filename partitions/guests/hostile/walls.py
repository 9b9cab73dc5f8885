"""Whether the sandbox is around us. Attacks on the host are made behind it alone: your host is no test bed."""

import ctypes
from typing import Final

_PR_GET_SECCOMP: Final = 21
_FILTERED: Final = 2
_libc = ctypes.CDLL(None, use_errno=True)


class NoWallsError(Exception):
    """There is no filter: what an attack tries might happen."""


def require_walls() -> None:
    """NoWallsError. It says nothing of what the filter lets through: so attacks start with what does no harm."""
    if _libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) != _FILTERED:
        raise NoWallsError(
            'this partition has no sandbox, so attacks on the host are not made; use sandbox = "on"'
        )
