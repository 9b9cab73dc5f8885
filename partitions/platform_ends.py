"""Pairs of sockets of which one end is a device's, and the other one the platform's: a console's, passt's.

The platform is handed its end on the firmware link, with a verb that says what for. A successor of the root makes new
pairs.
"""

import socket
from collections.abc import Callable, Mapping

HandOver = Callable[[str, Mapping[str, object], int], None]
_waiting: list[tuple[str, Mapping[str, object], int]] = []  # made before there was somebody to give them to
_hand_over: HandOver | None = None


def deliver_to(hand_over: HandOver) -> None:
    """Of the process whose virtualization stack it is: who takes the other ends from here on, and owns them."""
    global _hand_over
    _hand_over = hand_over
    while _waiting:
        hand_over(*_waiting.pop(0))


def open_pair(verb: str, values: Mapping[str, object]) -> int:
    """Our end of a new one. `verb`, `values`: what the platform is told with the other."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    if _hand_over is None:
        _waiting.append((verb, values, theirs.detach()))
    else:
        _hand_over(verb, values, theirs.detach())
    return ours.detach()
