"""What a driver is given when it is made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class DriverContext:
    """One [[root.device]] table, with what the machine has opened for it."""

    name: str
    kind: str
    args: Mapping[str, Any]
    size_bytes: int | None  # as configured, or of the file at `path`; None: neither was given
    block_bytes: int
    read_only: bool
    backing_fd: int | None  # of `path`, opened by the machine; the driver's own from here on
    memory: (
        memoryview | None
    )  # `size` without `path`: pages that stay while processes of the driver come and go
