"""Landlock: which files a process may still open, and nothing else that has a name. Landlock's own ABI is in the
kernel's Documentation/userspace-api/landlock.rst.

It judges opening, not descriptors: what was handed over works as before. It does not hide that a file is there.
"""

import errno
import os
import stat
import struct
from collections.abc import Mapping, Sequence
from typing import Final

from partitions.sandbox import kernel, syscalls
from partitions.sandbox.readable import Readable

_RULESET: Final = struct.Struct("=QQQ")  # handled rights: files, network; scopes
_PATH_BENEATH: Final = struct.Struct("=Qi")  # rights, folder or file
_VERSION: Final = 1 << 0
_RULE_PATH_BENEATH: Final = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_FOLDER = 1 << 0, 1 << 1, 1 << 2, 1 << 3
TRUNCATE, IOCTL_DEVICE = 1 << 14, 1 << 15
_OF_A_FILE: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE
# Rights by the ABI that brought the last of them.
_FILE_RIGHTS: Final[Mapping[int, int]] = {1: 13, 2: 14, 3: 15, 5: 16}
_NETWORK_ABI: Final = 4
_NETWORK_RIGHTS: Final = 0b11  # bind and connect of TCP
_SCOPE_ABI: Final = 6
_SCOPES: Final = 0b11  # abstract UNIX sockets, signals
_BYTES_BY_ABI: Final = {1: 8, _NETWORK_ABI: 16, _SCOPE_ABI: 24}
READ: Final = READ_FILE | READ_FOLDER
DEVICE: Final = READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEVICE

assert _RULESET.size == 24
assert _PATH_BENEATH.size == 12


def abi() -> int:
    """What this kernel offers. OSError: none, or it is switched off."""
    return kernel.syscall("Landlock", syscalls.LANDLOCK_CREATE_RULESET, None, 0, _VERSION)


def _latest(table: Mapping[int, int], version: int) -> int:
    return max(value for since, value in table.items() if since <= version)


class Ruleset:
    """Everything is handled, so everything that no rule gives is refused."""

    def __init__(self, *, network: bool) -> None:
        """`network`: TCP may be used. Raises OSError."""
        version = abi()
        self._file_rights = (1 << _latest(_FILE_RIGHTS, version)) - 1
        attributes = _RULESET.pack(
            self._file_rights,
            _NETWORK_RIGHTS if version >= _NETWORK_ABI and not network else 0,
            _SCOPES if version >= _SCOPE_ABI else 0,
        )[: _latest(_BYTES_BY_ABI, version)]
        self.descriptor = kernel.syscall(
            "Landlock", syscalls.LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0
        )

    def allow(self, descriptor: int, rights: int, *, is_folder: bool) -> None:
        rights &= self._file_rights if is_folder else self._file_rights & _OF_A_FILE
        rule = _PATH_BENEATH.pack(rights, descriptor)
        kernel.syscall("Landlock", syscalls.LANDLOCK_ADD_RULE, self.descriptor, _RULE_PATH_BENEATH, rule, 0)

    def allow_path(self, path: str, rights: int) -> None:
        """Nothing happens if there is no such file."""
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENXIO):
                return
            raise
        try:
            self.allow(descriptor, rights, is_folder=stat.S_ISDIR(os.fstat(descriptor).st_mode))
        finally:
            os.close(descriptor)

    def enforce(self) -> None:
        """On this thread, and on all that it starts. For good."""
        try:
            kernel.syscall("Landlock", syscalls.LANDLOCK_RESTRICT_SELF, self.descriptor, 0)
        finally:
            os.close(self.descriptor)


def restrict(readable: Readable, devices: Sequence[str] = (), *, network: bool = False) -> None:
    """Reading what Python needs and its own /proc; of devices, everything. Raises OSError: nothing is refused."""
    ruleset = Ruleset(network=network)
    for entry in readable.entries:
        ruleset.allow(entry.descriptor, READ, is_folder=entry.is_folder)
    for entry in readable.listed:
        ruleset.allow(entry.descriptor, READ_FOLDER, is_folder=True)
    ruleset.allow_path("/proc/self", READ)
    ruleset.allow_path(os.devnull, READ_FILE | WRITE_FILE)
    for path in devices:
        ruleset.allow_path(path, DEVICE)
    ruleset.enforce()
