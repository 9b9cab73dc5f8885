"""Which messages have been dealt with: of each port, up to which one. The hypervisor counts; we remember the number.

A message stays in its slot until what follows from it has been saved, and its number with it. Messages of a port come
in order, one slot takes them all, and nothing else goes in while one stands there. So the one that stands there is the
last that its port gave: its number is how many the port accepted, less those that still wait for the slot. Whoever
takes over asks for that once a port, and counts along from there.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

from runtime.abi import HypercallError
from runtime.hypercalls.caller import HypercallPort


class ReceivedMessages:
    """Of all ports whose messages come into one slot."""

    def __init__(self, hypercalls: HypercallPort) -> None:
        self._call = hypercalls
        self._numbers: dict[int, int] = {}  # of the last one dealt with, by port
        self._exact: set[int] = set()  # those of which we know it; of the others, what was saved
        self._compared: list[Any] | None = None

    def to_state(self) -> dict[int, int]:
        return dict(self._numbers)

    def adopt(self, state: Mapping[int, int], compared: list[Any] | None = None) -> None:
        """What a predecessor saved.

        Args:
            compared: port and payload of the last one, from a predecessor that did not count (format 1).
        """
        self._numbers.update(state)
        self._compared = compared

    def is_new(self, port: int, payload: bytes) -> bool:
        """Whether the message in the slot is to be dealt with. Then it counts from here on, and what is saved says so.

        A port that is gone has no number any more: nobody is left who could be told of its messages twice.
        """
        compared, self._compared = self._compared, None
        if port in self._exact:
            self._numbers[port] += 1
            return True
        with contextlib.suppress(HypercallError):
            counts = self._call.get_port_counts(port)
            number = counts.sent - counts.pending
            seen = number <= self._numbers.get(port, 0) or compared == [port, payload]
            self._numbers[port] = number
            self._exact.add(port)
            return not seen
        return True
