"""A disk that a partition has from its parent, offered on to a child of its own.

The child's requests are executed by the same StorageVsp as the root's; its backend is this partition's own storage
channel. A request's bytes are copied once on the way, between the child's pages and the pages of our own channel, so
that nobody above us ever maps a page that the child handed to us alone.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, Final
from uuid import UUID

from bus import guids
from bus.native import Channel, GpaMap
from bus.seam import Seam
from partitions.storage._blockio import DeviceLock, Forward, Relay
from partitions.storage.backends import BackendError
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskError
from partitions.storage.message_channel import MessageChannel
from partitions.storage.vsp import StorageVsp

DATA_BYTES: Final = (
    4 << 20
)  # of our own pages, for requests on their way: half for plain ones, half for the rest
TURNS_AT: Final = 32  # in a channel's record: the opening's number, then the word of struct block_turns
TURNS_END: Final = 48
RELAY_SLOTS: Final = 32  # plain requests on their way at once
RELAY_SLOT_BYTES: Final = 64 << 10  # a larger one is not plain


class VscBackend:
    """A BlockBackend on a `Disk`. Callers take turns: whoever uses it holds the device's lock.

    Plain reads and writes do not come here: the VSP's fast path hands them to `relay`.
    """

    descriptor: Final = None
    block_bytes: Final[int]

    def __init__(self, disk: Disk) -> None:
        description = disk.description
        self._disk = disk
        self.size_bytes: Final = disk.size_bytes
        self.block_bytes = disk.block_bytes
        self.read_only: Final = description.read_only
        self.can_discard: Final = description.can_discard
        self.max_transfer_bytes: Final = description.max_transfer_bytes
        self.relay: Final = _make_relay(disk)

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        length = sum(view.nbytes for view in views)
        if length:
            self._try(lambda: self._read(views, offset, length), f"read at {offset}")

    def _read(self, views: Sequence[memoryview], offset: int, length: int) -> None:
        with self._disk.allocate(length) as buffer:
            self._disk.wait(self._disk.submit_read(offset, buffer, length))
            done = 0
            for view in views:
                view[:] = buffer.view[done : done + view.nbytes]
                done += view.nbytes

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        length = sum(view.nbytes for view in views)
        if length:
            self._try(lambda: self._write(views, offset, length), f"write at {offset}")

    def _write(self, views: Sequence[memoryview], offset: int, length: int) -> None:
        with self._disk.allocate(length) as buffer:
            done = 0
            for view in views:
                buffer.view[done : done + view.nbytes] = view
                done += view.nbytes
            self._disk.wait(self._disk.submit_write(offset, buffer, length))

    def flush(self) -> None:
        self._try(self._disk.flush, "flush")

    def discard(self, offset: int, length: int) -> None:
        self._try(lambda: self._disk.discard(offset, length), f"discard at {offset}")

    def close(self) -> None:
        """The disk is its opener's to close."""

    def _try(self, step: Callable[[], None], what: str) -> None:
        if isinstance(self.relay, Relay):
            self.relay.settle()
        try:
            step()
        except DiskError as error:
            raise BackendError(error.errno, what) from error


def _make_relay(disk: Disk) -> Relay | Forward | None:
    """By which C reaches the disk: a ring with many requests on their way, or a server that takes one at a time."""
    match disk.channel:
        case Channel() as channel:
            slots = disk.allocate(RELAY_SLOTS * RELAY_SLOT_BYTES)
            return Relay(channel, slots.view, slots.gpfn, RELAY_SLOT_BYTES, disk.block_bytes)
        case MessageChannel() as channel:
            return Forward(channel.calls, channel.recover)
    return None


class PassedOnDisk:
    """An OfferedDevice: one VSP for each channel that a child opens, all on one channel of ours."""

    interface: Final[UUID] = guids.SCSI
    has_successor: ClassVar[bool] = False  # who goes on with the same records after our death

    def __init__(self, name: str, disk: Disk) -> None:
        self.name = name
        self.backend: Final = VscBackend(disk)
        self._lock = DeviceLock()

    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> StorageVsp:
        return StorageVsp(
            channel,
            gpa_map,
            self.backend,
            serial=self.name,
            max_transfer_bytes=self.backend.max_transfer_bytes,
            lock=self._lock,
            record=record,
            seam=seam,
            relay=self.backend.relay,
            turns=record[TURNS_AT:TURNS_END] if self.has_successor else None,
        )

    def stick(self) -> None:
        """As `DiskDevice.stick`."""
        self._lock.__enter__()

    def close(self) -> None:
        self.backend.close()
