"""What the driver does (partitions.faults.faulty_driver), by the names of `partvisor blast --fault`."""

import enum
from collections.abc import Mapping
from typing import Final


class Fault(enum.StrEnum):
    CRASH = "crash"
    HANG = "hang"
    BUSY_LOOP = "busy-loop"
    WILD_WRITE = "wild-write"
    MEMORY_LEAK = "memory-leak"
    FORK_BOMB = "fork-bomb"
    FD_EXHAUSTION = "fd-exhaustion"
    GARBAGE_REPLIES = "garbage-replies"
    DOUBLE_REPLIES = "double-replies"
    NO_REPLIES = "no-replies"


MEANING: Final[Mapping[Fault, str]] = {
    Fault.CRASH: "follows a null pointer",
    Fault.HANG: "stands still, and its whole process with it",
    Fault.BUSY_LOOP: "computes for ever, in the thread that serves a request",
    Fault.WILD_WRITE: "writes random bytes into every page that is mapped for writing",
    Fault.MEMORY_LEAK: "takes memory until there is none, 512 MiB at the most, and goes on without",
    Fault.FORK_BOMB: "starts processes, or else threads, 200 at the most, and goes on",
    Fault.FD_EXHAUSTION: "opens descriptors until there is none, 65,536 at the most, and goes on without",
    Fault.GARBAGE_REPLIES: "replies to 64 requests with nonsense: under the right name, a wrong one, or none",
    Fault.DOUBLE_REPLIES: "replies to 64 requests twice",
    Fault.NO_REPLIES: "takes requests, does what they ask, and replies to none any more",
}
assert set(MEANING) == set(Fault)

# Of these, none lets wrong data happen: the driver serves as it should, or not at all.
HONEST: Final = frozenset(Fault) - {Fault.WILD_WRITE, Fault.GARBAGE_REPLIES}
