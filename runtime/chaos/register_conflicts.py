"""What `registers` is told of a block, and what it says is wrong with it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from runtime.chaos.history import Operation

BEGINNING: Final = -1  # before every clock
NEVER: Final = 1 << 63  # after every clock


class Kind(StrEnum):
    """What is wrong."""

    LOST = "lost"  # something acknowledged is not there, or something older came back
    NOT_DURABLE = "not_durable"  # gone after a power cut, though a flush that followed it had completed
    TORN = "torn"  # a block made of pieces
    INVENTED = "invented"  # data that nobody ever wrote there, or not yet
    MISDIRECTED = "misdirected"  # another block's data
    HUNG = "hung"  # no completion, or one beyond the bound


class Reason(StrEnum):
    """How it is known."""

    UNWRITTEN = "unwritten"  # no write has this value
    EARLY = "early"  # read before its write, `other`, began
    PIECES = "pieces"
    BETWEEN = "between"  # `other` came while the register certainly held `value`
    NO_DISCARD = "no_discard"  # `other` read zeros after `value` was there, and no discard came between
    TWO_SURVIVORS = "two_survivors"  # of one power cut
    FORGOTTEN = "forgotten"  # `since` was on the medium, and a power cut left `other_value`, which is older


@dataclass(slots=True, eq=False)
class Access:
    """When a request may have taken effect: after `start`, before `end`. One for all blocks of the request."""

    start: int  # ns
    end: int
    source: Operation | str
    certain: bool = True  # False: perhaps it never took effect
    power_cut: bool = False  # not a request but what a power cut left
    durable: bool = False  # a write whose completion said that it was on the medium

    def __str__(self) -> str:
        return str(self.source)


BEFORE: Final = Access(BEGINNING, BEGINNING, "the beginning")


@dataclass(slots=True, eq=False)
class Conflict:
    """Why the history is no register's. `value` was there at `since` and `until`; `other` does not go with that."""

    kind: Kind
    reason: Reason
    value: int
    since: Access
    until: Access
    other_value: int | None = None
    other: Access | None = None


def kind_of(*accesses: Access) -> Kind:
    return Kind.NOT_DURABLE if any(access.power_cut for access in accesses) else Kind.LOST
