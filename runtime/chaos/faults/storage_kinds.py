"""Faults of a medium, between a disk's server and its backend."""

from typing import Final

from runtime.chaos.faults.kinds import Carrier, FaultKind, Group, Parameter

BLOCKS_MAX: Final = 1 << 40
DELAY_MS_MAX: Final = 60_000

_WHICH = Parameter("which", "any", "requests", choices=("any", "read", "write", "flush", "discard"))
_FIRST = Parameter("first", 0, "of the blocks that are hit, in bytes", "bytes", 0, BLOCKS_MAX)
_LENGTH = Parameter("length", 0, "of that range; 0: to the end of the disk", "bytes", 0, BLOCKS_MAX)
_RANGE: Final = (_FIRST, _LENGTH)


def _storage(name: str, summary: str, seam: str, *parameters: Parameter) -> FaultKind:
    return FaultKind(name, Group.STORAGE, summary, seam, Carrier.SERVER, parameters)


STORAGE_KINDS: Final = (
    _storage(
        "storage-error",
        "a request fails with an error of the medium",
        "each request",
        _WHICH,
        Parameter("errno", "EIO", "which error", choices=("EIO", "ENODATA", "EROFS", "EREMOTEIO", "ETIMEDOUT")),
        *_RANGE,
    ),
    _storage("storage-full", "writes fail with ENOSPC", "each write", *_RANGE),
    _storage("storage-slow", "a request takes longer", "each request", _WHICH,
             Parameter("delay_ms", 20, "how much longer", "ms", 1, DELAY_MS_MAX), *_RANGE),
    _storage("storage-stuck", "a request does not come back until this is healed", "each request", _WHICH, *_RANGE),
    _storage("storage-lost-write", "a write is acknowledged and not done", "each write", *_RANGE),
    _storage("storage-torn-write", "a write is acknowledged and only its first half is done", "each write", *_RANGE),
    _storage(
        "storage-misdirected-write", "a write goes elsewhere", "each write",
        Parameter("shift", 4096, "how far", "bytes", 512, BLOCKS_MAX), *_RANGE,
    ),
    _storage(
        "storage-misdirected-read", "a read returns another place's data", "each read",
        Parameter("shift", 4096, "how far off", "bytes", 512, BLOCKS_MAX), *_RANGE,
    ),
    _storage("storage-corrupt-read", "one bit of what is read is flipped", "each read", *_RANGE),
    _storage("storage-corrupt-write", "one bit of what is written is flipped", "each write", *_RANGE),
    _storage("storage-stale-read", "a read returns zeros, as if nothing had ever been written", "each read", *_RANGE),
    _storage("storage-flush-error", "a flush fails with EIO", "each flush"),
    _storage("storage-flush-lie", "a flush is acknowledged and not done", "each flush"),
    _storage(
        "storage-power-cut",
        "what was not flushed is gone, and with it the process that serves the disk",
        "each write from the injection on, which a volatile cache holds until a flush",
    ),
)  # fmt: skip
