"""Whom a network in user space sends to before any guest has spoken.

passt learns its guest's address from the guest's frames. What it has to send before the first of them, as when
somebody uses a forwarded port, it sends to the address zero, or to everybody, and a guest's kernel takes no TCP of
either. So who has the guest's IPv4 address is asked here, in passt's name; the frames wait for the answer. No I/O.
"""

import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from partitions.net.frames import ADDRESS_BYTES

HELD_FRAMES_MAX: Final = 64  # that wait for the answer; the oldest goes
ASK_AGAIN_S: Final = 0.25
_NOBODY: Final = bytes(ADDRESS_BYTES)
_EVERYBODY: Final = b"\xff" * ADDRESS_BYTES
_IPV4, _ARP = b"\x08\x00", b"\x08\x06"
_IPV4_END: Final = 34  # of the shortest head behind an Ethernet header
_MULTICAST: Final = 224  # first byte from which on an IPv4 address is nobody's own
_REQUEST: Final = struct.pack(">HHBBH", 1, 0x0800, ADDRESS_BYTES, 4, 1)


class FirstContact:
    """Of one passt and its guest. A thread at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guest: bytes | None = None  # whoever spoke last, as passt has it
        self._held: deque[bytes] = deque(maxlen=HELD_FRAMES_MAX)
        self._asked_s = 0.0

    def guest_said(self, frames: Sequence[memoryview]) -> None:
        if frames:
            self._guest = bytes(frames[-1][ADDRESS_BYTES : 2 * ADDRESS_BYTES])

    def pass_on(self, frames: Iterable[bytes]) -> list[bytes]:
        """What is to reach the guests, of what came from passt and what waits: each with somebody's address, or a
        question."""
        out: list[bytes] = []
        if self._guest is not None:
            while self._held:
                out.append(self._guest + self._held.popleft()[ADDRESS_BYTES:])
        for frame in frames:
            if not _is_for_an_unknown_guest(frame):
                out.append(frame)
            elif self._guest is not None:
                out.append(self._guest + frame[ADDRESS_BYTES:])
            else:
                self._held.append(frame)
        if self._held and (not self._asked_s or self._clock() - self._asked_s >= ASK_AGAIN_S):
            self._asked_s = self._clock()
            out.append(_who_has(self._held[-1]))
        return out


def _is_for_an_unknown_guest(frame: bytes) -> bool:
    target = frame[:ADDRESS_BYTES]
    if target not in (_NOBODY, _EVERYBODY) or frame[12:14] != _IPV4 or len(frame) < _IPV4_END:
        return False
    return frame[30] < _MULTICAST


def _who_has(frame: bytes) -> bytes:
    """A question for the guest that this frame is meant for, from whom it came."""
    sender = frame[ADDRESS_BYTES : 2 * ADDRESS_BYTES]
    return _EVERYBODY + sender + _ARP + _REQUEST + sender + frame[26:30] + _NOBODY + frame[30:34]
