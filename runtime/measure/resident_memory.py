"""How much memory each process of a machine keeps, such that the sum means something.

Processes that are forked from one another share most of their pages. So each counts for its share of a page that
several have (Pss). Where /proc does not show that for one of them, all count with the whole of what they have (Rss).
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_PAGE_BYTES: Final = 4096
ZYGOTE: Final = "zygote"
_ZYGOTE_NAME: Final = "pv-zygote"  # of its process


def resident_bytes(pids: Mapping[str, int], hypervisor: str) -> dict[str, int]:
    """Of each, by name; the process that partitions are forked from is found and added. Gone ones have none."""
    everyone = dict(pids)
    if (zygote := _find_zygote(pids.get(hypervisor, 0))) is not None:
        everyone[ZYGOTE] = zygote
    try:
        return {name: _proportional(pid) for name, pid in everyone.items()}
    except PermissionError:
        return {name: _whole(pid) for name, pid in everyone.items()}


def _find_zygote(hypervisor: int) -> int | None:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{hypervisor}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                if Path(f"/proc/{child}/comm").read_text().strip() == _ZYGOTE_NAME:
                    return child
    return None


def _proportional(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def _whole(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0
