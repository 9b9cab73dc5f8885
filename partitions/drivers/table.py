"""What a driver partition serves: messages of its stack in, actions out. No I/O, clock or thread.

    (unknown) --Serve--> SERVING --Stop--> STOPPING --stopped--> (unknown)
                          `--lost--> LOST --Stop--> STOPPING

Between Begin and End all that stands is collected; at End what was not named is stopped, and what is new is attached
together, so that whoever was in the middle of a batch is replayed first.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from partitions.drivers.messages import (
    Asked,
    Begin,
    DriverMessage,
    End,
    Lost,
    Opened,
    Ready,
    Serve,
    Stick,
    Stop,
    Stopped,
)


class ServedState(Enum):
    SERVING = auto()
    LOST = auto()  # its thread has ended; its pages are still mapped
    STOPPING = auto()


@dataclass(slots=True)
class _Entry:
    serve: Serve
    state: ServedState = ServedState.SERVING
    lost: Lost | None = None
    asked: Asked | None = None


@dataclass(frozen=True, slots=True)
class Attach:
    """Serve these. Each is reported by `attached`, in any order, before anything else is received."""

    serves: tuple[Serve, ...]
    first: bool  # of this process: then say Ready


@dataclass(frozen=True, slots=True)
class StopServing:
    """-> `stopped`, once nothing of it is touched any more."""

    number: int


@dataclass(frozen=True, slots=True)
class GetStuck:
    """A fault on purpose."""


@dataclass(frozen=True, slots=True)
class Say:
    message: Ready | Opened | Stopped | Lost | Asked


Action = Attach | StopServing | GetStuck | Say


@dataclass(slots=True)
class DriverTable:
    generation: int
    _entries: dict[int, _Entry] = field(default_factory=dict)  # by number
    _by_flag: dict[int, int] = field(default_factory=dict)  # number of who has it, until stopped
    _waiting: dict[int, Serve] = field(default_factory=dict)  # by flag, until its holder has stopped
    _collected: dict[int, Serve] | None = None  # between Begin and End
    _listening: bool = False
    complete: bool = False  # an End has been dealt with

    @property
    def idle(self) -> bool:
        """Nothing is served, or about to be; and the stack has said so."""
        return self.complete and not self._entries and not self._waiting and self._collected is None

    def receive(self, message: DriverMessage) -> list[Action]:
        if isinstance(message, Begin):
            self._listening = message.number == self.generation
            self._collected = {} if self._listening else None
            return []
        if not self._listening:
            return []  # said to a predecessor
        match message:
            case Serve() if self._collected is not None:
                self._collected[message.number] = message
                return []
            case Serve():
                return self._serve([message], first=False)
            case Stop(number):
                if self._collected is not None:
                    self._collected.pop(number, None)
                return self._stop(number)
            case End(number) if self._collected is not None and number == self.generation:
                collected, self._collected = self._collected, None
                stops = [
                    one
                    for number in list(self._entries)
                    if number not in collected
                    for one in self._stop(number)
                ]
                first, self.complete = not self.complete, True
                return stops + self._serve(list(collected.values()), first=first)
            case Stick():
                return [GetStuck()]
        return []  # an answer: not ours to hear

    def _serve(self, serves: list[Serve], *, first: bool) -> list[Action]:
        actions: list[Action] = []
        fresh: list[Serve] = []
        for serve in serves:
            if (entry := self._entries.get(serve.number)) is not None:
                if entry.state is ServedState.SERVING:
                    actions.append(Say(Opened(serve.number, 0)))
                    actions += [Say(entry.asked)] if entry.asked is not None else []
                elif entry.lost is not None:
                    actions.append(Say(entry.lost))
            elif (holder := self._by_flag.get(serve.flag)) is not None:
                self._waiting[serve.flag] = serve
                actions += self._begin_stop(holder)
            else:
                self._enter(serve)
                fresh.append(serve)
        if fresh or first:
            actions.append(Attach(tuple(fresh), first))
        return actions

    def _enter(self, serve: Serve) -> None:
        self._entries[serve.number] = _Entry(serve)
        self._by_flag[serve.flag] = serve.number

    def _stop(self, number: int) -> list[Action]:
        for flag, serve in list(self._waiting.items()):
            if serve.number == number:
                del self._waiting[flag]
        if number not in self._entries:
            return [Say(Stopped(number))]
        return self._begin_stop(number)

    def _begin_stop(self, number: int) -> list[Action]:
        entry = self._entries[number]
        if entry.state is ServedState.STOPPING:
            return []
        entry.state = ServedState.STOPPING
        return [StopServing(number)]

    # -- what the loop reports

    def attached(self, number: int, status: int) -> list[Action]:
        if status:
            self._remove(number)
        return [Say(Opened(number, status))]

    def stopped(self, number: int) -> list[Action]:
        flag = self._remove(number)
        actions: list[Action] = [Say(Stopped(number))]
        if (serve := self._waiting.pop(flag, None)) is not None:
            self._enter(serve)
            actions.append(Attach((serve,), False))
        return actions

    def lost(self, number: int, failed: bool, reason: str) -> list[Action]:
        entry = self._entries.get(number)
        if entry is None or entry.state is not ServedState.SERVING:
            return []
        entry.state, entry.lost = ServedState.LOST, Lost(number, failed, reason)
        return [Say(entry.lost)]

    def asked(self, number: int, count: int) -> list[Action]:
        """Its guest wants so many sub-channels. A new stack is told again."""
        entry = self._entries.get(number)
        if entry is None or entry.state is not ServedState.SERVING:
            return []
        entry.asked = Asked(number, count)
        return [Say(entry.asked)]

    def _remove(self, number: int) -> int:
        flag = self._entries.pop(number).serve.flag
        del self._by_flag[flag]
        return flag
