"""Message servers, and monitors before them, that die hundreds of times: real sockets, rings and processes, no machine.

    microkernel   guest ── server           a guest's requests go to the server by messages
    hosted        guest ══ monitor ── server   a monitor for each guest, which passes on what stands in its ring

Each server process takes over all of its clients as a driver partition does (partitions/drivers/process.py), each
monitor its one ring. A client connects to a listening socket that outlives all of them; what it sends waits there
for the next one.
"""

import contextlib
import mmap
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NoReturn, cast

from bus.memory import PAGE_BYTES
from bus.native import GpaMap
from bus.seam import SEAM_BYTES, Seam, Step
from partitions.guests.verified import Plan
from partitions.stack.served_channel import replay_in_order
from partitions.stack.served_endpoint import ServedEndpoint
from partitions.storage._blockio import DeviceLock
from partitions.storage.backends import MemoryBackend
from partitions.storage.disk import Disk
from partitions.storage.message_channel import MessageChannel
from partitions.storage.message_service import MessageService
from partitions.storage.passed_on import PassedOnDisk
from partitions.storage.vsp import StorageVsp
from runtime.abi import HvStatus, HypercallCode, HypercallError, MapFlags
from runtime.chaos.blocks import BLOCK_BYTES
from runtime.chaos.history import History, read_history
from runtime.hypercalls.caller import HypercallPort, MappedSlot
from tests.partitions.dying_root import (
    DATA_STEPS,
    PATIENCE_S,
    RECORD_BYTES,
    RINGS_BYTES,
    SEAM_AT,
    Line,
    forked,
)
from tests.partitions.mortal_storage import data_bytes, load
from tests.partitions.storage_pair import FIRST_GPFN

MONITOR_BYTES: Final = 1 << 20
PAUSE_S_MAX: Final = 0.01
_NONE: Final = "from outside"


class _Listener:
    """Where clients of one endpoint connect, as a hypervisor keeps it; and the port of it that a server sees."""

    def __init__(self, name: str) -> None:
        self._name = "\0" + name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._socket.bind(self._name)
        self._socket.listen(16)

    def connect(self) -> int:
        """For a MessageChannel."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(self._name)
        return sock.detach()

    def claim_port_doorbell(self, port: int) -> MappedSlot:
        return MappedSlot(0, 0, 0, MapFlags.READ, self._socket.fileno())

    def claim_port_endpoint(self, port: int) -> int:
        try:
            return self._socket.accept()[0].detach()
        except BlockingIOError:
            raise HypercallError(HypercallCode.CONNECT_PORT, HvStatus.NO_DATA) from None

    def close(self) -> None:
        self._socket.close()


class _Memory:
    """What outlives the processes of one partition: records, and a seam."""

    def __init__(self) -> None:
        self._pages = memoryview(mmap.mmap(-1, PAGE_BYTES))
        self.seam: Final = Seam(self._pages[SEAM_AT : SEAM_AT + SEAM_BYTES])

    def record(self, number: int) -> memoryview:
        return self._pages[number * RECORD_BYTES : (number + 1) * RECORD_BYTES]


_Mortal = tuple[Callable[[], None], _Memory, tuple[Step, ...]]
"""A life, what outlives it, and where it can be made to end."""


class _Passed(PassedOnDisk):
    has_successor = True


class DyingServers:
    """`run` once."""

    def __init__(self, folder: Path, plans: Sequence[Plan], seed: int, *, fast: bool, monitors: bool) -> None:
        self._folder, self._plans, self._random = folder, plans, random.Random(seed)
        self._fast, self._has_monitors = fast, monitors
        self._listeners = [
            _Listener(f"partvisor-test-{os.getpid()}-{number}") for number in range(len(plans))
        ]
        self._lines = [Line(plan) for plan in plans]
        self._server, self._monitors = _Memory(), [_Memory() for _ in plans]
        self.backend = MemoryBackend(max(plan.first_block + plan.blocks for plan in plans) * BLOCK_BYTES)
        self.deaths: Counter[tuple[str, str]] = Counter()
        self._round: list[tuple[str, Step | None]] = []

    # -- processes

    def _be_guest(self, number: int) -> None:
        plan, line = self._plans[number], self._lines[number]
        if self._has_monitors:
            data = memoryview(line.memory)[RINGS_BYTES:]
            disk = Disk(line.guest_end(), data, FIRST_GPFN + RINGS_BYTES // PAGE_BYTES)
        else:
            area = memoryview(mmap.mmap(-1, data_bytes(plan)))
            disk = Disk(MessageChannel(self._listeners[number].connect, area, 0), area, 0)
        result, _ = load(disk, plan, self._folder / f"history{number}")
        if result.gave_up or result.failed or result.suspects:
            print(f"guest {number}: {result}", flush=True)
            os._exit(1)

    def _be_server(self) -> NoReturn:
        lock = DeviceLock()
        endpoints = []
        for number, listener in enumerate(self._listeners):
            service = MessageService(
                self.backend,
                self._server.record(number),
                serial="dying",
                lock=lock,
                seam=self._server.seam,
                fast=self._fast,
            )
            port = cast(HypercallPort, listener)
            endpoints.append(ServedEndpoint(port, 1, service, proxy=self._has_monitors))
        replay_in_order((endpoint.was_executing, endpoint.replay) for endpoint in endpoints)
        for number, endpoint in enumerate(endpoints):
            endpoint.start(f"endpoint {number}", lambda end: os._exit(2))
        while True:
            time.sleep(PATIENCE_S)

    def _be_monitor(self, number: int) -> NoReturn:
        line, memory = self._lines[number], self._monitors[number]
        area = memoryview(mmap.mmap(-1, MONITOR_BYTES))
        channel = MessageChannel(self._listeners[number].connect, area, 0)
        disk = _Passed("dying", Disk(channel, area, 0))
        record = memory.record(0)
        ring = line.host_end(record, memory.seam)
        gpa_map = GpaMap()
        gpa_map.add(FIRST_GPFN, line.memory)
        vsp: StorageVsp = disk.open(ring, gpa_map, record, memory.seam)
        vsp.replay()
        channel.settled()
        ring.kick()
        vsp.serve(threading.Event())
        os._exit(2)

    # -- the run

    def run(self, until: float) -> list[History]:
        """Servers die until that time; then they live until the guests are done. AssertionError: a guest failed."""
        if self._has_monitors:
            for line in self._lines:
                line.guest_end(reset=True).close()
        mortal: dict[str, _Mortal] = {"server": (self._be_server, self._server, (Step.EXECUTE,))}
        if self._has_monitors:
            for number, memory in enumerate(self._monitors):
                mortal[f"monitor {number}"] = partial(self._be_monitor, number), memory, DATA_STEPS
        pids = {name: forked(life) for name, (life, _, _) in mortal.items()}
        guests = {forked(partial(self._be_guest, number)): number for number in range(len(self._plans))}
        armed: dict[str, str] = {}
        ends = time.monotonic() + PATIENCE_S
        try:
            while guests:
                assert time.monotonic() < ends, "the guests do not come to an end"
                if time.monotonic() < until or not (armed or self.deaths):  # once, however busy the host is
                    self._strike(pids, mortal, armed)
                for name, how in self._reap(pids, guests, armed):
                    self.deaths[name.split()[0], how] += 1
                    pids[name] = forked(mortal[name][0])
                time.sleep(self._random.uniform(0, PAUSE_S_MAX))
        finally:
            for pid in (*pids.values(), *guests):
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            for listener, line in zip(self._listeners, self._lines, strict=True):
                listener.close()
                line.close()
        return [read_history(self._folder / f"history{number}") for number in range(len(self._plans))]

    def _strike(self, pids: dict[str, int], mortal: dict[str, _Mortal], armed: dict[str, str]) -> None:
        """Whoever is not about to die may be next. Each way to die comes once in every round."""
        if not self._round:
            self._round = [(name, step) for name in mortal for step in (None, *mortal[name][2])]
            self._random.shuffle(self._round)
            self._round.append(("server", Step.EXECUTE))  # first, however few there will be on a busy host
        name, step = self._round.pop()
        if name in armed:
            self._round.insert(0, (name, step))
            return
        memory = mortal[name][1]
        armed[name] = _NONE if step is None else step.text
        if step is None:
            os.kill(pids[name], signal.SIGKILL)
        else:
            memory.seam.arm(step, self._random.choice((1, 1, 2, 3, self._random.randint(1, 60))))

    def _reap(
        self, pids: dict[str, int], guests: dict[int, int], armed: dict[str, str]
    ) -> list[tuple[str, str]]:
        """Who has died, and how; guests that have ended are taken out."""
        for pid in list(guests):
            if (code := _exit_code(pid)) is not None:
                number = guests.pop(pid)
                assert code == 0, f"guest {number} ended with {code}"
        dead: list[tuple[str, str]] = []
        for name, pid in pids.items():
            if (code := _exit_code(pid)) is not None:
                assert code == -signal.SIGKILL, f"{name} ended with {code}, armed for {armed.get(name)}"
                dead.append((name, armed.pop(name)))
        return dead


def _exit_code(pid: int) -> int | None:
    """Of one child that has ended, reaped. Never of any child: the test process may have others."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None
