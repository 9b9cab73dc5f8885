"""A simulated process: something that gets its turns from the clock, until it dies."""

import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from random import Random
from typing import Any, Final

from bus.seam import Seam, Step
from partitions.simulated.clock import VirtualClock

_STEP, _STRUCK = 0, 4  # words of a seam


class Died(BaseException):
    """The process is gone, at this very place, as by SIGKILL. No handler on the way may take it for an error."""

    def __init__(self, step: Step | None = None) -> None:
        super().__init__(step)
        self.step = step


class Suspended(BaseException):
    """A call does not come back yet: its thread hangs in the medium. The same call is made again when it may go on."""

    def __init__(self, delay_ns: int | None) -> None:
        super().__init__(delay_ns)
        self.delay_ns = delay_ns  # None: until somebody says so


class DeadlySeam(Seam):
    """Strikes as bus.seam does; but who dies of it is a simulated process."""

    def __init__(self, memory: memoryview, watchers: Sequence[Callable[[Step], bool]] = ()) -> None:
        """`watchers`: asked at each pass of any step; who says yes has it strike."""
        super().__init__(memory)
        self._watchers = watchers

    def passing(self, step: Step) -> None:
        for watch in self._watchers:
            if watch(step):
                self._words[_STRUCK] = step
                raise Died(step)
        if self._words[_STEP] == step:
            super().passing(step)

    def disarm(self) -> None:
        self._words[_STEP] = 0

    def strike(self, step: Step) -> None:
        raise Died(step)


class Process:
    """What is asked of a dead one does not happen; what is asked of a stopped one happens when it goes on."""

    def __init__(self, clock: VirtualClock, name: str, on_death: Callable[["Process", str], None]) -> None:
        self.name, self.clock, self._on_death = name, clock, on_death
        self._after: Final = clock.after
        self.is_alive, self.is_stopped = True, False
        self._held_up: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._sleeping: set[Coroutine[float, None, object]] = set()
        self.interruptions: Final[list[Callable[[Random], None]]] = []  # asked when it is killed from outside

    def after(self, delay_ns: float, what: Callable[..., object], *arguments: Any) -> None:
        """A turn of this process's."""
        self._after(delay_ns, self._turn, what, arguments)

    def _turn(self, what: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        if not self.is_alive:
            return
        if self.is_stopped:
            self._held_up.append((what, arguments))
            return
        try:
            what(*arguments)
        except Died as death:
            self.die(f"at {death.step.text}" if death.step is not None else "signal SIGKILL")

    def stop(self) -> None:
        self.is_stopped = True

    def go_on(self) -> None:
        if self.is_stopped:
            self.is_stopped = False
            held_up, self._held_up = self._held_up, []
            for what, arguments in held_up:
                self.after(0, what, *arguments)

    def kill(self, rng: Random, reason: str = "signal SIGKILL") -> None:
        """From outside, at whatever its threads are doing at this instant."""
        if not self.is_alive:
            return
        for interrupt in self.interruptions:
            try:
                interrupt(rng)
            except Died:
                continue
        self.die(reason)

    def die(self, reason: str) -> None:
        if self.is_alive:
            self.is_alive = False
            self.close()
            self._on_death(self, reason)

    def close(self) -> None:
        """What sleeps here sleeps for ever."""
        for coroutine in self._sleeping:
            coroutine.close()
        self._sleeping.clear()

    # -- as a trio nursery, for coroutines that only sleep

    def start_soon(self, function: Callable[..., Awaitable[object]], *arguments: Any) -> None:
        coroutine: Any = function(*arguments)
        self._sleeping.add(coroutine)
        self.after(0, self._advance, coroutine)

    def _advance(self, coroutine: Coroutine[float, None, object]) -> None:
        self._sleeping.discard(coroutine)
        try:
            seconds = coroutine.send(None)
        except StopIteration:
            return
        self._sleeping.add(coroutine)
        self.after(seconds * 1e9, self._advance, coroutine)


@types.coroutine
def sleep(seconds: float) -> Generator[float, None, None]:
    """What such a coroutine awaits."""
    yield seconds
