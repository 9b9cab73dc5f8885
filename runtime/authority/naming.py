"""From the kernel's numbers to names: what each descriptor and mapping of a machine's processes stands for.

The hypervisor says what it made (`runtime.hypervisor.object_inventory`), the root what it uses guests' pages for, and
the kernel who is at the other end of a socket. What none of them explains is unexplained, unless no other process of
the machine has it.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

from runtime.authority.proc_files import Census, Descriptor, ProcessFiles, SharedMapping
from runtime.authority.process_names import ProcessNames, Row, Tables
from runtime.authority.socket_peers import SocketFacts
from runtime.authority.vocabulary import (
    CAPTURES,
    HYPERVISOR,
    PLATFORM,
    ROOT,
    STREAM_CHANNELS,
    USER_NETWORK,
    Holding,
    Kind,
    channel_of,
    doorbell_of,
    streams_of,
    viewers_of,
)
from runtime.machine.listening_sockets import clients_at
from runtime.machine.rundir import CAPTURE_NAME, screen_of, stream_of

_HARMLESS_FILES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_HARMLESS_ANONYMOUS: Final = ("eventpoll", "timerfd", "signalfd", "inotify", "landlock-ruleset")
_LIBRARY_DATA: Final = ("/usr/lib/", "/lib/", "/usr/share/")  # read-only mappings of the system's files
_OURS: Final = (
    "slot-",
    "sim-",
    "sief-",
    "statistics-",
    "interrupts-",
    "reference-",
)  # memory the hypervisor made
_STREAM_PREFIX: Final = "stream:"  # of what the root calls the channel of one
_STREAMS: Final = {0: "stdin", 1: "stdout", 2: "stderr"}
_SHARED_SOCKETS: Final = ("console", "lent")  # of these the hypervisor has the very end that others have, too
_SOCKET_KINDS: Final = (*_SHARED_SOCKETS, "hypercalls", "zygote", "standby", "endpoint")
_EVENT_KINDS: Final = ("line", "doorbell", "kick", "watch")
_MEMORY_KINDS: Final = {
    "slot": Kind.PAGES,
    "sim": Kind.SYNIC,
    "sief": Kind.SYNIC,
    "vectors": Kind.VECTORS,
    "reference": Kind.REFERENCE,
    "statistics": Kind.STATISTICS,
}


@dataclass(slots=True)
class _Process:
    files: ProcessFiles
    name: str
    partition: int | None
    found: list[Holding] = field(default_factory=list)


class Naming:
    """One look at one machine."""

    def __init__(
        self,
        census: Census,
        everything: Iterable[ProcessFiles],
        tables: Tables,
        sockets: Mapping[int, SocketFacts],
        expected: Collection[str] = (),
    ) -> None:
        """`expected`: processes beside the hypervisor's partitions that the config asks for, by name."""
        self._tables, self._sockets = tables, sockets
        self._paths = {row["id"]: str(row["name"]) for row in tables.partitions}
        self._known = ProcessNames(census, tables, expected)
        self.strangers: Final = self._known.strangers
        self._processes = [
            _Process(files, self._known.of(files.pid), self._known.partition_of(files.pid))
            for files in everything
        ]
        self._objects = {
            (row["kind"] in _EVENT_KINDS, row["number"]): row
            for row in tables.objects
            if row["kind"] in _EVENT_KINDS or row["kind"] in _MEMORY_KINDS
        }
        self._our_sockets = {row["number"]: row for row in tables.objects if row["kind"] in _SOCKET_KINDS}
        self._holders: defaultdict[tuple[object, ...], set[str]] = defaultdict(set)
        self._streams: dict[tuple[int, int], str] = {}
        self._platforms_memory: dict[tuple[int, int], str] = {}
        self._memory_devices = {
            (one.device, one.inode)
            for process in self._processes
            for one in process.files.descriptors
            if one.link.startswith("/memfd:")
        }
        self._note()

    @property
    def unreadable(self) -> dict[str, str]:
        return {one.name: one.files.unreadable for one in self._processes if one.files.unreadable is not None}

    @property
    def processes(self) -> dict[str, int]:
        return {one.name: one.files.pid for one in self._processes}

    def holdings(self) -> list[Holding]:
        """One for each thing that a process has, however often it has it."""
        merged: dict[tuple[object, ...], Holding] = {}
        for process in self._processes:
            names = [self._of_descriptor(process, one) for one in process.files.descriptors]
            names += [self._of_mapping(process, one) for one in process.files.mappings]
            for held in names:
                key = (held.process, held.kind, held.subject, held.what)
                if (earlier := merged.get(key)) is not None:
                    held = replace(
                        held,
                        access=max(earlier.access, held.access, key=len),
                        mapped_pages=earlier.mapped_pages + held.mapped_pages,
                        descriptors=earlier.descriptors + held.descriptors,
                        sanctioned=earlier.sanctioned and held.sanctioned,
                    )
                merged[key] = held
        return list(merged.values())

    # -- who else has it

    def _note(self) -> None:
        for process in self._processes:
            for one in process.files.descriptors:
                self._holders[_identity(one)].add(process.name)
                if process.name != PLATFORM:
                    continue
                if one.number in _STREAMS:
                    self._streams.setdefault((one.device, one.inode), _STREAMS[one.number])
                if one.link.startswith("/memfd:"):
                    name = one.link.removeprefix("/memfd:").removesuffix(" (deleted)")
                    self._platforms_memory[one.device, one.inode] = name
            for mapping in process.files.mappings:
                self._holders["file", mapping.device, mapping.inode].add(process.name)
        self._note_inherited()

    def _note_inherited(self) -> None:
        """passt lets no ordinary user look into it. Which of the platform's sockets it was started with, it was told in
        words."""
        numbers = {
            _told_socket(process.files.words)
            for process in self._processes
            if process.name == USER_NETWORK and process.files.unreadable is not None
        }
        for process in self._processes:
            for one in process.files.descriptors:
                if process.name == PLATFORM and str(one.number) in numbers and one.link.startswith("socket:"):
                    self._holders[_identity(one)].add(USER_NETWORK)

    def _others(self, process: _Process, identity: tuple[object, ...]) -> list[str]:
        return sorted(self._holders[identity] - {process.name})

    # -- descriptors

    def _of_descriptor(self, process: _Process, one: Descriptor) -> Holding:
        link = one.link
        if link.startswith("socket:"):
            held = self._socket(process, one)
        elif link.startswith("/memfd:"):
            held = self._memory(process, one.device, one.inode, link, one.writable)
        elif link.startswith("anon_inode:"):
            held = self._anonymous(process, one)
        elif link in _HARMLESS_FILES:
            held = self._own(process, link)
        elif one.path_only:
            held = self._hold(process, Kind.PLACE, link, False, link)
        elif stream := self._streams.get((one.device, one.inode)):
            held = self._hold(process, Kind.STREAM, stream, one.writable, link)
        elif link.startswith("pipe:"):
            held = self._private(process, one, Kind.PIPE)
        elif link.startswith("/"):
            is_platforms = process.name == PLATFORM and link.endswith("/lock")
            held = (
                self._own(process, link)
                if is_platforms
                else self._hold(process, Kind.FILE, link, one.writable, link)
            )
        else:
            held = self._unexplained(process, f"{link} as descriptor {one.number}")
        return replace(held, descriptors=1)

    def _anonymous(self, process: _Process, one: Descriptor) -> Holding:
        what = one.link.removeprefix("anon_inode:").strip("[]")
        if one.eventfd is not None:
            if (row := self._objects.get((True, one.eventfd))) is not None:
                return self._doorbell(process, row)
            return self._private(process, one, None)
        if one.target is not None:
            whom = self._known.of(one.target)
            return self._hold(process, Kind.PROCESS, whom, True, "pidfd")
        if what in _HARMLESS_ANONYMOUS:
            return self._own(process, what)
        return self._unexplained(process, f"{one.link} as descriptor {one.number}")

    def _doorbell(self, process: _Process, row: Row) -> Holding:
        owner = self._path(row.get("owner"))
        match row["kind"]:
            case "line":
                return self._hold(process, Kind.LINE, owner, True, f"interrupts VP {row['vp']} of {owner}")
            case "watch":
                return self._hold(process, Kind.WATCH, owner, True, f"tells {owner} of its children")
        sender = self._path(row.get("from"))
        way = "through the hypervisor" if row["kind"] == "kick" else "directly"
        subject = doorbell_of(owner, sender)
        return self._hold(process, Kind.DOORBELL, subject, True, f"port {row.get('port')} of {owner}, {way}")

    def _socket(self, process: _Process, one: Descriptor) -> Holding:
        facts = self._sockets.get(one.inode)
        if (row := self._row_of_socket(process, one.inode, facts)) is not None:
            return self._named_socket(process, row)
        if facts is None:  # of a namespace of its own: it reaches who is in there
            return self._private(process, one, None)
        if facts.path is not None and process.name in (PLATFORM, HYPERVISOR):
            return self._own(process, f"listens or was called at {facts.path}")
        if (given := self._handed_on(facts)) is not None:
            return self._hold(process, Kind.SOCKET, given, True, "socket")
        if facts.path is not None and (screen := screen_of(Path(facts.path))) is not None:
            return self._hold(process, Kind.SOCKET, viewers_of(screen), True, f"called at {facts.path}")
        if facts.path is not None and (clients := clients_at(Path(facts.path))) is not None:
            return self._hold(process, Kind.SOCKET, clients, True, f"listens or was called at {facts.path}")
        if facts.path is not None:
            return self._hold(process, Kind.FILE, facts.path, True, f"listens or was called at {facts.path}")
        if facts.peer is None:
            return self._private(process, one, None)
        peers, others = self._holders["socket", facts.peer], self._others(process, ("socket", one.inode))
        if USER_NETWORK in peers:
            peers = peers - {PLATFORM}  # which keeps it for the next passt, and starts that
        if process.name == USER_NETWORK:
            others = [other for other in others if other != PLATFORM]
        if not others and peers <= {process.name}:
            return self._own(process, "socket" if peers else "socket whose other end is not in this machine")
        subject = ", ".join(sorted(peers - {process.name})) or process.name
        if others and process.name != PLATFORM:
            return self._unexplained(process, f"socket to {subject}, shared with {', '.join(others)}")
        return self._hold(process, Kind.SOCKET, subject, True, "socket")

    def _handed_on(self, facts: SocketFacts) -> str | None:
        """Who outside of the machine is at the other end of a socket that the platform hands on."""
        dialled = facts.path is None
        known = facts if not dialled or facts.peer is None else self._sockets.get(facts.peer)
        if known is None or known.path is None:
            return None
        path = Path(known.path)
        if path.name == CAPTURE_NAME:
            return None if dialled else CAPTURES
        partition = stream_of(path, dialled=dialled)
        return None if partition is None else streams_of(partition)

    def _row_of_socket(self, process: _Process, inode: int, facts: SocketFacts | None) -> Row | None:
        """What the hypervisor says of it, or of its other end."""
        own = self._our_sockets.get(inode)
        if own is not None and (process.name == HYPERVISOR or own["kind"] in _SHARED_SOCKETS):
            return own
        peer = None if facts is None or facts.peer is None else self._our_sockets.get(facts.peer)
        return None if peer is None or peer["kind"] in _SHARED_SOCKETS else peer

    def _named_socket(self, process: _Process, row: Row) -> Holding:
        match row["kind"]:
            case "hypercalls":
                whom = self._path(row["owner"])
                return self._hold(process, Kind.HYPERCALLS, whom, True, f"hypercalls of {whom}")
            case "standby":
                return self._hold(process, Kind.HYPERCALLS, "standby", True, "hypercalls of the next root")
            case "console":
                return self._hold(process, Kind.CONSOLE, PLATFORM, True, "the machine's log")
            case "lent":
                return self._hold(process, Kind.FIRMWARE, ROOT, True, "the root's firmware")
            case "zygote" if process.name == HYPERVISOR:
                return self._hold(process, Kind.SOCKET, "zygote", True, "asks it for processes")
            case "zygote":
                return self._hold(process, Kind.SOCKET, HYPERVISOR, True, "is asked for processes")
            case kind:
                return self._hold(process, Kind.SOCKET, HYPERVISOR, True, str(kind))

    # -- memory

    def _of_mapping(self, process: _Process, one: SharedMapping) -> Holding:
        if (one.device, one.inode) in self._memory_devices or one.path.startswith("/memfd:"):
            held = self._memory(process, one.device, one.inode, one.path, one.writable)
        elif one.path.startswith("/[aio]") or (not one.writable and one.path.startswith(_LIBRARY_DATA)):
            held = self._own(process, one.path.removesuffix(" (deleted)"))
        elif one.path.startswith(("/dev/zero", "/SYSV")) or not one.path:
            others = self._others(process, ("file", one.device, one.inode))
            held = self._own(process, "memory")
            if others and one.inode:
                held = self._unexplained(process, f"memory {one.path!r}, shared with {', '.join(others)}")
        elif one.path in _HARMLESS_FILES:
            held = self._own(process, one.path)
        else:
            held = self._hold(process, Kind.FILE, one.path, one.writable, one.path)
        return replace(held, mapped_pages=one.pages)

    def _memory(self, process: _Process, device: int, inode: int, link: str, writable: bool) -> Holding:
        name = link.removeprefix("/memfd:").removesuffix(" (deleted)")
        if (row := self._objects.get((False, inode))) is not None:
            return self._known_memory(process, row, writable)
        if (given := self._platforms_memory.get((device, inode))) is not None:
            if given == "flight-recorder":
                return self._hold(process, Kind.RECORDER, HYPERVISOR, writable, given)
            if given == USER_NETWORK:
                return self._hold(process, Kind.STREAM, given, writable, "what it says")
            if given.startswith("trace-"):
                return self._hold(process, Kind.TRACE, given.removeprefix("trace-"), writable, given)
        if name.startswith(_OURS):
            return self._unexplained(process, f"memory {name!r} that the hypervisor has taken back")
        if others := self._others(process, ("file", device, inode)):
            return self._unexplained(process, f"memory {name!r}, shared with {', '.join(others)}")
        return self._own(process, f"memory {name!r}")

    def _known_memory(self, process: _Process, row: Row, writable: bool) -> Holding:
        owner, kind = self._path(row.get("owner")), _MEMORY_KINDS[row["kind"]]
        if kind is not Kind.PAGES:
            vp = f" of VP {row['vp']}" if "vp" in row else ""
            return self._hold(process, kind, owner, writable, f"{row['kind']}{vp} of {owner}")
        first, pages = row["gpfn"], row["pages"]
        device = self._device(owner, first, pages)
        place = f"{owner}: {pages} pages at {first:#x}"
        if process.partition == row["owner"]:
            return self._hold(process, kind, owner, writable, f"{place}{f', {device}' if device else ''}")
        handed: dict[int, str] = dict(row["mappers"])
        access = handed.get(process.partition, "") if process.partition is not None else ""
        resident = process.name == HYPERVISOR
        channel = STREAM_CHANNELS if device is not None and device.startswith(_STREAM_PREFIX) else device
        subject = channel_of(owner, channel) if channel else owner
        held = self._hold(process, kind, subject, writable, f"{place}{f', {device}' if device else ''}")
        return replace(held, sanctioned=resident or access == "rw" or access == held.access)

    def _device(self, owner: str, first: int, pages: int) -> str | None:
        for row in self._tables.memory.get(owner, ()):
            if first <= row["gpfn"] < first + pages:
                return str(row["device"])
        return None

    # -- the rest

    def _private(self, process: _Process, one: Descriptor, kind: Kind | None) -> Holding:
        what = one.link.removeprefix("anon_inode:")
        if not (others := self._others(process, _identity(one))):
            return self._own(process, what.partition(":")[0].strip("[]"))
        if kind is not None:
            return self._hold(process, kind, ", ".join(others), True, what)
        return self._unexplained(
            process, f"{what} as descriptor {one.number}, shared with {', '.join(others)}"
        )

    def _own(self, process: _Process, what: str) -> Holding:
        return Holding(process.name, Kind.OWN, process.name, "rw", what)

    def _unexplained(self, process: _Process, what: str) -> Holding:
        return Holding(process.name, Kind.UNEXPLAINED, what, "rw", what)

    @staticmethod
    def _hold(process: _Process, kind: Kind, subject: str, writable: bool, what: str) -> Holding:
        return Holding(process.name, kind, subject, "rw" if writable else "r", what)

    def _path(self, partition: object) -> str:
        return self._paths.get(partition, f"partition {partition}")


def _identity(one: Descriptor) -> tuple[object, ...]:
    """By which two descriptors are seen to be of the same thing."""
    if one.eventfd is not None:
        return "eventfd", one.eventfd
    if one.link.startswith("socket:"):
        return "socket", one.inode
    return "file", one.device, one.inode


def _told_socket(words: Sequence[str]) -> str | None:
    """The number behind the option by which passt gets one (`runtime.machine.user_networks`)."""
    return next((number for option, number in pairwise(words) if option == "--fd"), None)
