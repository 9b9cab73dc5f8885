"""Faults of a channel's two rings and of the pages that go with it, made in the process that serves the channel.

That process maps both rings, so it can write what only the guest should, as well as what it owes the guest itself.
"""

from typing import Final

from runtime.chaos.faults.kinds import Carrier, FaultKind, Group, Need, Parameter

DELAY_MS_MAX: Final = 60_000
STALL_MS_MAX: Final = 1_000  # nobody else may get the processor meanwhile, whoever heals included
MEMORY_STALL: Final = "memory-stall"
STORM_WRITES_MAX: Final = 100_000
INDEX_VALUES: Final = ("outside", "unaligned", "wrong")

_REQUEST: Final = "each request that is taken"
_REPLY: Final = "each completion that is published"
_PAGES: Final = "each look-up of a guest's pages"
_RING: Final = Parameter("ring", "completions", "which of the two", choices=("requests", "completions"))
_VALUE: Final = Parameter("value", "outside", "the bad index", choices=INDEX_VALUES)


def _ring(name: str, summary: str, seam: str, *parameters: Parameter) -> FaultKind:
    return FaultKind(name, Group.RING, summary, seam, Carrier.SERVER, parameters)


def _memory(
    name: str, summary: str, seam: str, *parameters: Parameter, needs: tuple[Need, ...] = ()
) -> FaultKind:
    return FaultKind(name, Group.MEMORY, summary, seam, Carrier.SERVER, parameters, needs)


RING_KINDS: Final = (
    _ring("ring-bad-write-index", "write_index is one that cannot be", "each look at the rings", _RING, _VALUE),
    _ring("ring-bad-read-index", "read_index is one that cannot be", "each look at the rings", _RING, _VALUE),
    _ring(
        "ring-index-storm", "the indexes that the guest reads take any value, one after the other", _REPLY,
        Parameter("writes", 1_000, "of each strike", "", 1, STORM_WRITES_MAX),
    ),
    _ring(
        "ring-bad-request-header", "the head of a request in the ring is not what the guest wrote", _REQUEST,
        Parameter("field", "length", "which", choices=("type", "offset", "length", "flags")),
    ),
    _ring(
        "ring-bad-completion-header", "a completion's head is none", _REPLY,
        Parameter("field", "type", "which", choices=("type", "flags")),
    ),
    _ring("ring-flip-request", "one bit of a request is flipped in the ring", _REQUEST),
    _ring("ring-flip-completion", "one bit of a completion is flipped", _REPLY),
    _ring(
        "ring-double-fetch", "a word of a request goes to and fro between two values while it is read", _REQUEST,
        Parameter("field", "length", "which", choices=("length", "payload")),
    ),
    _ring("ring-replayed-id", "behind a completion comes another one for the request before it", _REPLY),
    _ring("ring-unknown-id", "behind a completion comes one that nobody waits for", _REPLY),
    _ring("ring-twice", "a completion comes twice", _REPLY),
    _ring("ring-unsolicited", "behind a completion comes a packet of garbage", _REPLY),
    _ring("ring-lost", "a completion does not come until this is healed", _REPLY),
    _ring("ring-delayed", "a completion comes later", _REPLY,
          Parameter("delay_ms", 20, "how much later", "ms", 1, DELAY_MS_MAX)),
    _ring("ring-not-drained", "the server takes no request until this is healed", _REQUEST),
    _ring("ring-mask-stuck", "interrupt_mask stands whatever the guest does, so nobody wakes it", _REPLY),
    _ring("ring-pending-size", "pending_send_sz is anything, so the guest rings for room that nobody wants", _REPLY),
    _memory("memory-revoked", "a guest's pages are not there any more", _PAGES),
    _memory("memory-slow", "a guest's pages come late", _PAGES,
            Parameter("delay_ms", 20, "how late", "ms", 1, DELAY_MS_MAX)),
    _memory(MEMORY_STALL, "whoever touches a guest's pages waits, the kernel too; not in a sandbox", _PAGES,
            Parameter("delay_ms", 20, "at most", "ms", 1, STALL_MS_MAX), needs=(Need.USERFAULTFD,)),
)  # fmt: skip
