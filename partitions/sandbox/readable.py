"""What of the host's files a partition may read: its Python, and nothing of its user's.

Of a folder that Python searches for modules, only what can be imported: so a project's folder in PYTHONPATH, or the
home folder, does not hand over the disk images and keys in it. The list is made once, when the zygote starts: each
entry is an open descriptor (O_PATH), which costs a partition one system call.
"""

import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final, Self

ENTRIES_MAX: Final = 1024  # importable things beside the libraries; the rest can't be imported in a partition
_LIBRARIES: Final = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")  # shared objects
_FILES: Final = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo", "/dev/urandom", "/dev/zero")
_SUFFIXES: Final = (".py", ".pyc", ".so")
_DISTRIBUTIONS: Final = (".dist-info", ".egg-info")


@dataclass(frozen=True, slots=True)
class Entry:
    """Owns the descriptor."""

    path: str
    descriptor: int
    is_folder: bool


@dataclass(slots=True)
class Readable:
    entries: list[Entry] = field(default_factory=list)
    listed: list[Entry] = field(default_factory=list)  # folders whose names may be listed, below them, too

    @classmethod
    def find(cls) -> Self:
        readable = cls()
        libraries = {*_LIBRARIES, *_library_folders()}
        for path in (*sorted(libraries), *_FILES):
            readable._add(path)
        for path in sorted(_search_path() - libraries):
            if any(Path(path).is_relative_to(library) for library in libraries):
                continue
            if Path(path).is_dir():
                readable._add(path, readable.listed)
                for item in _importable(path):
                    readable._add(item)
            else:
                readable._add(path)
        for path in _editable():
            readable._add(path)
        return readable

    def _add(self, path: str, to: list[Entry] | None = None) -> None:
        entries = self.entries if to is None else to
        if len(entries) >= ENTRIES_MAX:
            return
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:  # it is not on this host
            return
        entries.append(Entry(path, descriptor, Path(path).is_dir()))

    def close(self) -> None:
        for entry in (*self.entries, *self.listed):
            os.close(entry.descriptor)
        self.entries, self.listed = [], []


@cache
def of_this_interpreter() -> Readable:
    """The one that the zygote has made; all that it forks have it, too."""
    return Readable.find()


def _library_folders() -> set[str]:
    """Where Python and installed packages are. The user's own are among them, if they are in use."""
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")}
    folders |= {str(Path(sys.base_prefix) / "lib")}
    return {folder for folder in folders if folder and folder not in ("/", site.getuserbase())}


def _search_path() -> set[str]:
    return {str(Path(path).absolute()) for path in sys.path if path}


def _importable(folder: str) -> Iterator[str]:
    """What a module search may find in it: modules, and folders that hold any."""
    try:
        items = sorted(os.scandir(folder), key=lambda item: item.name)
    except OSError:
        return
    for item in items:
        if item.name.endswith(_SUFFIXES if not item.is_dir() else _DISTRIBUTIONS) or (
            item.is_dir() and item.name.isidentifier() and _holds_modules(item.path)
        ):
            yield item.path


def _holds_modules(folder: str) -> bool:
    try:
        return any(item.suffix in (".py", ".so") for item in Path(folder).iterdir())
    except OSError:
        return False


def _editable() -> Iterator[str]:
    """Packages that an installer has mapped to a source tree, outside the search path."""
    for name, module in list(sys.modules.items()):
        if name.startswith("__editable__"):
            mapping = getattr(module, "MAPPING", None)
            if isinstance(mapping, dict):
                yield from (str(path) for path in mapping.values())
