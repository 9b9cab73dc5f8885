"""A consistent copy of a disk that is in use: the guest comes to rest, its file is copied, the guest goes on."""

import contextlib
import errno
import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Final

from runtime.exits import CommandError, ExitCode
from runtime.machine.management_client import ManagementClient

COPY_SECONDS_MAX: Final = 8.0  # the guest rests two seconds longer at most
_PIECE_BYTES: Final = 4 << 20
_FICLONE: Final = 0x4004_9409  # linux/fs.h: the file system shares the blocks, in no time
_NOT_HERE: Final = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)


class BackupFailed(CommandError):
    """There is no copy."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED


def back_up(client: ManagementClient, name: str, device: str, out: Path) -> dict[str, Any]:
    """{bytes, rested_ms}. `out` is replaced whole, or stays as it was.

    Raises:
        BackupFailed, RequestRefused, NoAnswer: nothing was copied, and the guest runs.
    """
    source = _backing_file(client, name, device)
    if out.exists() and not out.is_file():
        raise BackupFailed(f"{out}: it is no file; name one")
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        with source.open("rb") as reading, partial.open("xb") as writing:
            began = time.monotonic()
            is_frozen = False
            try:
                with _interrupted_later():
                    client.request("integration", name=name, service="vss", order={"operation": "freeze"})
                    is_frozen = True
                _copy(reading.fileno(), writing.fileno(), began + COPY_SECONDS_MAX)
            finally:
                if is_frozen:
                    # Refused: it was not frozen to the end. Then there is no copy, either.
                    with _interrupted_later():
                        client.request("integration", name=name, service="vss", order={"operation": "thaw"})
            rested_ms = round((time.monotonic() - began) * 1000)
            os.fsync(writing.fileno())
            size = os.fstat(writing.fileno()).st_size
        partial.replace(out)
    except OSError as error:
        raise BackupFailed(f"{out}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return {"bytes": size, "rested_ms": rested_ms}


@contextlib.contextmanager
def _interrupted_later() -> Iterator[None]:
    """Ctrl-C counts at the end of this: a guest that is coming to rest can't be told to go on. The second one counts at
    once; the guest then goes on by itself after a while."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came += 1
        if came > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _backing_file(client: ManagementClient, name: str, device: str) -> Path:
    tables = client.request("config")
    partition = next((one for one in tables["partition"] if one["name"] == name), None)
    if partition is None:
        raise BackupFailed(f"no partition named {name!r}; there are {_names(tables['partition'])}")
    if device not in [one["name"] for one in partition["device"]]:
        raise BackupFailed(f"{name} has no device {device!r}; it has {_names(partition['device'])}")
    table: dict[str, Any] = next((one for one in tables["root"]["device"] if one["name"] == device), {})
    if table.get("kind") != "disk" or table.get("backend") != "file":
        raise BackupFailed(f'{device} is not kept in a file: only a disk with backend = "file" can be copied')
    return Path(table["path"])


def _names(tables: list[dict[str, Any]]) -> str:
    return ", ".join(str(table["name"]) for table in tables) or "none"


def _copy(source: int, target: int, deadline: float) -> None:
    try:
        fcntl.ioctl(target, _FICLONE, source)
        return
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
    at, size = 0, os.fstat(source).st_size
    os.ftruncate(target, size)
    while at < size:
        if time.monotonic() > deadline:
            raise BackupFailed(
                f"{at} of {size} bytes were copied in {COPY_SECONDS_MAX:g} s, and a guest rests no longer: a file"
                " system that shares blocks (btrfs, xfs) copies at once"
            )
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
            end = os.lseek(source, at, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # nothing but a hole
            raise
        while at < end and time.monotonic() <= deadline:
            data = os.pread(source, min(_PIECE_BYTES, end - at), at)
            if not data:
                return
            os.pwrite(target, data, at)
            at += len(data)
