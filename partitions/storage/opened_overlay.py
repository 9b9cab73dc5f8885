"""An overlay's two files: opened by whoever may, and both handed to a driver partition as one descriptor.

That descriptor is a socket in which the two wait: a partition is born with one descriptor for each device.
"""

import errno
import fcntl
import os
import socket
from pathlib import Path

from partitions.machine_plan import DevicePlan
from partitions.storage.backends import BackendOpenError, DescriptorBackend, FileBackend, open_error
from partitions.storage.given_backing import claim_given
from partitions.storage.overlay import OverlayBackend


def create_overlay(path: str) -> None:
    """An empty file where there is none: one that was not written over. Raises BackendOpenError."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise open_error(Path(path), error, None) from error


def open_overlay(plan: DevicePlan, memory_fd: int | None) -> OverlayBackend:
    """By its paths. Raises BackendOpenError."""
    descriptors = _open_files(plan)
    return _make(plan, descriptors, memory_fd)


def seal_overlay(plan: DevicePlan) -> int:
    """Both files behind one descriptor, for `adopt_overlay`. Raises BackendOpenError."""
    descriptors = _open_files(plan)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with ours:
            socket.send_fds(ours, [b"\0"], descriptors)
    except BaseException:
        theirs.close()
        raise
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return theirs.detach()


def adopt_overlay(plan: DevicePlan, sealed: int, memory_fd: int | None = None) -> OverlayBackend:
    """What `seal_overlay` made, which is closed. Raises BackendOpenError."""
    with socket.socket(fileno=sealed) as envelope:
        _, descriptors, _, _ = socket.recv_fds(envelope, 1, 2)
    return _make(plan, list(descriptors), memory_fd)


def _open_files(plan: DevicePlan) -> list[int]:
    """The base; and the overlay, if it is a file."""
    assert plan.base is not None  # the config's validation sees to it
    descriptors: list[int] = []
    try:
        with FileBackend.open(plan.base, read_only=True, block_bytes=plan.block_bytes) as base:
            assert base.descriptor is not None
            descriptors.append(fcntl.fcntl(base.descriptor, fcntl.F_DUPFD_CLOEXEC, 0))
        fcntl.flock(descriptors[0], fcntl.LOCK_SH | fcntl.LOCK_NB)
        if plan.path is not None:
            descriptors.append(os.open(plan.path, os.O_RDWR | os.O_CLOEXEC))
            claim_given(descriptors[1], plan)
    except OSError as error:
        for descriptor in descriptors:
            os.close(descriptor)
        if error.errno == errno.EWOULDBLOCK:
            text = f"{plan.base}: another machine writes it: stop that one first (partvisor list)"
            raise BackendOpenError(errno.EWOULDBLOCK, text) from error
        raise open_error(Path(plan.path or plan.base), error, None) from error
    except BackendOpenError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return descriptors


def _make(plan: DevicePlan, descriptors: list[int], memory_fd: int | None) -> OverlayBackend:
    """Owns them all, whatever comes of it."""
    base: DescriptorBackend | None = None
    try:
        base = FileBackend.adopt(
            descriptors[0], plan.size_bytes, read_only=True, block_bytes=plan.block_bytes, name=str(plan.base)
        )
        if plan.path is not None:
            return OverlayBackend(base, descriptors[1], name=plan.path)
        if memory_fd is None:
            memory_fd = os.memfd_create("overlay", os.MFD_CLOEXEC)
        descriptors.append(memory_fd)
        return OverlayBackend(base, memory_fd, volatile=True, name=plan.name)
    except BaseException:
        for descriptor in descriptors[1:] if base is not None else descriptors:
            os.close(descriptor)
        if base is not None:
            base.close()
        raise
