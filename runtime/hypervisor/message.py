"""A message on its way to a VP: what waits in a queue of its SynIC."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One of a port's 16 message buffers, or a timer's one."""

    port: int  # of the partition that owns the VP; the sender that the guest sees
    type: int
    payload: bytes
    timer: int | None = None  # which of the VP's; its payload is made when it goes into the slot
    expired: int = 0  # reference time, of a timer's
