"""A process's descriptors and shared mappings, as the kernel tells of them in /proc."""

import contextlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class Descriptor:
    number: int
    link: str  # "socket:[2314139]", "/memfd:slot-1 (deleted)", "/dev/null"
    device: int
    inode: int
    writable: bool
    path_only: bool = False  # O_PATH: it names a file, and neither reads nor writes it
    eventfd: int | None = None  # the kernel's id of it
    target: int | None = None  # pid: of a pidfd; 0 or less: that process is gone, or in no namespace of ours


@dataclass(frozen=True, slots=True)
class SharedMapping:
    """One that others could see the writes of. Private ones, such as code, reach nobody."""

    device: int
    inode: int
    path: str
    writable: bool
    pages: int


@dataclass(frozen=True, slots=True)
class ProcessFiles:
    pid: int
    descriptors: tuple[Descriptor, ...] = ()
    mappings: tuple[SharedMapping, ...] = ()
    unreadable: str | None = None  # why nothing more is known of it
    words: tuple[str, ...] = ()  # of its command line, which anybody may read; of an unreadable one


@dataclass(frozen=True, slots=True)
class Census:
    """The processes of one machine: those below its platform."""

    platform: int
    names: dict[int, str] = field(default_factory=dict)  # what each calls itself
    parents: dict[int, int] = field(default_factory=dict)


def take_census(platform: int) -> Census:
    """Everyone who descends from the platform, and the platform."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError):  # it has just ended
            text = (entry / "stat").read_text(errors="replace")
            before, _, after = text.rpartition(")")
            state, parent = after.split()[:2]
            if state not in "ZX":
                names[int(entry.name)] = before.partition("(")[2]
                parents[int(entry.name)] = int(parent)
    children: dict[int, list[int]] = {}
    for pid, parent_pid in parents.items():
        children.setdefault(parent_pid, []).append(pid)
    found, todo = Census(platform), [platform]
    while todo:
        pid = todo.pop()
        if pid in names and pid not in found.names:
            found.names[pid], found.parents[pid] = names[pid], parents[pid]
            todo += children.get(pid, [])
    return found


def read_process(pid: int) -> ProcessFiles | None:
    """None: it has ended."""
    try:
        descriptors = tuple(_descriptors(pid))
        mappings = tuple(_mappings(pid))
    except PermissionError as error:
        return ProcessFiles(
            pid, unreadable=f"its /proc may not be read: {error.strerror}", words=_command_line(pid)
        )
    except (FileNotFoundError, ProcessLookupError):
        return None
    return ProcessFiles(pid, descriptors, mappings)


def _command_line(pid: int) -> tuple[str, ...]:
    with contextlib.suppress(OSError):  # it has ended
        text = (_PROC / str(pid) / "cmdline").read_text(errors="replace")
        return tuple(text.removesuffix("\0").split("\0"))
    return ()


def _descriptors(pid: int) -> Iterator[Descriptor]:
    folder = _PROC / str(pid) / "fd"
    for entry in sorted(folder.iterdir(), key=lambda one: int(one.name)):
        try:
            status, link = entry.stat(), str(entry.readlink())
            facts = _facts((_PROC / str(pid) / "fdinfo" / entry.name).read_text())
        except FileNotFoundError:
            continue  # closed meanwhile
        flags = int(facts.get("flags", "0"), 8)
        yield Descriptor(
            int(entry.name),
            link,
            status.st_dev,
            status.st_ino,
            flags & os.O_ACCMODE != os.O_RDONLY,
            bool(flags & os.O_PATH),
            int(facts["eventfd-id"]) if "eventfd-id" in facts else None,
            int(facts["Pid"]) if "Pid" in facts else None,
        )


def _facts(text: str) -> dict[str, str]:
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in lines}


def _mappings(pid: int) -> Iterator[SharedMapping]:
    for line in (_PROC / str(pid) / "maps").read_text(errors="replace").splitlines():
        words = line.split(maxsplit=5)
        if len(words) < 5 or words[1][3] != "s":
            continue
        start, end = (int(part, 16) for part in words[0].split("-"))
        major, minor = (int(part, 16) for part in words[3].split(":"))
        path = words[5] if len(words) == 6 else ""
        pages = (end - start) // mmap.PAGESIZE
        yield SharedMapping(os.makedev(major, minor), int(words[4]), path, "w" in words[1], pages)
