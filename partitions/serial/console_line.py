"""Serial lines that lead to a console: `partvisor console NAME` is at the other end, by way of the platform.

Each is a pair of sockets. One end is the serial line's driver's, or that of an emulated port; the other is handed to
the platform, which logs what comes, and lets one terminal at a time attach. A successor of the root makes new pairs.
"""

import socket
from collections.abc import Callable

HandOver = Callable[[str, int], None]
_waiting: list[tuple[str, int]] = []  # ends that were made before there was somebody to give them to
_hand_over: HandOver | None = None


def deliver_to(hand_over: HandOver) -> None:
    """Of the process whose virtualization stack it is: who takes the other ends from here on, and owns them."""
    global _hand_over
    _hand_over = hand_over
    while _waiting:
        hand_over(*_waiting.pop(0))


def open_pair(line: str) -> int:
    """Our end of a new one, which does not block. `line`: "serial:DEVICE" or "uart:PARTITION"."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    if _hand_over is None:
        _waiting.append((line, theirs.detach()))
    else:
        _hand_over(line, theirs.detach())
    return ours.detach()
