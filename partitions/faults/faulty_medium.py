"""A backend between a disk's server and its real backend, which does what the armed faults say.

Servers of rings are opened on it, instead of the backend, while anything is armed: it has no descriptor, so the native
path stays away. Servers of messages always have it, and their native path looks at `armed_word`. With nothing armed it
passes everything on.
"""

import errno
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from partitions.faults.armed import Armed
from partitions.storage.backends import BackendError, BlockBackend
from runtime.chaos.faults.knobs import Trigger
from runtime.chaos.faults.orders import Counts, FaultRefused, Order
from runtime.chaos.faults.storage_kinds import STORAGE_KINDS

Views = Sequence[memoryview]
UNFLUSHED_WRITES_MAX: Final = 1024  # that a volatile cache holds; then it is written back by itself
_KINDS: Final = frozenset(kind.name for kind in STORAGE_KINDS)
_READS: Final = frozenset({"storage-misdirected-read", "storage-corrupt-read", "storage-stale-read"})
_WRITES: Final = frozenset(
    {
        "storage-full",
        "storage-lost-write",
        "storage-torn-write",
        "storage-misdirected-write",
        "storage-corrupt-write",
        "storage-power-cut",
    }
)
_FLUSHES: Final = frozenset({"storage-flush-error", "storage-flush-lie"})


def refusal(order: Order, *, read_only: bool) -> str | None:
    """Why a disk does not take this order."""
    if order.kind not in _KINDS:
        return f"{order.kind} is no fault of a medium"
    if order.kind in _WRITES and read_only:
        return f"{order.target} is read-only: {order.kind} would never strike"
    return None


class _Hit:
    """Which requests an armed fault can hit."""

    def __init__(self, armed: Armed) -> None:
        self.armed = armed
        parameters = armed.order.parameters
        first, length = int(parameters.get("first", 0)), int(parameters.get("length", 0))
        self._range = (first, first + length if length else None)
        self._which = _which(armed.order)

    def strikes(self, verb: str, offset: int, length: int) -> bool:
        """Whether this request passes the seam, and is hit there."""
        if self._which not in ("any", verb):
            return False
        first, end = self._range
        if verb != "flush" and (offset + length <= first or (end is not None and offset >= end)):
            return False
        return self.armed.trigger.strikes()


def _which(order: Order) -> str:
    kind = order.kind
    if kind in _READS:
        return "read"
    if kind in _WRITES:
        return "write"
    return "flush" if kind in _FLUSHES else str(order.parameters.get("which", "any"))


class FaultyMedium:
    """A BlockBackend, and the FaultAgent of the disk whose it is. Any number of threads."""

    descriptor: Final = None

    def __init__(self, medium: BlockBackend, die: Callable[[], None] | None = None) -> None:
        """`die` ends this process (a power cut)."""
        self.medium, self._die = medium, die or _kill_ourselves
        self._lock = threading.Lock()
        self._armed: tuple[_Hit, ...] = ()
        self._unflushed: list[tuple[int, bytes]] = []  # while a power cut is armed: writes, in their order
        self.armed_word: Final = memoryview(bytearray(4)).cast(
            "I"
        )  # for servers in C: not 0, they step aside

    # -- the agent

    def inject(self, order: Order) -> None:
        """Raises FaultRefused."""
        if (why := refusal(order, read_only=self.medium.read_only)) is not None:
            raise FaultRefused(why)
        self.arm(Armed(order))

    def arm(self, armed: Armed) -> None:
        with self._lock:
            self._armed = (*self._armed, _Hit(armed))
            self.armed_word[0] = 1

    def heal(self, number: int | None) -> None:
        with self._lock:
            healed = [hit for hit in self._armed if number in (None, hit.armed.order.number)]
            self._armed = tuple(hit for hit in self._armed if hit not in healed)
            self.armed_word[0] = bool(self._armed)
        for hit in healed:
            hit.armed.healed.set()
        if not self._has_volatile_cache:
            self._write_back()

    def counts(self) -> Mapping[int, Counts]:
        return {hit.armed.order.number: hit.armed.counts for hit in self._armed}

    @property
    def is_idle(self) -> bool:
        """Nothing is armed: the real backend could serve by itself."""
        return not self._armed

    # -- the backend

    @property
    def size_bytes(self) -> int:
        return self.medium.size_bytes

    @property
    def block_bytes(self) -> int:
        return self.medium.block_bytes

    @property
    def read_only(self) -> bool:
        return self.medium.read_only

    @property
    def can_discard(self) -> bool:
        return self.medium.can_discard

    def readv(self, views: Views, offset: int) -> None:
        if not self._armed and not self._unflushed:
            self.medium.readv(views, offset)
            return
        length = sum(view.nbytes for view in views)
        struck = self._strike("read", offset, length)
        for armed in struck:
            if armed.order.kind == "storage-misdirected-read":
                offset = self._elsewhere(offset, length, armed)
        self._read(views, offset, length)
        for armed in struck:
            match armed.order.kind:
                case "storage-corrupt-read":
                    _flip_a_bit(views, armed.trigger)
                case "storage-stale-read":
                    for view in views:
                        view[:] = bytes(view.nbytes)

    def writev(self, views: Views, offset: int) -> None:
        if not self._armed and not self._unflushed:
            self.medium.writev(views, offset)
            return
        length = sum(view.nbytes for view in views)
        for armed in self._strike("write", offset, length):
            match armed.order.kind:
                case "storage-lost-write":
                    return
                case "storage-torn-write":
                    views = _first_half(views, self.block_bytes)
                case "storage-misdirected-write":
                    offset = self._elsewhere(offset, length, armed)
                case "storage-corrupt-write":
                    content = memoryview(bytearray(b"".join(views)))
                    _flip_a_bit([content], armed.trigger)
                    views = [content]
                case "storage-power-cut":
                    self._die()
        self._write(views, offset)

    def flush(self) -> None:
        for armed in self._strike("flush", 0, 0):
            match armed.order.kind:
                case "storage-flush-error":
                    raise BackendError(errno.EIO, "flush: a fault on purpose")
                case "storage-flush-lie":
                    return
        self._write_back()
        self.medium.flush()

    def discard(self, offset: int, length: int) -> None:
        self._strike("discard", offset, length)
        self._write_back()
        self.medium.discard(offset, length)

    def close(self) -> None:
        self._write_back()
        self.medium.close()

    # -- what strikes every kind of request

    def struck(self, verb: str, offset: int, length: int) -> list[Armed]:
        with self._lock:
            return [hit.armed for hit in self._armed if hit.strikes(verb, offset, length)]

    def _strike(self, verb: str, offset: int, length: int) -> list[Armed]:
        """Those that hit this request. Errors and delays are dealt with here. Raises BackendError."""
        struck = self.struck(verb, offset, length)
        for armed in struck:
            match armed.order.kind:
                case "storage-error":
                    number = getattr(errno, str(armed.order.parameters["errno"]))
                    raise BackendError(number, f"{verb} at {offset}: a fault on purpose")
                case "storage-full":
                    raise BackendError(errno.ENOSPC, f"{verb} at {offset}: a fault on purpose")
                case "storage-slow":
                    armed.healed.wait(armed.delay_s)
                case "storage-stuck":
                    armed.healed.wait()
        return struck

    def _elsewhere(self, offset: int, length: int, armed: Armed) -> int:
        """As far off as asked, within the disk."""
        room = self.size_bytes - length
        shift = int(armed.order.parameters["shift"]) // self.block_bytes * self.block_bytes
        return (offset + shift) % (room + self.block_bytes) if room else offset

    # -- a volatile cache, while the power may be cut

    @property
    def _has_volatile_cache(self) -> bool:
        return any(hit.armed.kind == "storage-power-cut" for hit in self._armed)

    def _write(self, views: Views, offset: int) -> None:
        with self._lock:
            if self._has_volatile_cache or self._unflushed:  # never past an older one
                self._unflushed.append((offset, b"".join(views)))
                if len(self._unflushed) > UNFLUSHED_WRITES_MAX:
                    self._put_back()
                return
        self.medium.writev(views, offset)

    def _read(self, views: Views, offset: int, length: int) -> None:
        self.medium.readv(views, offset)
        with self._lock:
            for start, content in self._unflushed:
                _overlay(views, offset, length, start, content)

    def _write_back(self) -> None:
        with self._lock:
            self._put_back()

    def _put_back(self) -> None:
        while self._unflushed:
            offset, content = self._unflushed[0]
            self.medium.writev([memoryview(content)], offset)
            del self._unflushed[0]


def _overlay(views: Views, offset: int, length: int, start: int, content: bytes) -> None:
    """What `content`, written at `start`, is of a read of [offset, offset + length)."""
    low, high = max(offset, start), min(offset + length, start + len(content))
    at = offset
    for view in views:
        first, last = max(at, low), min(at + view.nbytes, high)
        if first < last:
            view[first - at : last - at] = content[first - start : last - start]
        at += view.nbytes


def _flip_a_bit(views: Views, trigger: Trigger) -> None:
    total = sum(view.nbytes for view in views)
    if not total:
        return
    at = trigger.draw(total)
    for view in views:
        if at < view.nbytes:
            view[at] ^= 1 << trigger.draw(8)
            return
        at -= view.nbytes


def _first_half(views: Views, block_bytes: int) -> list[memoryview]:
    """Half of it, down to a whole block; of one block, half its bytes."""
    total = sum(view.nbytes for view in views)
    keep = total // 2 // block_bytes * block_bytes or total // 2
    kept: list[memoryview] = []
    for view in views:
        kept.append(view[:keep])
        keep -= kept[-1].nbytes
    return [view for view in kept if view.nbytes]


def _kill_ourselves() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
