"""Who sees the guests' data: found in /proc, of the running machine, without knowing how it was built.

A process sees it if it maps pages that are a guest's, if it has a backing file open, or if a socket joins it to one
that sees it. Sockets to the hypervisor and to the platform do not count: they carry calls and events, and every
process has them. The hypervisor holds the descriptor of every page, so it *could* map them; that is not seeing, and is
reported by itself.

`Survey` is all that others need; whoever can tell it better may put another function in the place of `survey`.
"""

import re
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from runtime.authority.proc_files import ProcessFiles, read_process
from runtime.authority.socket_peers import read_sockets

HYPERVISOR: Final = "hypervisor"
_SLOT: Final = re.compile(
    r"/memfd:(slot-\S+|disk)"
)  # a partition's pages; those of its interrupts are called else
_MAPS, _HAS_FILE = "maps guest pages", "has the backing file"
_SOCKET: Final = re.compile(r"socket:\[([0-9]+)\]")


@dataclass(frozen=True, slots=True)
class View:
    """What /proc shows of one process."""

    slots_mapped: frozenset[int]  # inodes of partitions' memory
    slots_held: frozenset[str]  # by name, of descriptors: what it could map
    sockets: frozenset[int]  # inodes
    files: frozenset[Path]  # that are open

    @classmethod
    def of(cls, process: ProcessFiles) -> Self:
        mapped = (each.inode for each in process.mappings if _SLOT.match(each.path))
        links = [each.link for each in process.descriptors]
        return cls(
            slots_mapped=frozenset(mapped),
            slots_held=frozenset(link.split()[0] for link in links if _SLOT.match(link)),
            sockets=frozenset(int(found[1]) for link in links if (found := _SOCKET.fullmatch(link))),
            files=frozenset(Path(link) for link in links if link.startswith("/") and not _SLOT.match(link)),
        )


@dataclass(frozen=True, slots=True)
class Survey:
    """Of one machine at one moment. Names are those of its partitions."""

    seen_by: Mapping[str, tuple[str, ...]]  # process -> how: "maps guest pages", ...; without the guests
    could_map: tuple[str, ...]  # hold descriptors of guest pages, and map none
    hidden: tuple[str, ...]  # processes that this user may not look into
    sockets_known: bool = True  # whether the kernel says which sockets are joined

    @property
    def is_complete(self) -> bool:
        return not self.hidden and self.sockets_known

    def with_more(self, later: "Survey") -> "Survey":
        """What either look has found: a connection may be made late, and a process may have ended by then."""
        seen = {
            name: tuple(dict.fromkeys((*self.seen_by.get(name, ()), *later.seen_by.get(name, ()))))
            for name in (*self.seen_by, *later.seen_by)
        }
        could = dict.fromkeys((*self.could_map, *later.could_map))
        return Survey(
            seen,
            tuple(name for name in could if name not in seen),
            tuple(dict.fromkeys((*self.hidden, *later.hidden))),
            self.sockets_known and later.sockets_known,
        )


def survey(pids: Mapping[str, int], guests: Collection[str], backing: Collection[Path]) -> Survey:
    """Look at the processes of a machine now. `backing`: files that its devices are kept in."""
    views: dict[str, View] = {}
    hidden: list[str] = []
    for name, pid in pids.items():
        if (files := read_process(pid)) is None:  # it has just ended
            continue
        if files.unreadable is not None:
            hidden.append(name)
        else:
            views[name] = View.of(files)
    try:
        peers: Mapping[int, int] | None = {
            inode: facts.peer for inode, facts in read_sockets().items() if facts.peer is not None
        }
    except OSError:
        peers = None
    return deduce(views, guests, {file.resolve() for file in backing}, peers, hidden)


def deduce(
    views: Mapping[str, View],
    guests: Collection[str],
    backing: Collection[Path],
    peers: Mapping[int, int] | None,
    hidden: Collection[str] = (),
) -> Survey:
    """Pure: from what each process has to who sees the data. `peers` None: the kernel did not say."""
    guest_slots = {inode for name in guests if name in views for inode in views[name].slots_mapped}
    ways: dict[str, list[str]] = {}
    for name, view in views.items():
        if name in guests:
            continue
        found = []
        if view.slots_mapped & guest_slots:
            found.append(_MAPS)
        if view.files & set(backing):
            found.append(_HAS_FILE)
        if found:
            ways[name] = found
    ways = dict(sorted(ways.items(), key=lambda item: _MAPS not in item[1]))  # the nearest to the guest first
    _follow_sockets(views, guests, peers or {}, ways)
    could = tuple(
        name
        for name, view in views.items()
        if name not in ways and name not in guests and name == HYPERVISOR and view.slots_held
    )
    return Survey(
        {name: tuple(found) for name, found in ways.items()}, could, tuple(hidden), peers is not None
    )


def _follow_sockets(
    views: Mapping[str, View],
    guests: Collection[str],
    peers: Mapping[int, int],
    ways: dict[str, list[str]],
) -> None:
    """Add whoever a socket joins to a process that sees the data, and those joined to them, and so on."""
    owners: dict[int, set[str]] = {}
    for name, view in views.items():
        for inode in view.sockets:
            owners.setdefault(inode, set()).add(name)
    apart = {HYPERVISOR}
    waiting = deque([*(name for name in guests if name in views), *ways])
    done: set[str] = set()
    while waiting:
        name = waiting.popleft()
        if name in done or name in apart:
            continue
        done.add(name)
        for inode in views[name].sockets:
            for other in owners.get(peers.get(inode, 0), set()) - {name, *apart, *guests}:
                if other not in done:  # otherwise it was there before us: the data goes from it to us
                    how = f"a socket joins it to {name}"
                    ways[other] = [*(one for one in ways.get(other, ()) if one != how), how]
                    waiting.append(other)
