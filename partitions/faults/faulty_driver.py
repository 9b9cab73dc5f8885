"""A disk's driver that does its work until, after so many requests, it does harm: what an isolated driver is for.

    driver = "partitions.faults.faulty_driver:FaultyDriver"
    args = { fault = "crash", after = 300, record_at = 16777216 }

Until then, and afterwards if it lives, it serves the disk that it wraps: the file at `path`, or the driver named by
args.driver, which gets args.args. It strikes once, in whichever process that happens, and notes it in the file: at
byte `record_at`, behind the disk's end, as a line of JSON in RECORD_BYTES. That place outlives every process, the
machine and what else it may destroy; whoever made the fault can see from there that it really struck, and what came
of it. Nothing here asks the machine for help: it is the code that nobody should have had to trust.

With args.waits it counts requests from the moment on when the first byte behind the record is not zero.

It is bounded (partitions.faults.harm), and the sandbox may stop it earlier: the record says which.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from partitions.faults import harm, lying_server
from partitions.sdk.block import BlockDriver
from partitions.sdk.context import DriverContext
from partitions.sdk.loading import load_driver
from partitions.storage.backends import BlockBackend, DescriptorBackend

RECORD_BYTES: Final = 4096
AFTER: Final = 300  # requests
SPOILT: Final = 64  # replies that are spoilt, where that is the fault, before it keeps to the rules again

_HARMS: Final[Mapping[str, Callable[[int], Mapping[str, Any]]]] = {
    "crash": harm.crash,
    "hang": harm.hang,
    "wild-write": harm.write_wildly,
    "memory-leak": harm.leak_memory,
    "fork-bomb": harm.bomb,
    "fd-exhaustion": harm.exhaust_descriptors,
    "busy-loop": harm.spin,
}
_LIES: Final[Mapping[str, lying_server.Lie]] = {
    "garbage-replies": lying_server.Lie.GARBAGE,
    "double-replies": lying_server.Lie.TWICE,
    "no-replies": lying_server.Lie.NEVER,
}
FAULTS: Final = (*_HARMS, *_LIES)


class FaultyDriver(BlockDriver):
    """One disk, and one fault in it."""

    def __init__(self, context: DriverContext) -> None:
        """ValueError, KeyError: its args make no sense."""
        super().__init__(context)
        args = context.args
        self._fault = str(args["fault"])
        if self._fault not in FAULTS:
            raise ValueError(f"fault {self._fault!r}: want one of {', '.join(FAULTS)}")
        if context.backing_fd is None:
            raise ValueError("it needs a path: its record is behind the disk's end")
        self._seed = int(args.get("seed", 1))
        self._after = int(args.get("after", AFTER))
        self._record_fd = os.dup(context.backing_fd)
        self._record_at = int(args["record_at"])
        self._disk = self._wrapped(context)
        self._waits = bool(args.get("waits", False))
        self._requests = 0  # since it waits for nothing else
        self._has_struck = bool(self._read_record())
        self._lies_left = 0

    def _wrapped(self, context: DriverContext) -> BlockBackend:
        args = context.args
        if "driver" in args:
            wrapped = replace(context, args=args.get("args", {}))
            found: BlockBackend = load_driver(str(args["driver"]), wrapped, (BlockDriver,))
            return found
        assert context.backing_fd is not None
        return DescriptorBackend(
            context.backing_fd,
            super().size_bytes,
            block_bytes=context.block_bytes,
            read_only=context.read_only,
        )

    @property
    def size_bytes(self) -> int:
        return self._disk.size_bytes

    @property
    def block_bytes(self) -> int:
        return self._disk.block_bytes

    @property
    def can_discard(self) -> bool:  # type: ignore[override]
        return self._disk.can_discard

    # -- the disk; each request passes through Python, whatever the wrapped disk could do in C

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        self._pass()
        self._disk.readv(views, offset)

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        self._pass()
        self._disk.writev(views, offset)

    def flush(self) -> None:
        self._pass()
        self._disk.flush()

    def discard(self, offset: int, length: int) -> None:
        self._pass()
        self._disk.discard(offset, length)

    def close(self) -> None:
        self._disk.close()
        os.close(self._record_fd)

    # -- the fault

    def _pass(self) -> None:
        """A request has come. Calls never overlap."""
        if self._waits and not self._has_struck:
            self._waits = os.pread(self._record_fd, 1, self._record_at + RECORD_BYTES) in (b"", b"\0")
        if self._waits:
            return
        self._requests += 1
        if self._lies_left:
            self._lie()
        elif not self._has_struck and self._requests > self._after:
            self._strike()

    def _strike(self) -> None:
        self._has_struck = True
        self._record({})
        if self._fault in _LIES:
            self._lies_left = 1 << 62 if self._fault == "no-replies" else SPOILT
            self._lie()
        else:
            self._record(_HARMS[self._fault](self._seed))

    def _lie(self) -> None:
        """The server that called us, a few frames up this very thread, will send something else for this request."""
        self._lies_left -= lying_server.corrupt(_LIES[self._fault], self._seed + self._requests)

    def _read_record(self) -> bytes:
        return os.pread(self._record_fd, RECORD_BYTES, self._record_at).strip(b"\0")

    def _record(self, did: Mapping[str, Any]) -> None:
        struck = {"fault": self._fault, "pid": os.getpid(), "requests": self._requests, "did": did}
        if not did:
            self._struck_ns = time.monotonic_ns()
        line = json.dumps({**struck, "at_ns": self._struck_ns}).encode()
        os.pwrite(self._record_fd, line.ljust(RECORD_BYTES, b"\0"), self._record_at)
