"""Attacks by descriptors and files: numbers that might be open, /proc of others, sockets and files by their names."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from partitions.guests.hostile.scene import Scene
from partitions.guests.hostile.tally import Tally
from partitions.guests.hostile.walls import require_walls

_NUMBERS: Final = 4096
_PIDS_AROUND: Final = 40
_FILES_OF_A_PROCESS: Final = ("fd/0", "fd/3", "fd/7", "mem", "maps", "environ", "root/etc/passwd", "cwd")


def descriptors_of_others(scene: Scene, tally: Tally) -> None:
    require_walls()
    for number in range(_NUMBERS):
        try:
            status = os.fstat(number)
        except OSError:
            tally.met("EBADF")
            continue
        if (what := _is_no_business_of_ours(number, status)) is not None:
            tally.made += 1
            tally.breach(f"descriptor {number} is open: {what}")
        else:
            tally.met("its own")
    for pid in _others(scene):
        for name in _FILES_OF_A_PROCESS:
            tally.system_call(f"open /proc/{pid}/{name}", lambda: _open(f"/proc/{pid}/{name}"))  # noqa: B023
        if not scene.goes_on() and tally.made > _NUMBERS + 100:
            return


def _is_no_business_of_ours(number: int, status: os.stat_result) -> str | None:
    """A file, a folder or a device: a partition has none but those that its config names, and this one has FIFOs."""
    kind = stat.S_IFMT(status.st_mode)
    if kind in (stat.S_IFSOCK, stat.S_IFIFO, 0):  # 0: an eventfd, or the like of it
        return None
    name = str(Path(f"/proc/self/fd/{number}").readlink())
    if kind == stat.S_IFREG and name.startswith("/memfd:"):
        return None
    if kind == stat.S_IFCHR and name == "/dev/null":
        return None
    return name


def _others(scene: Scene) -> Iterator[int]:
    """Who was named to us, our parent's process, and whoever has a number near our own."""
    own = os.getpid()
    yield from (int(pid) for pid in scene.args.get("pids", ()))
    yield os.getppid()
    yield 1
    for distance in range(1, _PIDS_AROUND):
        yield own - distance


def _open(path: str, flags: int = os.O_RDONLY) -> None:
    os.close(os.open(path, flags))


def management_socket(scene: Scene, tally: Tally) -> None:
    require_walls()
    for path in scene.args.get("sockets", ()):
        tally.system_call(f"socket for {path}", lambda: socket.socket(socket.AF_UNIX).close())
        one, other = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with one, other:
            tally.system_call(f"connect to {path}", lambda: one.connect(path))  # noqa: B023
            tally.system_call(f"bind to {path}x", lambda: one.bind(path + "x"))  # noqa: B023
        tally.system_call(f"open {path}", lambda: _open(path))  # noqa: B023
        tally.system_call(f"remove {path}", lambda: os.unlink(path))  # noqa: B023, PTH108
    tally.system_call("abstract socket", lambda: socket.socket(socket.AF_UNIX).connect("\0partvisor"))


def files_of_others(scene: Scene, tally: Tally) -> None:
    """Files of the host are only opened; what changes them is tried on this machine's own."""
    require_walls()
    own = tuple(scene.args.get("files", ()))
    for path in (*own, "/etc/passwd", "/etc/shadow", "/dev/shm", "/dev/vda", "/dev/sda"):
        tally.system_call(f"read {path}", lambda: _open(path))  # noqa: B023
        tally.system_call(f"write {path}", lambda: _open(path, os.O_RDWR))  # noqa: B023
    if tally.breaches:
        return  # it is proven already, and need not hurt
    for path in own:
        tally.system_call(f"make {path}.x", lambda: _open(f"{path}.x", os.O_CREAT | os.O_WRONLY))  # noqa: B023
        tally.system_call(f"rename {path}", lambda: os.rename(path, f"{path}.x"))  # noqa: B023, PTH104
        tally.system_call(f"truncate {path}", lambda: os.truncate(path, 0))  # noqa: B023
