"""SynIC pages: message slots (SIM), event flags (SIEF), and the numbers that VMBus uses in them.

    SIM page    16 slots of 256 bytes, one a SINT
    slot        +0 message type u32, 0: empty | +4 payload size u8 | +5 flags u8 | +8 sender u64 | +16 payload
    SIEF page   16 x 2048 flags; flag n is bit n % 8 of byte n / 8

The atomics that posting and taking need are the C core's (`synic_post`, `synic_take`, `flag_set`...).
Sources: TLFS, Inter-Partition Communication; Linux drivers/hv/hv.c.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

SINTS: Final = 16  # of each VP
SLOT_BYTES: Final = 256
MAX_PAYLOAD_BYTES: Final = 240
FLAGS_PER_SINT: Final = 2048
SYNIC_PAGE_BYTES: Final = 4096

_SLOT: Final = struct.Struct("<IBBHQ240s")
assert _SLOT.size == SLOT_BYTES
assert SINTS * SLOT_BYTES == SYNIC_PAGE_BYTES
assert SINTS * FLAGS_PER_SINT == SYNIC_PAGE_BYTES * 8

_TIMER_EXPIRED: Final = struct.Struct("<IIQQ")
assert _TIMER_EXPIRED.size == 24

_MESSAGE_PENDING: Final = 1  # slot flags, bit 0: more wait in the queue, so EOM is owed

# -- VMBus's share of it
VMBUS_SINT: Final = 2
CHANNEL_MESSAGE: Final = 1  # the message type of every channel-management message, both ways
MESSAGE_CONNECTION: Final = 1  # guest to host, versions below 5.0
EVENT_CONNECTION: Final = 2  # shared by the channels that have no dedicated one
MONITOR_CONNECTION: Final = 3
CONTACT_CONNECTION: Final = 4  # guest to host, where INITIATE_CONTACT for 5.0 and later goes
FIRST_CHANNEL_CONNECTION: Final = VMBUS_SINT << 12  # 0x2000 | relid: guest to host, that channel's events
MAX_CONNECTION_ID: Final = (1 << 24) - 1

assert FIRST_CHANNEL_CONNECTION == 0x2000


class SynicError(Exception):
    """The bytes or numbers are not possible in a SynIC page."""


class MessageType(IntEnum):
    """Types that partvisor itself sends. Bit 31: from the hypervisor, never from a partition."""

    NONE = 0
    VMBUS = CHANNEL_MESSAGE
    UNMAPPED_GPA = 0x8000_0000
    GPA_INTERCEPT = 0x8000_0001
    TIMER_EXPIRED = 0x8000_0010
    UNRECOVERABLE_EXCEPTION = 0x8000_0021
    HYPERCALL_INTERCEPT = 0x8000_0050
    X64_IO_PORT_INTERCEPT = 0x8001_0000
    X64_MSR_INTERCEPT = 0x8001_0001
    X64_CPUID_INTERCEPT = 0x8001_0002
    X64_EXCEPTION_INTERCEPT = 0x8001_0003
    X64_HALT = 0x8001_0007


HYPERVISOR_MESSAGE: Final = 0x8000_0000  # types from here on are the hypervisor's own


def slot_offset(sint: int) -> int:
    """Where a SINT's message slot begins in the SIM page, in bytes."""
    if not 0 <= sint < SINTS:
        raise SynicError(f"SINT {sint}")
    return sint * SLOT_BYTES


def page_flag(sint: int, flag: int) -> int:
    """A SINT's event flag, numbered through the whole SIEF page as the C core numbers it."""
    if not 0 <= sint < SINTS or not 0 <= flag < FLAGS_PER_SINT:
        raise SynicError(f"flag {flag} of SINT {sint}")
    return sint * FLAGS_PER_SINT + flag


def channel_connection(relid: int) -> int:
    """The connection that a guest signals to reach the host's end of a channel."""
    if not 0 < relid < FLAGS_PER_SINT:
        raise SynicError(f"relid {relid}")
    return FIRST_CHANNEL_CONNECTION | relid


@dataclass(frozen=True, slots=True)
class SynicMessage:
    """One message as it stands in a slot."""

    message_type: int  # not 0
    sender: int  # the receiving port's id: it tells who wrote, and nobody but the hypervisor writes it
    payload: bytes  # at most 240 bytes
    pending: bool = False  # another waits: whoever empties the slot must then signal end of message (EOM)

    def __post_init__(self) -> None:
        if not 0 < self.message_type < 1 << 32:
            raise SynicError(f"message type {self.message_type:#x}")
        if not 0 <= self.sender < 1 << 64:
            raise SynicError(f"sender {self.sender:#x}")
        if len(self.payload) > MAX_PAYLOAD_BYTES:
            raise SynicError(f"payload of {len(self.payload)} bytes")

    def encode(self) -> bytes:
        """All 256 bytes of the slot."""
        flags = _MESSAGE_PENDING if self.pending else 0
        return _SLOT.pack(self.message_type, len(self.payload), flags, 0, self.sender, self.payload)

    @classmethod
    def decode(cls, slot: bytes) -> Self | None:
        """None: the slot is empty. Undefined flag bits and the reserved field are not looked at."""
        if len(slot) != SLOT_BYTES:
            raise SynicError(f"slot of {len(slot)} bytes")
        message_type, size, flags, _, sender, payload = _SLOT.unpack(slot)
        if message_type == 0:
            return None
        if size > MAX_PAYLOAD_BYTES:
            raise SynicError(f"payload of {size} bytes")
        return cls(message_type, sender, payload[:size], bool(flags & _MESSAGE_PENDING))


@dataclass(frozen=True, slots=True)
class TimerExpired:
    """Payload of a TIMER_EXPIRED message. Times are the partition's reference time, in 100 ns."""

    timer: int  # 0 to 3, of the VP whose slot it is in
    expired: int  # when it should have come
    delivered: int  # when it went into the slot

    def encode(self) -> bytes:
        return _TIMER_EXPIRED.pack(self.timer, 0, self.expired, self.delivered)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        if len(payload) != _TIMER_EXPIRED.size:
            raise SynicError(f"timer message of {len(payload)} bytes")
        timer, _, expired, delivered = _TIMER_EXPIRED.unpack(payload)
        return cls(timer, expired, delivered)
