"""What a driver partition is to serve: openings that stand, those it has not answered, and those it is to let go of.

Whoever wants one served hears what becomes of it: channels of a guest, or a client that sends and waits for replies.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

from bus.channel_messages import STATUS_FAILURE
from partitions.drivers import messages
from partitions.drivers.messages import Serve, share_steps
from partitions.stack.channel_host import Opening
from partitions.stack.service_budgets import ServiceBudgets


class OpeningOwner(Protocol):
    """Who wants it served."""

    def opened(self, standing: "Standing", status: int) -> None: ...
    def stopped(self, relid: int, opening: Opening) -> None: ...
    def lost(self, standing: "Standing", failed: bool, reason: str) -> None: ...
    def asked(self, standing: "Standing", count: int) -> None:
        """For so many sub-channels. The driver may say that of any opening."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the driver is told to serve, and who wants to know what becomes of it."""

    host: OpeningOwner
    relid: int
    opening: Opening
    serve: Serve

    def serve_now(self, budgets: ServiceBudgets) -> Serve:
        """With what its guest may have of the driver by now."""
        return replace(self.serve, share=share_steps(budgets.of(self.serve.guest).share))


@dataclass(frozen=True, slots=True)
class Closing:
    """Nothing may touch its pages any more, and somebody waits until nothing does."""

    host: OpeningOwner
    relid: int
    opening: Opening

    def is_over(self) -> None:
        self.host.stopped(self.relid, self.opening)


class Openings:
    """Of one driver partition, by number. They outlive its processes."""

    def __init__(self) -> None:
        self._standing: Final[dict[int, Standing]] = {}
        self._unanswered: Final[set[int]] = set()
        self._closing: Final[dict[int, Closing]] = {}

    def __len__(self) -> int:
        """Those that stand."""
        return len(self._standing)

    def __iter__(self) -> Iterator[Standing]:
        return iter(self._standing.values())

    @property
    def closing(self) -> Iterable[int]:
        return self._closing

    def has_guest(self, guest: int) -> bool:
        return any(standing.serve.guest == guest for standing in self)

    def begin(self, standing: Standing) -> None:
        self.go_on(standing)
        self._unanswered.add(standing.opening.number)

    def go_on(self, standing: Standing) -> None:
        """It was answered in a predecessor's time."""
        self._standing[standing.opening.number] = standing

    def end(self, opening: Opening) -> None:
        self._standing.pop(opening.number, None)
        self._unanswered.discard(opening.number)

    def wait_for(self, closing: Closing) -> None:
        """The driver was told to let go of it."""
        self._closing[closing.opening.number] = closing

    def hear(self, message: messages.DriverMessage) -> None:
        """From the driver's process. What it may not say now changes nothing."""
        match message:
            case messages.Opened(number, status) if number in self._unanswered:
                self._unanswered.discard(number)
                standing = self._standing[number]
                if status:
                    del self._standing[number]
                standing.host.opened(standing, status)
            case messages.Stopped(number) if number in self._closing:
                self._closing.pop(number).is_over()
            case messages.Lost(number, failed, reason) if number in self._standing:
                self._standing[number].host.lost(self._standing[number], failed, reason)
            case messages.Asked(number, count) if number in self._standing:
                self._standing[number].host.asked(self._standing[number], count)

    def take_closing(self) -> list[Closing]:
        """The process has ended, and let go of them all. What stands does so for the next one."""
        closing = list(self._closing.values())
        self._closing.clear()
        return closing

    def fail(self) -> None:
        """There is no next one: nothing stands any more, and those who wait are told so."""
        waiting = [self._standing[number] for number in self._unanswered]
        self._standing.clear()
        self._unanswered.clear()
        for standing in waiting:
            standing.host.opened(standing, STATUS_FAILURE)
