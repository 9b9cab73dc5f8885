"""What the hostile guest can do, as data: each attack, whom it is against, and what a refusal of it looks like.

The attacks themselves are in partitions/guests/hostile, under the same names; docs/hostile.md prints this table. An
outcome that does not stand here is a breach: nobody has thought about it.
"""

import enum
from dataclasses import dataclass
from typing import Final

ANY_STATUS: Final = "any status"  # of the hypervisor's; each of them is an answer
RINGS: Final = frozenset({"disk", "custom", "net", "serial"})
CALLED: Final = frozenset(f"{name}-messages" for name in RINGS)  # the same where they have none


class Keeping(enum.Enum):
    """What the guest that makes it has left afterwards, so: whom it can share a partition with."""

    STEADY = "steady"  # everything: it goes on with the next attack
    BREAKS = "breaks"  # a channel less: it gets so many of them again, and no more
    ALONE = "alone"  # nobody knows: it has a partition of its own
    LAST = "last"  # nothing: it ends by this


@dataclass(frozen=True, slots=True)
class Attack:
    name: str
    services: frozenset[str]  # against which it is made
    keeping: Keeping
    tries: str
    refused: tuple[str, ...]  # outcomes that are refusals, or are harmless
    proof: str  # that it was really made

    def allows(self, outcome: str) -> bool:
        return outcome in self.refused or (
            ANY_STATUS in self.refused and outcome.isupper() and not outcome.startswith("BREACH")
        )


_TAKEN: Final = "channel taken away"
_STANDS: Final = "channel left as it is"
_NOT_AGAIN: Final = "not offered again"
_BREAKS: Final = (_TAKEN, _STANDS, _NOT_AGAIN)
_EVERY: Final = frozenset({*RINGS, "link"})
_HYPERVISOR: Final = frozenset({"hypervisor"})
_VMBUS: Final = frozenset({"vmbus"})
_HOST: Final = frozenset({"host"})

CHANNEL_ATTACKS: Final = (
    Attack(
        "write-index-past-end",
        _EVERY,
        Keeping.BREAKS,
        "a write index beyond the ring, or on no packet's boundary",
        _BREAKS,
        "the index is read back from the shared page",
    ),
    Attack(
        "read-index-past-end",
        RINGS,
        Keeping.BREAKS,
        "a read index beyond the ring, in which the server is to answer",
        _BREAKS,
        "the index is read back from the shared page",
    ),
    Attack(
        "index-changed-while-read",
        _EVERY,
        Keeping.BREAKS,
        "a second thread that changes the write index between good and impossible values",
        _BREAKS,
        "changes counted; both values were seen in the page",
    ),
    Attack(
        "packet-of-nonsense",
        _EVERY,
        Keeping.BREAKS,
        "a descriptor whose offset and length make no sense",
        _BREAKS,
        "the descriptor is read back from the ring",
    ),
    Attack(
        "packet-changed-while-read",
        RINGS,
        Keeping.BREAKS,
        "a second thread that changes a good packet's length while the server reads it",
        _BREAKS,
        "changes counted, and packets that the server took meanwhile",
    ),
    Attack(
        "garbage-packets",
        RINGS,
        Keeping.BREAKS,
        "packets of any type with random headers and bodies",
        (*_BREAKS, "answered", "no answer"),
        "packets that the ring took",
    ),
    Attack(
        "replayed-packets",
        RINGS,
        Keeping.STEADY,
        "packets that were answered stand behind themselves once more: the server meets them again, with their ids",
        (*_BREAKS, "answered again", "taken again"),
        "completions of ids that had been completed, or the server's own read index",
    ),
    Attack(
        "duplicate-ids",
        RINGS,
        Keeping.STEADY,
        "sixteen requests at once that all have one id",
        (_TAKEN, "answered", "no answer", _NOT_AGAIN),
        "packets that the ring took",
    ),
    Attack(
        "foreign-pages",
        frozenset({"disk", "custom", "net"}),
        Keeping.STEADY,
        "requests whose page numbers are of others, of nobody, or beyond all memory; with a disk, reads and writes",
        (_TAKEN, "refused", "no answer", _NOT_AGAIN),
        "packets that the ring took",
    ),
    Attack(
        "impossible-requests",
        frozenset({"disk"}),
        Keeping.STEADY,
        "blocks beyond the end, lengths that disagree, commands and units that are not there",
        (_TAKEN, "refused", "no answer", _NOT_AGAIN),
        "packets that the ring took",
    ),
    Attack(
        "false-lengths",
        frozenset({"net"}),
        Keeping.STEADY,
        "frames whose RNDIS lengths lie, sections that are not lent, buffers of others",
        (_TAKEN, "refused", "no answer", _NOT_AGAIN),
        "packets that the ring took",
    ),
    Attack(
        "frames-in-others-names",
        frozenset({"net", "net-messages"}),
        Keeping.STEADY,
        "frames to everybody that come from its neighbours' addresses, as they say",
        ("taken", _NOT_AGAIN),
        "frames that the adapter took",
    ),
    Attack(
        "unread-answers",
        RINGS,
        Keeping.STEADY,
        "requests until both rings are full, and no answer is ever read",
        (_TAKEN, "full", "no room is left", _NOT_AGAIN),
        "packets that the ring took",
    ),
    Attack(
        "doorbell-storm",
        _EVERY,
        Keeping.STEADY,
        "its own doorbell, without pause and without need",
        (_TAKEN, "rung", _NOT_AGAIN),
        "rings",
    ),
    Attack(
        "stuffed-doorbell",
        RINGS,
        Keeping.STEADY,
        "the doorbell that the server rings is filled, and made to block",
        (_TAKEN, "filled", _NOT_AGAIN),
        "its flags lack O_NONBLOCK, and a further ring by itself would block",
    ),
    Attack(
        "garbage-to-a-server",
        CALLED,
        Keeping.STEADY,
        "messages to a server that is called: random, cut, too long, with descriptors nobody asked for",
        ("answered", "no answer", "connection ended", "not taken"),
        "messages that the socket took",
    ),
    Attack(
        "caller-that-does-not-listen",
        CALLED,
        Keeping.STEADY,
        "calls without end whose replies it does not read",
        ("full", "connection ended"),
        "messages that the socket took",
    ),
)

HYPERVISOR_ATTACKS: Final = (
    Attack(
        "forbidden-calls",
        _HYPERVISOR,
        Keeping.STEADY,
        "what neither its privileges nor its place in the tree allow",
        (ANY_STATUS,),
        "a status for each call",
    ),
    Attack(
        "garbage-calls",
        _HYPERVISOR,
        Keeping.ALONE,
        "any call with any arguments",
        (ANY_STATUS, "too much for a packet"),
        "a status for each call",
    ),
    Attack(
        "garbage-bytes",
        _HYPERVISOR,
        Keeping.ALONE,
        "bytes that are no call, with descriptors that nobody takes",
        (ANY_STATUS,),
        "a reply to each packet",
    ),
    Attack(
        "forged-ids",
        _HYPERVISOR,
        Keeping.STEADY,
        "messages, signals, doorbells and sockets by connections and ports of others",
        (ANY_STATUS,),
        "a status for each call",
    ),
    Attack(
        "parents-deposit",
        _HYPERVISOR,
        Keeping.STEADY,
        "pages out of its parent's, its own and its neighbours' pools",
        (ANY_STATUS,),
        "a status for each call; its own balance is the same afterwards",
    ),
    Attack(
        "memory-greed",
        _HYPERVISOR,
        Keeping.STEADY,
        "all pages that were deposited for it, and more",
        ("INSUFFICIENT_MEMORY", "NO_RESOURCES"),
        "slots that it got before the refusal",
    ),
    Attack(
        "shrunk-memory",
        _HYPERVISOR,
        Keeping.STEADY,
        "every memory that it shares cut to nothing, grown, unsealed: SIGBUS for whoever looks there",
        ("EPERM", "EINVAL"),
        "errno of each call; sizes are the same afterwards",
    ),
    Attack(
        "garbage-messages",
        _VMBUS,
        Keeping.ALONE,
        "channel messages: random, cut, unknown, out of order",
        (ANY_STATUS, "posted"),
        "messages that the hypervisor took",
    ),
    Attack(
        "forged-messages",
        _VMBUS,
        Keeping.ALONE,
        "channel messages with channels and page lists that are others', ids said twice, lists without an end",
        (ANY_STATUS, "posted"),
        "messages that the hypervisor took",
    ),
    Attack(
        "accesses-to-any-port",
        frozenset({"ports", "ports-direct"}),
        Keeping.ALONE,
        "port accesses of every size, number and length, strings from pages that are not there",
        (ANY_STATUS, "answered"),
        "a result or a status for each access",
    ),
    Attack(
        "interrupted-accesses",
        frozenset({"ports", "ports-direct"}),
        Keeping.STEADY,
        "port accesses without pause, to everything that its parent emulates for it",
        (ANY_STATUS, "answered"),
        "a result for each access",
    ),
    Attack(
        "requests-forged-in-the-page",
        frozenset({"ports-direct"}),
        Keeping.ALONE,
        "the direct way's page: messages that are none, changed while they are read; its doorbells filled",
        ("answered", "no answer"),
        "the sequence and the type are read back from the page",
    ),
)

HOST_ATTACKS: Final = (
    Attack(
        "descriptors-of-others",
        _HOST,
        Keeping.STEADY,
        "every descriptor number, and /proc/PID/fd, mem, maps, environ of its parent and its neighbours",
        ("EACCES", "EPERM", "ENOENT", "EBADF", "its own"),
        "errno of each call",
    ),
    Attack(
        "signals-to-others",
        _HOST,
        Keeping.STEADY,
        "kill, tgkill and pidfds of its parent, its neighbours and everybody; real signals for those of its machine",
        ("EPERM",),
        "errno of each call",
    ),
    Attack(
        "management-socket",
        _HOST,
        Keeping.STEADY,
        "the machine's management sockets, whose paths it was told",
        ("EPERM", "EACCES", "ENXIO"),
        "errno of each call",
    ),
    Attack(
        "files-of-others",
        _HOST,
        Keeping.STEADY,
        "backing files, /dev/shm, block devices, users' files, opened; the machine's own also made, renamed, cut",
        ("EACCES", "EPERM", "ENOENT"),
        "errno of each call",
    ),
    Attack(
        "new-processes",
        _HOST,
        Keeping.STEADY,
        "fork, clone, execve, posix_spawn",
        ("EPERM", "EACCES", "ENOSYS"),
        "errno of each call",
    ),
    Attack(
        "more-than-its-limits",
        _HOST,
        Keeping.STEADY,
        "descriptors and private memory until it gets no more, and limits raised",
        ("EMFILE", "ENOMEM", "EPERM"),
        "errno of each call, and how many it had",
    ),
)

DEADLY_CALLS: Final = (
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "pidfd_getfd",
    "kcmp",
    "mount",
    "unshare",
    "setns",
    "chroot",
    "open_by_handle_at",
    "bpf",
    "userfaultfd",
)
KILLED: Final = "SIGSYS"
LAST_ATTACKS: Final = tuple(
    Attack(
        f"call-{name.replace('_', '-')}",
        _HOST,
        Keeping.LAST,
        f"{name}, against its parent where it takes one",
        (KILLED,),
        "said just before; the end of its process",
    )
    for name in DEADLY_CALLS
)

ATTACKS: Final = CHANNEL_ATTACKS + HYPERVISOR_ATTACKS + HOST_ATTACKS + LAST_ATTACKS


def against(service: str) -> tuple[Attack, ...]:
    return tuple(attack for attack in ATTACKS if service in attack.services)
