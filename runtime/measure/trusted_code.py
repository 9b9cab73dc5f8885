"""How much code has to be right for a guest's data to be safe, and the machine to stay up: counted, in bytes.

Two kinds of bytes, added up: the source text of each Python module that a process has loaded, and the executable pages
that it has mapped of each program and shared object. A file counts once, in however many processes it is. "Ours" is
what belongs to partvisor; the rest is the interpreter's, its library's and other people's packages'.
"""

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

OUR_FOLDERS: Final = tuple(
    f"{Path(__file__).parents[2] / name}/" for name in ("bus", "runtime", "partitions")
)
_SHARED_OBJECT: Final = ".so"


@dataclass(frozen=True, slots=True)
class CodeBytes:
    ours: int
    others: int

    @property
    def total(self) -> int:
        return self.ours + self.others


@dataclass(frozen=True, slots=True)
class ProcessCode:
    """What one process has loaded: bytes by file."""

    sources: Mapping[str, int]
    mapped: Mapping[str, int]

    @classmethod
    def of(cls, modules: Iterable[str], mapped: Mapping[str, int]) -> Self:
        """`modules`: files of its Python modules, as it says itself; `mapped`: as `mapped_code` says."""
        sources = {
            file: size
            for file in modules
            if not file.endswith(_SHARED_OBJECT) and (size := _size(file)) is not None
        }
        return cls(sources, mapped)


def mapped_code(pid: int) -> dict[str, int]:
    """Executable bytes of each file that a process has mapped, in whole pages. OSError: it is not to be seen."""
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and "x" in fields[1] and fields[5].startswith("/"):
            start, end = (int(part, 16) for part in fields[0].split("-"))
            found[fields[5]] = found.get(fields[5], 0) + end - start
    return found


def added_up(processes: Collection[ProcessCode], folders: tuple[str, ...] = OUR_FOLDERS) -> CodeBytes:
    """Of all of them together, each file once."""
    files: dict[str, int] = {}
    for process in processes:
        for kind in (process.sources, process.mapped):
            for file, size in kind.items():
                files[file] = max(files.get(file, 0), size)
    ours = sum(size for file, size in files.items() if file.startswith(folders))
    return CodeBytes(ours, sum(files.values()) - ours)


def added_in_turn(
    processes: Sequence[ProcessCode], folders: tuple[str, ...] = OUR_FOLDERS
) -> list[CodeBytes]:
    """What each of them has and none before it; they add up to `added_up` of all."""
    sums = [added_up(processes[:count], folders) for count in range(len(processes) + 1)]
    return [
        CodeBytes(after.ours - before.ours, after.others - before.others)
        for before, after in itertools.pairwise(sums)
    ]


def _size(file: str) -> int | None:
    try:
        return Path(file).stat().st_size
    except OSError:  # frozen into the interpreter, or in an archive
        return None
