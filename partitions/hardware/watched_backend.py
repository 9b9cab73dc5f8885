"""A disk's backend, or its medium with the faults on it, under a watch."""

import errno
from collections.abc import Sequence
from typing import Final

from partitions.hardware.watch import Condition, HardwareWatch
from partitions.storage.backends import BackendError, BlockBackend


class WatchedBackend:
    """A BlockBackend. Plain reads and writes go by the descriptor, past this; those that fail come here again."""

    def __init__(self, backend: BlockBackend, watch: HardwareWatch) -> None:
        self._backend, self._watch = backend, watch
        self.size_bytes: Final = backend.size_bytes
        self.block_bytes: Final = backend.block_bytes
        self._degraded = watch.condition is Condition.DEGRADED
        self.read_only: Final = backend.read_only or self._degraded
        self.can_discard: Final = backend.can_discard and not self._degraded

    @property
    def descriptor(self) -> int | None:
        return self._backend.descriptor

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        self._watch.run("read", lambda: self._backend.readv(views, offset))

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        self._refuse_if_degraded()
        self._watch.run("write", lambda: self._backend.writev(views, offset))

    def flush(self) -> None:
        if not self._degraded:  # nothing has been written since
            self._watch.run("flush", self._backend.flush)

    def discard(self, offset: int, length: int) -> None:
        self._refuse_if_degraded()
        self._watch.run("discard", lambda: self._backend.discard(offset, length))

    def _refuse_if_degraded(self) -> None:
        if self._degraded:
            raise BackendError(errno.EROFS, "the device has failed too often: it is used for reading alone")

    def close(self) -> None:
        self._backend.close()
