"""A disk as the root offers it: a backend, and a VSP for each channel that is opened to it."""

import fcntl
import os
from pathlib import Path
from typing import Final
from uuid import UUID

from bus import guids
from bus.native import Channel, GpaMap
from bus.seam import Seam
from partitions.faults.faulty_medium import FaultyMedium
from partitions.hardware.watch import HardwareWatch
from partitions.hardware.watched_backend import WatchedBackend
from partitions.machine_plan import DevicePlan
from partitions.sdk.block import AsyncBlockDriver, BlockDriver
from partitions.sdk.loading import DriverLoadError
from partitions.sdk.opening import open_driver
from partitions.stack.served_channel import Service
from partitions.storage._blockio import DeviceLock
from partitions.storage.async_vsp import AsyncStorageVsp, Called, ThreadedMedium
from partitions.storage.backends import (
    BackendOpenError,
    BlockBackend,
    DescriptorBackend,
    FileBackend,
    MemoryBackend,
    open_error,
)
from partitions.storage.message_service import MessageService
from partitions.storage.opened_overlay import adopt_overlay, open_overlay, seal_overlay
from partitions.storage.overlay import OverlayBackend
from partitions.storage.queues import Queue
from partitions.storage.vsp import StorageVsp

BLOCK_SIZES: Final = (512, 4096)


class DiskDevice:
    """A DrivenDevice: one configured disk. Any number of partitions may open it; each gets a VSP of its own on the same
    backend."""

    interface: Final[UUID] = guids.SCSI

    def __init__(self, plan: DevicePlan, memory_fd: int | None = None, backing_fd: int | None = None) -> None:
        """Raises BackendOpenError, DriverLoadError: the text says what is wrong and how to mend it.

        Args:
            memory_fd: the pages of a disk in memory, which the hypervisor keeps while no root runs.
            backing_fd: the backing file, opened by whoever may; None: it is opened here.
        """
        self.name = plan.name
        opened = _open(plan, memory_fd, backing_fd)
        self._asynchronous = opened if isinstance(opened, AsyncBlockDriver) else None
        self.backend: BlockBackend = Called(opened) if isinstance(opened, AsyncBlockDriver) else opened
        self.watch = HardwareWatch(plan.name, "storage", plan.on_error, plan.error_threshold)
        self.medium: Final = FaultyMedium(self.backend)  # in the place of `backend` while a fault is armed
        self._lock = DeviceLock()
        self._queues = plan.queues

    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> Service:
        """Serve a channel. `record`: where a predecessor stood with it, or zeros; see StorageVsp."""
        return self.open_queue(0, channel, gpa_map, record, seam)

    def open_queue(
        self, index: int, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam
    ) -> Service:
        """A sub-channel, or, with index 0, the channel that it belongs to."""
        queue = Queue(self._queues, index)
        is_well = self.medium.is_idle
        if self._asynchronous is not None:
            return AsyncStorageVsp(
                channel,
                gpa_map,
                self._asynchronous if is_well else ThreadedMedium(self._asynchronous, self.medium),
                serial=self.name,
                lock=self._lock,
                record=record,
                seam=seam,
                queue=queue,
            )
        return StorageVsp(
            channel,
            gpa_map,
            WatchedBackend(self.backend if is_well else self.medium, self.watch),
            serial=self.name,
            lock=self._lock,
            record=record,
            seam=seam,
            queue=queue,
        )

    def open_messages(self, record: memoryview, seam: Seam) -> MessageService:
        return MessageService(
            self.backend, record, serial=self.name, lock=self._lock, seam=seam, medium=self.medium
        )

    def exclusive(self) -> DeviceLock:
        """Held by whoever executes requests of this disk, until their answers are published: docs/recovery.md."""
        return self._lock

    def stick(self) -> None:
        """Take the device's lock and never give it back: `partvisor crash root --stuck`."""
        self._lock.__enter__()

    def close(self) -> None:
        """Everything written is on the medium afterwards. Raises BackendError if it could not be put there."""
        self.medium.heal(None)
        try:
            if not self.backend.read_only:
                self.medium.flush()
        finally:
            self.medium.close()


def _open(plan: DevicePlan, memory_fd: int | None, backing_fd: int | None) -> BlockBackend | AsyncBlockDriver:
    if plan.driver is not None:
        if plan.path is not None and backing_fd is None:
            backing_fd = open_backing(plan)
        driver: BlockDriver | AsyncBlockDriver = open_driver(
            plan, memory_fd, backing_fd, (BlockDriver, AsyncBlockDriver)
        )
        _check(plan, driver)
        return driver
    if plan.backend == "overlay" and plan.path is None and backing_fd is not None:
        return adopt_overlay(plan, backing_fd, memory_fd)
    return open_backend(plan, memory_fd) if backing_fd is None else adopt_backend(plan, backing_fd)


def _check(plan: DevicePlan, driver: BlockDriver | AsyncBlockDriver) -> None:
    """What a driver says of its disk, before any guest is told. DriverLoadError."""
    try:
        size, block = driver.size_bytes, driver.block_bytes
        if type(size) is not int or block not in BLOCK_SIZES or size <= 0 or size % block:
            raise ValueError(f"size_bytes {size!r} in blocks of {block!r}: want whole blocks of 512 or 4096")
    except Exception as error:
        raise DriverLoadError(f"{plan.driver}: {error}: set size, or override size_bytes") from error


def open_backend(plan: DevicePlan, memory_fd: int | None) -> DescriptorBackend | OverlayBackend:
    if plan.backend == "overlay":
        return open_overlay(plan, memory_fd)
    return open_file_or_memory(plan, memory_fd)


def open_file_or_memory(plan: DevicePlan, memory_fd: int | None) -> DescriptorBackend:
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
    assert backend.descriptor is not None
    _claim(backend.descriptor, plan)
    return backend


def adopt_backend(plan: DevicePlan, backing_fd: int) -> BlockBackend:
    """On a descriptor that `open_backing` made, which the backend then owns. Raises BackendOpenError."""
    if plan.backend == "overlay":
        return adopt_overlay(plan, backing_fd)
    return FileBackend.adopt(
        backing_fd, plan.size_bytes, read_only=plan.read_only, block_bytes=plan.block_bytes, name=plan.name
    )


def open_backing(plan: DevicePlan) -> int:
    """The backing file of a device, to be handed over: checked, claimed, open. Raises BackendOpenError."""
    if plan.driver is not None:
        return _open_for_driver(plan)
    if plan.backend == "overlay":
        return seal_overlay(plan)
    with open_file_or_memory(plan, None) as backend:
        assert backend.descriptor is not None
        return os.dup(backend.descriptor)


def _open_for_driver(plan: DevicePlan) -> int:
    """Any file: what is in it is the driver's business. Made, as a hole, where there is none and a size is known."""
    assert plan.path is not None
    flags = (os.O_RDONLY if plan.read_only else os.O_RDWR) | os.O_CLOEXEC
    try:
        is_new = plan.size_bytes is not None and not plan.read_only and not os.path.lexists(plan.path)
        descriptor = os.open(plan.path, flags | (os.O_CREAT | os.O_EXCL if is_new else 0), 0o600)
        if is_new:
            os.ftruncate(descriptor, plan.size_bytes or 0)
    except OSError as error:
        raise open_error(Path(plan.path), error, plan.size_bytes) from error
    _claim(descriptor, plan)
    return descriptor


def _claim(descriptor: int, plan: DevicePlan) -> None:
    """One machine at a time may write a disk, any number may read it: two writers would not see each other's caches.

    The lock goes with the last descriptor, so it cannot outlive its machine.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if plan.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise BackendOpenError(
            error.errno or 0, f"{plan.path}: in use by another machine: stop that one first (partvisor list)"
        ) from error
