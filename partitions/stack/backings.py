"""What is behind devices that were added, or came back, while the machine ran: this process may not open it itself.

Its sandbox stands since before they were named. So the platform opens such a file or interface, once for each process
that is to have it, and nobody keeps it in between.
"""

import os
from collections.abc import Callable
from typing import Final

Waiter = Callable[[str | None], None]  # told why not, or None: `take` has it


class Backings:
    """Of one root. Empty in a successor: its sandbox went up with all tables known."""

    def __init__(self) -> None:
        self.ask: Callable[[str], None] = lambda device: None  # the platform, by the device's name
        self._added: Final[set[str]] = set()
        self._given: Final[dict[str, int]] = {}
        self._waiting: Final[dict[str, Waiter]] = {}

    def add(self, device: str, descriptor: int) -> None:
        """It is ours until it is taken."""
        self._added.add(device)
        self._given[device] = descriptor

    def forget(self, device: str) -> None:
        self._added.discard(device)
        self._waiting.pop(device, None)
        if (descriptor := self._given.pop(device, None)) is not None:
            os.close(descriptor)

    def take(self, device: str) -> int | None:
        """The taker's from here on."""
        return self._given.pop(device, None)

    def waits_for(self, device: str, then: Waiter) -> bool:
        """Whether it has to be fetched first. If so, `then` is called when it is here, or will not be."""
        if device not in self._added or device in self._given:
            return False
        self.fetch(device, then)
        return True

    def fetch(self, device: str, then: Waiter) -> None:
        """As one that was added, from here on."""
        self._added.add(device)
        self._waiting[device] = then
        self.ask(device)

    def arrived(self, device: str, descriptor: int | None, reason: str) -> None:
        """What the platform says. Nobody may wait for it any more."""
        then = self._waiting.pop(device, None)
        if descriptor is not None and (then is None or device in self._given):
            os.close(descriptor)
            descriptor = None
        elif descriptor is not None:
            self._given[device] = descriptor
        if then is not None:
            then(None if device in self._given else reason)
