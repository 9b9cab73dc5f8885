"""Carries out the faults that are done to a process from outside. Each is a coroutine, and healing it cancels it.

Whatever a coroutine has done to its victim it takes back when it ends: SIGCONT, the old limits, the burners' deaths. A
victim that has died meanwhile needs nothing taken back.
"""

import contextlib
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Final, Protocol

import psutil
import trio

from runtime.chaos.faults.counted_threads import counted_threads
from runtime.chaos.faults.knobs import Trigger
from runtime.chaos.faults.orders import Counts, FaultRefused, Order
from runtime.exits import CommandError

_BURN: Final = "while True: pass"
_STORM_BATCH_S: Final = 0.005  # a sleep of trio's is no shorter
_STORM_SIGNAL: Final = (
    signal.SIGWINCH
)  # ignored by default, and yet a system call in progress may end with EINTR
_UNLIMITED: Final = resource.RLIM_INFINITY


class Victims(Protocol):
    """The processes of a machine, by the names that its user knows."""

    def pid_of(self, name: str) -> int:
        """LookupError: there is none, or it does not run."""

    async def signal(self, name: str, number: int) -> None:
        """LookupError as `pid_of`."""

    def starts_of(self, name: str) -> contextlib.AbstractContextManager[trio.MemoryReceiveChannel[int]]:
        """The pid of each process of that name that starts from then on."""

    def management_path(self) -> str:
        """Of the machine's management socket. LookupError: it has none."""


Strike = Callable[[], bool]  # asked at each pass of the seam; True: do it now
_Carry = Callable[[Victims, Order, Strike], Awaitable[None]]


class ProcessAgent:
    """A FaultAgent, but for `inject`, which is asynchronous. For one trio task at a time."""

    def __init__(self, victims: Victims, nursery: trio.Nursery, fired: Callable[[Order], None]) -> None:
        """`fired` is told of each strike."""
        self._victims, self._nursery, self._fired = victims, nursery, fired
        self._armed: dict[int, tuple[trio.CancelScope, Trigger, trio.Event]] = {}

    async def inject(self, order: Order) -> None:
        """Arm it, and strike at once where its seam is passed at once. Raises FaultRefused."""
        carry = _CARRIED[order.kind]
        try:
            if order.kind not in _WAITS_FOR_A_START:
                self._victims.pid_of(order.target)
        except LookupError as error:
            raise FaultRefused(str(error)) from None
        scope, trigger, ended = trio.CancelScope(), Trigger(order.knobs, order.seed), trio.Event()

        def strikes() -> bool:
            struck = trigger.strikes()
            if struck:
                self._fired(order)
            return struck

        async def live(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            try:
                with scope:
                    task_status.started()
                    with contextlib.suppress(LookupError, ProcessLookupError):  # its victim is gone
                        await carry(self._victims, order, strikes)
            finally:
                ended.set()

        self._armed[order.number] = scope, trigger, ended
        await self._nursery.start(live)

    async def heal(self, number: int | None) -> None:
        """Returns when it is undone."""
        for armed in list(self._armed) if number is None else [number]:
            if armed in self._armed:
                scope, _, ended = self._armed.pop(armed)
                scope.cancel()
                with trio.CancelScope(shield=True):
                    await ended.wait()

    def counts(self) -> Mapping[int, Counts]:
        return {
            number: Counts(trigger.passes, trigger.fired) for number, (_, trigger, _) in self._armed.items()
        }


# -- one coroutine a kind


async def _once(victims: Victims, order: Order, strikes: Strike, number: int) -> None:
    if strikes():
        await victims.signal(order.target, number)


async def _kill(victims: Victims, order: Order, strikes: Strike) -> None:
    await _once(victims, order, strikes, signal.SIGKILL)


async def _fault_signal(victims: Victims, order: Order, strikes: Strike) -> None:
    await _once(victims, order, strikes, signal.Signals[str(order.parameters["signal"])])


@contextlib.asynccontextmanager
async def _stopped(victims: Victims, name: str) -> AsyncIterator[None]:
    await victims.signal(name, signal.SIGSTOP)
    try:
        yield
    finally:
        with (
            trio.CancelScope(shield=True),
            contextlib.suppress(LookupError, ProcessLookupError, CommandError),
        ):
            await victims.signal(name, signal.SIGCONT)


async def _stop(victims: Victims, order: Order, strikes: Strike) -> None:
    if strikes():
        async with _stopped(victims, order.target):
            await trio.sleep_forever()


async def _starve(victims: Victims, order: Order, strikes: Strike) -> None:
    period = float(order.parameters["period_ms"]) / 1000
    stopped = period * float(order.parameters["percent"]) / 100
    await _stop_now_and_then(victims, order.target, strikes, stopped, period)


async def _stutter(victims: Victims, order: Order, strikes: Strike) -> None:
    stopped, interval = (float(order.parameters[name]) / 1000 for name in ("stop_ms", "interval_ms"))
    await _stop_now_and_then(victims, order.target, strikes, stopped, max(interval, stopped))


async def _stop_now_and_then(
    victims: Victims, name: str, strikes: Strike, stopped_s: float, period_s: float
) -> None:
    while True:
        if strikes():
            async with _stopped(victims, name):
                await trio.sleep(stopped_s)
        await trio.sleep(period_s - stopped_s)


async def _slow_start(victims: Victims, order: Order, strikes: Strike) -> None:
    with victims.starts_of(order.target) as starts:
        async for pid in starts:
            if strikes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                try:
                    await trio.sleep(float(order.parameters["delay_ms"]) / 1000)
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)


async def _kill_at_starts(victims: Victims, order: Order, strikes: Strike) -> None:
    with victims.starts_of(order.target) as starts:
        async for pid in starts:
            if strikes():
                await trio.sleep(float(order.parameters["delay_ms"]) / 1000)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


async def _signal_storm(victims: Victims, order: Order, strikes: Strike) -> None:
    owed, batch = 0.0, float(order.parameters["rate"]) * _STORM_BATCH_S
    while True:
        pid = victims.pid_of(order.target)
        owed += batch
        whole = math.floor(owed)
        for _ in range(whole):
            if strikes():
                os.kill(pid, _STORM_SIGNAL)
        owed -= whole
        await trio.sleep(_STORM_BATCH_S)


async def _busy_neighbours(victims: Victims, order: Order, strikes: Strike) -> None:
    if not strikes():
        return
    cpus = os.sched_getaffinity(victims.pid_of(order.target))
    burners = [
        subprocess.Popen([sys.executable, "-c", _BURN]) for _ in range(int(order.parameters["processes"]))
    ]
    try:
        for burner in burners:
            os.sched_setaffinity(burner.pid, cpus)
        await trio.sleep_forever()
    finally:
        for burner in burners:
            burner.kill()
        for burner in burners:
            burner.wait()


async def _management_flood(victims: Victims, order: Order, strikes: Strike) -> None:
    owed, batch = 0.0, float(order.parameters["rate"]) * _STORM_BATCH_S
    command = [sys.executable, "-m", "runtime.chaos.faults.management_flood", victims.management_path()]
    client = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert client.stdin is not None
    os.set_blocking(client.stdin.fileno(), False)
    try:
        while True:
            owed += batch
            whole = math.floor(owed)
            asked = sum(strikes() for _ in range(whole))
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(client.stdin.fileno(), b"?" * asked)
            owed -= whole
            await trio.sleep(_STORM_BATCH_S)
    finally:
        client.kill()
        client.stdin.close()
        client.wait()


def _limited(
    kind: int, wanted: Callable[[psutil.Process, Order], int]
) -> Callable[[Victims, Order, Strike], Awaitable[None]]:
    """A limit below what there was, until it is healed. The hard limit stays, so that it can be taken back."""

    async def limit(victims: Victims, order: Order, strikes: Strike) -> None:
        if not strikes():
            return
        pid = victims.pid_of(order.target)
        with _own_limit(pid, kind, wanted(psutil.Process(pid), order)):
            await trio.sleep_forever()

    return limit


@contextlib.contextmanager
def _own_limit(pid: int, kind: int, soft: int) -> Iterator[None]:
    before = resource.prlimit(pid, kind)
    hard = before[1]
    resource.prlimit(pid, kind, (soft if hard == _UNLIMITED else min(soft, hard), hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, kind, before)


def _descriptors(process: psutil.Process, order: Order) -> int:
    numbers = [int(name) for name in os.listdir(f"/proc/{process.pid}/fd")]  # noqa: PTH208
    return max(numbers, default=0) + 1 + int(order.parameters["spare"])


def _memory(process: psutil.Process, order: Order) -> int:
    return int(process.memory_info().data) + (int(order.parameters["spare_kib"]) << 10)


def _file_size(process: psutil.Process, order: Order) -> int:
    return int(order.parameters["bytes"])


def _processes(process: psutil.Process, order: Order) -> int:
    return counted_threads(process.pid) + int(order.parameters["spare"])


_CARRIED: Final[Mapping[str, _Carry]] = {
    "kill": _kill,
    "kill-standby": _kill,
    "fault-signal": _fault_signal,
    "stop": _stop,
    "starve": _starve,
    "stutter": _stutter,
    "slow-start": _slow_start,
    "crash-loop": _kill_at_starts,
    "kill-in-recovery": _kill_at_starts,
    "signal-storm": _signal_storm,
    "busy-neighbours": _busy_neighbours,
    "management-flood": _management_flood,
    "limit-descriptors": _limited(resource.RLIMIT_NOFILE, _descriptors),
    "limit-memory": _limited(resource.RLIMIT_DATA, _memory),
    "limit-file-size": _limited(resource.RLIMIT_FSIZE, _file_size),
    "limit-processes": _limited(resource.RLIMIT_NPROC, _processes),
}
_WAITS_FOR_A_START: Final = frozenset({"slow-start", "crash-loop", "kill-in-recovery"})
