"""The words in which both sides speak: what a config grants, and what a process was found to hold."""

import enum
from dataclasses import dataclass
from typing import Final


class Kind(enum.StrEnum):
    """What can be held. The subject, in brackets, is the name of a partition or process unless it says otherwise."""

    PAGES = "pages"  # a slot of guest memory [its owner; or "owner: device" for a channel's]
    SYNIC = "synic"  # a VP's message and event pages [whose]
    VECTORS = "vectors"  # a VP's page of requested interrupts [whose]
    REFERENCE = "reference"  # the page that tells the reference time [whose]
    STATISTICS = "statistics"  # a page of counters [who asked for it]
    RECORDER = "recorder"  # the hypervisor's flight recorder [hypervisor]
    TRACE = "trace"  # what a traced process stamps into [whose]
    LINE = "line"  # interrupts a VP [whose]
    DOORBELL = "doorbell"  # interrupts a channel's side ["owner from sender"]
    WATCH = "watch"  # tells of children [whose]
    HYPERCALLS = "hypercalls"  # being that partition, to the hypervisor [whom]
    CONSOLE = "console"  # events and output lines into the platform's log [platform]
    FIRMWARE = "firmware"  # the root's line to the platform [root]
    SOCKET = "socket"  # to another process [which]
    PIPE = "pipe"  # to another process [which]
    PROCESS = "process"  # a pidfd: may signal it [which]
    FILE = "file"  # or a device [its path]
    PLACE = "place"  # an O_PATH descriptor: names a file or folder to Landlock, reads and writes nothing [its path]
    STREAM = "stream"  # standard input, output or error of `partvisor run` [which]
    OWN = "own"  # reaches nobody: timers, epolls, what no other process of the machine has
    UNEXPLAINED = "unexplained"  # [what /proc says]


@dataclass(frozen=True, slots=True)
class Grant:
    """A process may hold this."""

    process: str
    kind: Kind
    subject: str | None = None  # None: of everybody
    access: str = "rw"


@dataclass(frozen=True, slots=True)
class Holding:
    """A process was found to hold this: by descriptors, by mappings, or both."""

    process: str
    kind: Kind
    subject: str
    access: str  # "r" or "rw"
    what: str = ""  # in words
    mapped_pages: int = 0
    descriptors: int = 0
    sanctioned: bool = True  # the hypervisor's own tables say that it was handed this

    def row(self) -> dict[str, object]:
        return {
            "process": self.process,
            "kind": str(self.kind),
            "subject": self.subject,
            "access": self.access,
            "mapped_pages": self.mapped_pages,
            "descriptors": self.descriptors,
            "what": self.what,
        }


PLATFORM: Final = "platform"
HYPERVISOR: Final = "hypervisor"
ROOT: Final = "root"
ZYGOTE: Final = "zygote"
STANDBY: Final = "standby"
JANITOR: Final = "janitor"
USER_NETWORK: Final = "passt"  # the processes of all networks in user space
STREAM_CHANNELS: Final = "streams"  # the channels of a partition's stream sockets, one like the other
CAPTURES: Final = "captures"  # who watches a network: somebody outside of the machine


def channel_of(owner: str, device: str) -> str:
    """The subject of pages that a channel consists of."""
    return f"{owner}: {device}"


def viewers_of(partition: str) -> str:
    """Who looks at its screen: somebody outside of the machine."""
    return f"viewers of {partition}"


def streams_of(partition: str) -> str:
    """Programs of the host at the other ends of its streams."""
    return f"streams of {partition}"


def programs_of(partition: str) -> str:
    """What runs ordinary programs on its TAP, and these: all processes below the partition's own."""
    return f"programs of {partition}"


def doorbell_of(owner: str, sender: str) -> str:
    return f"{owner} from {sender}"
