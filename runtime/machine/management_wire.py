"""What goes over the two sockets of a running machine.

management  ROUTER  request  {id, verb, args}  ->  reply  {id, ok: true, result} or {id, ok: false, error}
                    msgpack maps; error is {status, message}; id is the client's own choice
                    verb "cancel", args {request}: give up that request of the same client's; only what copies a
                    partition's memory can be given up. Result {cancelled}; its own reply, CANCELLED or not, follows
events      PUB     [kind, event]; event is a msgpack map, see runtime.machine.events.Event
"""

import enum
from typing import Any, Final

import msgspec

REQUEST_SECONDS_MAX: Final = 10.0
COPYING_SECONDS_MAX: Final = 600.0  # of a request that copies a partition's memory
COPYING: Final = ("save", "restore")  # operations that do
CANCEL: Final = "cancel"


class ManagementStatus(enum.StrEnum):
    """Why a request failed. Branch on this, never on the message."""

    BAD_REQUEST = "BAD_REQUEST"  # not a request, or its arguments are wrong
    UNKNOWN_VERB = "UNKNOWN_VERB"
    NOT_FOUND = "NOT_FOUND"  # no such partition
    REFUSED = "REFUSED"  # not possible in the machine's present state
    BUSY = "BUSY"  # too many requests at once; try again
    TIMED_OUT = "TIMED_OUT"  # the machine took too long; the request may still take effect
    CANCELLED = "CANCELLED"  # its client has given it up; nothing has changed
    FAILED = "FAILED"  # a mistake of ours


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: int
    verb: str
    args: dict[str, Any] = {}


class ReplyError(msgspec.Struct, frozen=True):
    status: ManagementStatus
    message: str


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    id: int | None  # null: the request was too broken to have one
    ok: bool
    result: dict[str, Any] | None = None
    error: ReplyError | None = None
