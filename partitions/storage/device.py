"""A disk as the root offers it: a backend, and a VSP for each channel that is opened to it."""

import fcntl
import os
from typing import Final, Protocol
from uuid import UUID

from bus import guids
from bus.native import Channel, GpaMap
from bus.seam import Seam
from partitions.machine_plan import DevicePlan
from partitions.served_channel import Service
from partitions.storage._blockio import DeviceLock
from partitions.storage.backends import (
    BackendOpenError,
    BlockBackend,
    DescriptorBackend,
    FileBackend,
    MemoryBackend,
)
from partitions.storage.vsp import StorageVsp


class OfferedDevice(Protocol):
    """What the VMBus server needs of a device of any class."""

    name: str

    @property
    def interface(self) -> UUID: ...
    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> Service: ...
    def close(self) -> None: ...


class DiskDevice:
    """One configured disk. Any number of partitions may open it; each gets a VSP of its own on the same backend."""

    interface: Final[UUID] = guids.SCSI

    def __init__(self, plan: DevicePlan, memory_fd: int | None, *, backing_fd: int | None = None) -> None:
        """Raises BackendOpenError: the text says what is wrong and how to mend it.

        Args:
            memory_fd: the pages of a memory disk, which the hypervisor keeps while no root runs.
            backing_fd: the backing file, opened by whoever may; None: it is opened here.
        """
        self.name = plan.name
        self.backend: BlockBackend = (
            open_backend(plan, memory_fd) if backing_fd is None else adopt_backend(plan, backing_fd)
        )
        self._lock = DeviceLock()

    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> StorageVsp:
        """Serve a channel. `record`: where a predecessor stood with it, or zeros; see StorageVsp."""
        return StorageVsp(
            channel, gpa_map, self.backend, serial=self.name, lock=self._lock, record=record, seam=seam
        )

    def exclusive(self) -> DeviceLock:
        """Held by whoever executes requests of this disk, until their answers are published: docs/recovery.md."""
        return self._lock

    def stick(self) -> None:
        """Take the device's lock and never give it back: `partvisor crash root --stuck`."""
        self._lock.__enter__()

    def close(self) -> None:
        """Everything written is on the medium afterwards. Raises BackendError if it could not be put there."""
        try:
            if not self.backend.read_only:
                self.backend.flush()
        finally:
            self.backend.close()


def open_backend(plan: DevicePlan, memory_fd: int | None) -> DescriptorBackend:
    if plan.backend == "memory":
        assert plan.size_bytes is not None  # the config's validation sees to it
        return MemoryBackend(plan.size_bytes, block_bytes=plan.block_bytes, descriptor=memory_fd)
    assert plan.path is not None
    backend = FileBackend.open(
        plan.path,
        plan.size_bytes,
        create=plan.size_bytes is not None,
        read_only=plan.read_only,
        block_bytes=plan.block_bytes,
    )
    _claim(backend, plan)
    return backend


def adopt_backend(plan: DevicePlan, backing_fd: int) -> BlockBackend:
    """On a descriptor that `open_backing` made, which the backend then owns. Raises BackendOpenError."""
    return FileBackend.adopt(
        backing_fd, plan.size_bytes, read_only=plan.read_only, block_bytes=plan.block_bytes, name=plan.name
    )


def open_backing(plan: DevicePlan) -> int:
    """The backing file of a disk, to be handed over: checked, claimed, open. Raises BackendOpenError."""
    with open_backend(plan, None) as backend:
        assert backend.descriptor is not None
        return os.dup(backend.descriptor)


def _claim(backend: FileBackend, plan: DevicePlan) -> None:
    """One machine at a time may write a disk, any number may read it: two writers would not see each other's caches.

    The lock goes with the last descriptor, so it cannot outlive its machine.
    """
    assert backend.descriptor is not None
    try:
        fcntl.flock(backend.descriptor, (fcntl.LOCK_SH if plan.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        backend.close()
        raise BackendOpenError(
            error.errno or 0, f"{plan.path}: in use by another machine: stop that one first (partvisor list)"
        ) from error
