"""Capabilities: a partition has none, in no user namespace."""

import contextlib
import struct
from typing import Final

from partitions.sandbox import kernel

CAP_DAC_OVERRIDE: Final = 1
CAP_SYS_PTRACE: Final = 19
_VERSION: Final = 0x2008_0522  # _LINUX_CAPABILITY_VERSION_3
_HEADER: Final = struct.pack("=Ii", _VERSION, 0)  # of this thread
_DATA: Final = struct.Struct("=6I")  # effective, permitted, inheritable; the low words, then the high ones
_PR_CAPBSET_DROP: Final = 24
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITIES_MAX: Final = 64

assert _DATA.size == 24


def effective() -> int:
    """Of this thread, as a mask."""
    low, _, _, high, _, _ = _DATA.unpack(kernel.capget(_HEADER, _DATA.size))
    return int(low | high << 32)


def has(capability: int) -> bool:
    return bool(effective() >> capability & 1)


def keep_only(kept: frozenset[int]) -> None:
    """Drop all others for good, also from the bounding set, as far as we may. OSError: they are still there."""
    with contextlib.suppress(
        OSError
    ):  # past the last one; or without the right: the set matters at an exec alone
        for capability in range(_CAPABILITIES_MAX):
            if capability not in kept:
                kernel.prctl("bounding set", _PR_CAPBSET_DROP, capability)
    hold_only(kept)


def hold_only(kept: frozenset[int]) -> None:
    """As `keep_only`, but for the bounding set: a program whose file asks for a capability outside of it, as ping does,
    could not be executed at all. With no_new_privs it gets none either way."""
    mask = sum(1 << capability for capability in kept) & effective()
    with contextlib.suppress(OSError):  # an old kernel
        kernel.prctl("ambient set", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    low, high = mask & 0xFFFF_FFFF, mask >> 32
    kernel.capset(_HEADER, _DATA.pack(low, low, 0, high, high, 0))
    if effective() != mask:
        raise OSError(0, "capabilities are left")
