"""The private folder of a running machine, and how machines are found.

    $XDG_RUNTIME_DIR/partvisor/             0700, ours; /tmp/partvisor-UID where there is no XDG_RUNTIME_DIR
        quickstart.5e884898/                one folder a machine: its name and a random part
            lock                            flocked by the platform as long as it lives; says name and pid
            management, events              zmq ipc sockets, 0600
            console, console-*.log          of partitions: runtime.machine.console_lines
            screen-*                        of partitions, for VNC viewers: runtime.machine.screen_doors
            debug, recorder                 debug port and flight recorder: runtime.machine.debug_access
            stderr                          of a detached machine

A lock dies with its holder, so a folder whose lock is free is a leftover, and any later command sweeps it
away. Mostly there is none: a janitor process holds the reading end of a pipe whose writing end the platform
alone has, and removes the folder when the pipe ends, that is, however the platform died.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import msgspec

from runtime.exits import CommandError, ExitCode

BASE_VARIABLE: Final = "PARTVISOR_RUNTIME_DIR"  # overrides the choice of folder; for tests and odd hosts
SOCKET_PATH_BYTES_MAX: Final = 107  # sun_path, less its closing zero; unix(7)
LOCK_BYTES_MAX: Final = 4096
_ATTEMPTS_MAX: Final = 100
CAPTURE_NAME: Final = "capture"
STREAM_PREFIX: Final = "stream-"
_SCREEN_PREFIX: Final = "screen-"
_JANITOR_GRACE_MS: Final = 2_000
_TOKEN_BYTES: Final = 4
_FOLDER_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}[.][0-9a-f]{8}")
# $1: the machine's folder; $2: the folder around it, removed only when empty; then patterns of cgroups, which cannot
# be removed before the last process in them has died. `echo` says that no signal can end it any more, so that the
# machine may start; where nobody hears it, the machine has been killed already. `read` returns at end of file.
_JANITOR: Final = (
    'trap "" HUP INT QUIT TERM PIPE; echo 2>/dev/null; exec >/dev/null; read -r _;'
    ' rm -rf -- "$1"; rmdir -- "$2" 2>/dev/null; shift 2; IFS=; tries=0;'
    ' while [ "$#" -gt 0 ] && [ "$tries" -lt 15 ]; do left=; for pattern in "$@"; do for group in $pattern; do'
    ' [ -d "$group" ] || continue; find "$group" -depth -type d -exec rmdir {} ";" 2>/dev/null;'
    ' [ ! -d "$group" ] || left=1; done; done; [ -n "$left" ] || break; sleep 0.1; tries=$((tries + 1)); done; exit 0'
)


class RunDirError(CommandError):
    """The runtime folder can't be used as it is."""


class MachineNotFound(CommandError):
    """No machine, or no single one, of that name."""

    exit_code: ClassVar[ExitCode] = ExitCode.NOT_FOUND


class MachineExists(CommandError):
    """A machine of that name runs already."""


class LockRecord(msgspec.Struct, frozen=True):
    """What the lock file says."""

    name: str
    pid: int
    started_wall_ns: int


def screen_of(path: Path) -> str | None:
    """The partition whose screen's viewers connect there; None: it is no such path. See `MachineFolder.screen_path`."""
    return path.name.removeprefix(_SCREEN_PREFIX) if path.name.startswith(_SCREEN_PREFIX) else None


def stream_of(path: Path, *, dialled: bool) -> str | None:
    """The partition whose streams come by there; None: it is no such path. See runtime.machine.streams.

    `dialled`: a program of the host's listens there, so that the name has a service behind it.
    """
    if not path.name.startswith(STREAM_PREFIX):
        return None
    name = path.name.removeprefix(STREAM_PREFIX)
    return name.rpartition("_")[0] if dialled else name


@dataclass(frozen=True, slots=True)
class MachineFolder:
    """Where one machine can be reached."""

    path: Path
    name: str
    pid: int  # of the platform
    started_wall_ns: int

    @property
    def management_path(self) -> Path:
        return self.path / "management"

    @property
    def events_path(self) -> Path:
        return self.path / "events"

    @property
    def console_path(self) -> Path:
        return self.path / "console"

    @property
    def capture_path(self) -> Path:
        return self.path / CAPTURE_NAME

    def screen_path(self, partition: str) -> Path:
        """Where viewers of its screen connect: runtime.machine.screen_doors."""
        return self.path / f"{_SCREEN_PREFIX}{partition}"

    @property
    def debug_path(self) -> Path:
        return self.path / "debug"

    @property
    def recorder_path(self) -> Path:
        return self.path / "recorder"

    @property
    def stderr_path(self) -> Path:
        return self.path / "stderr"

    def is_alive(self) -> bool:
        """Whether a platform holds the lock."""
        return _read_live_lock(self.path) is not None


def base_folders() -> list[Path]:
    """Where machines may be, the preferred place first. None of them need exist."""
    if override := os.environ.get(BASE_VARIABLE):
        return [Path(override).absolute()]
    folders = [Path(f"/tmp/partvisor-{os.geteuid()}")]
    xdg = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if xdg.is_absolute() and xdg.is_dir():
        folders.insert(0, xdg / "partvisor")
    return folders


@contextlib.contextmanager
def machine_folder(name: str) -> Iterator[MachineFolder]:
    """Make the folder of a new machine, hold its lock, and leave nothing of it behind.

    The caller must fork no process that goes on without exec while the folder is held: such a process would
    keep the lock and the janitor's pipe, so that the machine would seem to live on in it.

    Args:
        name: of the machine; fits config_shape.NAME_PATTERN.

    Raises:
        MachineExists: a machine of that name runs.
        RunDirError: no place for the folder. Nothing was created.
    """
    folder, lock_fd = _create(name)
    try:
        from runtime.hypervisor.scheduling_cgroups import cgroups_of  # other commands start without it

        with janitor(folder.path, folder.path.parent, cgroups_of(os.getpid())):
            try:
                yield folder
            finally:
                _remove(folder.path)
    finally:
        _remove(folder.path)
        os.close(lock_fd)


def find_machines(bases: Iterable[Path] | None = None) -> list[MachineFolder]:
    """All machines of this user that run now, by name. Sweeps what dead ones left behind. `bases`: look only there."""
    machines = []
    for base in base_folders() if bases is None else bases:
        with contextlib.suppress(FileNotFoundError, RunDirError), _locked_base(base, create=False) as held:
            machines += _sweep(base, held)
            with contextlib.suppress(OSError):
                base.rmdir()  # only if it is empty
    return sorted(machines, key=lambda machine: (machine.name, machine.started_wall_ns))


def resolve(name: str | None) -> MachineFolder:
    """The machine of that name, or the only one. MachineNotFound: the text says what to do."""
    machines = find_machines()
    names = ", ".join(machine.name for machine in machines)
    if not machines:
        raise MachineNotFound("no machine runs; start one with: partvisor run CONFIG")
    if name is None:
        if len(machines) > 1:
            raise MachineNotFound(f"{len(machines)} machines run; choose one with --machine: {names}")
        return machines[0]
    for machine in machines:
        if machine.name == name:
            return machine
    raise MachineNotFound(f"no machine named {name!r} runs; these do: {names}")


def _create(name: str) -> tuple[MachineFolder, int]:
    refusals = []
    for base in base_folders():
        try:
            return _create_at(base, name)
        except (OSError, RunDirError) as error:
            refusals.append(str(error))
    raise RunDirError(
        f"no place for the runtime folder ({'; '.join(refusals)}); set XDG_RUNTIME_DIR to a folder of yours"
    )


def _create_at(base: Path, name: str) -> tuple[MachineFolder, int]:
    folder_name = f"{name}.{secrets.token_hex(_TOKEN_BYTES)}"
    assert _FOLDER_PATTERN.fullmatch(folder_name), name
    if len(os.fsencode(base / folder_name / "management")) > SOCKET_PATH_BYTES_MAX:
        raise RunDirError(f"{base}: too long for a socket's path")
    for _ in range(_ATTEMPTS_MAX):
        try:
            with _locked_base(base, create=True) as held:
                return _create_in(base, held, folder_name, name)
        except FileNotFoundError:  # a janitor, who takes no lock, removed the empty base under us
            if not base.parent.is_dir():
                raise
    raise RunDirError(f"{base} keeps vanishing")


def _create_in(base: Path, held: Path, folder_name: str, name: str) -> tuple[MachineFolder, int]:
    """The base is locked, so nobody takes our folder for a leftover before its lock is held.

    FileNotFoundError: the base is not there any more.
    """
    for machine in _sweep(base, held):
        if machine.name == name:
            raise MachineExists(
                f"machine {name!r} runs already (pid {machine.pid});"
                f" stop it with: partvisor stop --machine {name}"
            )
    path = held / folder_name
    path.mkdir(mode=0o700)
    try:
        lock_fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            record = LockRecord(name, os.getpid(), time.time_ns())
            os.write(lock_fd, msgspec.json.encode(record))
        except BaseException:
            os.close(lock_fd)
            raise
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return MachineFolder(base / folder_name, name, record.pid, record.started_wall_ns), lock_fd


@contextlib.contextmanager
def _locked_base(base: Path, *, create: bool) -> Iterator[Path]:
    """Hold the base folder's own lock: one process at a time creates or sweeps. The path given leads to that folder.

    Who takes no lock may remove the folder while it is empty, and the next machine makes another in its place: there
    the lock says nothing, and `base` would lead there.

    FileNotFoundError: there is no such folder.
    """
    for _ in range(_ATTEMPTS_MAX):
        if create:
            with contextlib.suppress(FileExistsError):
                base.mkdir(mode=0o700)
        try:
            fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            if create and base.parent.is_dir():
                continue  # another machine just removed it
            raise
        try:
            status = os.fstat(fd)
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
                raise RunDirError(f"{base} is not private to this user; remove it")
            fcntl.flock(fd, fcntl.LOCK_EX)
            try:
                still_there = os.path.samestat(status, base.stat(follow_symlinks=False))
            except FileNotFoundError:
                still_there = False
            if still_there:
                yield Path(f"/proc/self/fd/{fd}")
                return
        finally:
            os.close(fd)
        if not create:
            raise FileNotFoundError(base)
    raise RunDirError(f"{base} keeps vanishing")


def _sweep(base: Path, held: Path) -> list[MachineFolder]:
    """The live machines under a locked base; the folders of dead ones are removed."""
    machines = []
    for path in held.iterdir():
        if not _FOLDER_PATTERN.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue  # not ours
        record = _read_live_lock(path)
        if record is None:
            shutil.rmtree(path, ignore_errors=True)
        else:
            machines.append(MachineFolder(base / path.name, record.name, record.pid, record.started_wall_ns))
    return machines


def _read_live_lock(path: Path) -> LockRecord | None:
    """None: nobody holds the lock of this folder, or there is none."""
    try:
        fd = os.open(path / "lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return msgspec.json.decode(os.read(fd, LOCK_BYTES_MAX), type=LockRecord)
        return None
    except msgspec.DecodeError:
        return LockRecord(path.name.rpartition(".")[0], 0, 0)  # held, but not by a platform that we know
    finally:
        os.close(fd)


@contextlib.contextmanager
def janitor(path: Path, around: Path | None = None, cgroups: Iterable[str] = ()) -> Iterator[None]:
    """Run the process that removes `path` when we end, in whatever way; and `around`, if that is empty then; and what
    there is of `cgroups`, which are patterns."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _JANITOR, "partvisor-janitor", str(path), str(around or ""), *cgroups],
                stdin=read_fd,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # a Ctrl-C or a closing terminal must not reach it
            )
        finally:
            os.close(read_fd)
        try:
            assert process.stdout is not None
            with process.stdout:
                if not process.stdout.read(1):
                    raise RunDirError("the process that would clean up behind the machine did not start")
            yield
        finally:
            os.close(write_fd)
            write_fd = -1
            try:
                process.wait(_JANITOR_GRACE_MS / 1000)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        if write_fd >= 0:
            os.close(write_fd)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()  # only if no other machine is there
