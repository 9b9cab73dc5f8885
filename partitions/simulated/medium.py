"""A simulated disk: its bytes, the faults of its medium, and who is at it."""

import errno
import mmap
from collections.abc import Callable, Collection, Sequence
from typing import Final

from partitions.faults.armed import Armed
from partitions.faults.faulty_medium import FaultyMedium
from partitions.simulated.clock import NS_PER_S
from partitions.simulated.process import Died, Suspended
from partitions.storage.backends import BLOCK_BYTES, BackendError
from runtime.chaos.blocks import BLOCK_BYTES as CHECKED_BYTES
from runtime.chaos.blocks import ZERO_BLOCK, ZEROS, BlockRun
from runtime.chaos.faults.orders import Order

Views = Sequence[memoryview]


# Memory of media that are gone, all zeros again, by size: the next trial's pages are there already.
_STOCK: Final[dict[int, list[memoryview]]] = {}
STOCK_MAX: Final = 4  # of one size
STOCK_BYTES_MAX: Final = 64 << 20  # of one medium


def _zeros(size_bytes: int) -> memoryview:
    stock = _STOCK.get(size_bytes)
    return stock.pop() if stock else memoryview(mmap.mmap(-1, size_bytes))


class MemoryMedium:
    """Bytes that outlive who serves them. A BlockBackend."""

    descriptor: Final = None
    can_discard: Final = True

    def __init__(self, size_bytes: int, block_bytes: int = BLOCK_BYTES, *, read_only: bool = False) -> None:
        self.size_bytes: Final = size_bytes
        self.block_bytes: Final = block_bytes
        self.read_only: Final = read_only
        self._bytes: Final = _zeros(size_bytes)
        self._touched: set[int] = set()  # blocks of CHECKED_BYTES that were written

    def readv(self, views: Views, offset: int) -> None:
        for view in views:
            view[:] = self._bytes[offset : offset + view.nbytes]
            offset += view.nbytes

    def writev(self, views: Views, offset: int) -> None:
        for view in views:
            self._bytes[offset : offset + view.nbytes] = view
            self._touch(offset, view.nbytes)
            offset += view.nbytes

    def flush(self) -> None:
        pass

    def discard(self, offset: int, length: int) -> None:
        self._bytes[offset : offset + length] = bytes(length)

    def close(self) -> None:
        pass

    def recycle(self) -> None:
        """The machine is gone, and nobody reads or writes any more."""
        stock = _STOCK.setdefault(self.size_bytes, [])
        if len(stock) < STOCK_MAX and self.size_bytes <= STOCK_BYTES_MAX:
            for block in self._touched:
                at = block * CHECKED_BYTES
                self._bytes[at : at + CHECKED_BYTES] = ZERO_BLOCK
            stock.append(self._bytes)

    def _touch(self, offset: int, length: int) -> None:
        self._touched.update(range(offset // CHECKED_BYTES, (offset + length - 1) // CHECKED_BYTES + 1))

    def values(self, blocks: range, asked: Collection[int]) -> dict[int, int]:
        """What runtime.chaos.blocks finds in those of `blocks` that were asked for or written. None wrote: zeros."""
        found = dict.fromkeys(asked, ZEROS)
        copy = memoryview(bytearray(CHECKED_BYTES))
        run = BlockRun(copy)
        for block in sorted(self._touched.intersection(blocks)):
            at = block * CHECKED_BYTES
            copy[:] = self._bytes[at : at + CHECKED_BYTES]
            (found[block],) = run.values(block, 1)
        return found


def _die() -> None:
    raise Died


class SimulatedMedium(FaultyMedium):
    """Where the real one sleeps, the call is suspended; made again, it goes on behind its decisions."""

    def __init__(self, medium: MemoryMedium, fired: Callable[[Order], None]) -> None:
        super().__init__(medium, _die)
        self.memory: Final = medium
        self._fired = fired
        self._decided: list[Armed] | None = None  # of the call that is suspended

    def forget(self) -> None:
        """Who was suspended here has died, and what nobody flushed stays lost if the power was cut."""
        self._decided = None
        if self._has_volatile_cache:
            self._unflushed.clear()
        else:
            self._write_back()

    def _strike(self, verb: str, offset: int, length: int) -> list[Armed]:
        if self._decided is not None:
            struck, self._decided = self._decided, None
            return struck
        delay_ns, hangs = 0.0, False
        others: list[Armed] = []
        for armed in self.struck(verb, offset, length):
            self._fired(armed.order)
            match armed.kind:
                case "storage-error":
                    number = getattr(errno, str(armed.order.parameters["errno"]))
                    raise BackendError(number, f"{verb}: a fault on purpose")
                case "storage-full":
                    raise BackendError(errno.ENOSPC, f"{verb}: a fault on purpose")
                case "storage-slow":
                    delay_ns += armed.delay_s * NS_PER_S
                case "storage-stuck":
                    hangs = True
                case _:
                    others.append(armed)
        if hangs or delay_ns:
            self._decided = others
            raise Suspended(None if hangs else int(delay_ns))
        return others
