"""A root in small, which dies hundreds of times a second: real rings, real storage servers, real processes, no machine.

Each server process attaches to all channels as a successor does (partitions/root.py), replays, serves each channel in a
thread, and is killed, at a named step or from outside. The guests are processes of their own with the verified load.
Everything is forked from one thread, and what is shared was mapped before.
"""

import contextlib
import mmap
import os
import random
import select
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from bus.memory import PAGE_BYTES
from bus.native import Channel, GpaMap, RingError, Waiting
from bus.seam import SEAM_BYTES, Seam, Step
from partitions.guests.verified import Plan
from partitions.storage._blockio import DeviceLock
from partitions.storage.backends import MemoryBackend
from partitions.storage.disk import Disk
from partitions.storage.vsp import StorageVsp
from runtime.chaos.blocks import BLOCK_BYTES
from runtime.chaos.history import History, read_history
from tests.partitions.mortal_storage import data_bytes, load
from tests.partitions.storage_pair import FIRST_GPFN, guest_end

RING_BYTES: Final = 16 * PAGE_BYTES
RINGS_BYTES: Final = 2 * (PAGE_BYTES + RING_BYTES)
RECORD_BYTES: Final = 64
SEAM_AT: Final = PAGE_BYTES - 64
EXECUTING_AT: Final = 8
DATA_STEPS: Final = (Step.TAKE, Step.EXECUTE, Step.COMMIT, Step.PUBLISH, Step.RELEASE, Step.SIGNAL)
PATIENCE_S: Final = 60.0


class Line:
    """One guest's channel: its memory and its two doorbells."""

    def __init__(self, plan: Plan) -> None:
        self.memory = mmap.mmap(-1, RINGS_BYTES + data_bytes(plan))
        self.to_host, self.to_guest = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)

    def close(self) -> None:
        os.close(self.to_host)
        os.close(self.to_guest)

    def guest_end(self, *, reset: bool = False) -> Channel:
        return guest_end(self.memory, RING_BYTES, self.to_host, self.to_guest, "block", reset=reset)

    def host_end(self, record: memoryview, seam: Seam) -> Channel:
        return Channel(
            self.memory,
            outgoing_offset=PAGE_BYTES + RING_BYTES,
            outgoing_bytes=RING_BYTES,
            incoming_offset=0,
            incoming_bytes=RING_BYTES,
            signal_fd=self.to_guest,
            wait_fd=self.to_host,
            waiting=Waiting("block"),
            journal=record,
            seam=seam.memory,
        )


def forked(life: Callable[[], None]) -> int:
    """Its process, which ends with 1 if the life raised."""
    child = os.fork()
    if child == 0:
        try:
            life()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


class DyingRoot:
    """`run` once."""

    def __init__(
        self,
        folder: Path,
        plans: Sequence[Plan],
        seed: int,
        server: Callable[..., StorageVsp] = StorageVsp,
    ) -> None:
        self._folder, self._plans, self._random, self._server = folder, plans, random.Random(seed), server
        self._saved = memoryview(mmap.mmap(-1, PAGE_BYTES))
        self._seam = Seam(self._saved[SEAM_AT : SEAM_AT + SEAM_BYTES])
        self._blocks = max(plan.first_block + plan.blocks for plan in plans)
        self.backend = MemoryBackend(self._blocks * BLOCK_BYTES)
        self._lines = [Line(plan) for plan in plans]
        self.deaths: Counter[str] = Counter()
        self._round: list[Step | None] = []

    def _record(self, number: int) -> memoryview:
        return self._saved[number * RECORD_BYTES : (number + 1) * RECORD_BYTES]

    # -- processes

    def _be_guest(self, number: int) -> None:
        line, plan = self._lines[number], self._plans[number]
        disk = Disk(
            line.guest_end(), memoryview(line.memory)[RINGS_BYTES:], FIRST_GPFN + RINGS_BYTES // PAGE_BYTES
        )
        result, _ = load(disk, plan, self._folder / f"history{number}")
        if result.gave_up or result.failed or result.suspects:
            os._exit(1)

    def _be_root(self) -> NoReturn:
        lock = DeviceLock()
        servers: list[tuple[bool, Channel, StorageVsp]] = []
        for number, line in enumerate(self._lines):
            record = self._record(number)
            channel = line.host_end(record, self._seam)
            gpa_map = GpaMap()
            gpa_map.add(FIRST_GPFN, line.memory)
            vsp = self._server(channel, gpa_map, self.backend, lock=lock, record=record, seam=self._seam)
            servers.append((record[EXECUTING_AT] != 0, channel, vsp))
        for _, channel, vsp in sorted(servers, key=lambda server: not server[0]):
            vsp.replay()
            channel.kick()
        for _, _, vsp in servers:
            threading.Thread(target=self._serve, args=(vsp,), daemon=True).start()
        while True:
            time.sleep(PATIENCE_S)

    @staticmethod
    def _serve(vsp: StorageVsp) -> None:
        try:
            vsp.serve(threading.Event())
        except RingError as error:
            print(f"broken: {error}", flush=True)
            os._exit(2)

    # -- the run

    def run(self, until: float) -> list[History]:
        """Roots die until that time; then one lives until the guests are done. AssertionError: a guest failed."""
        for line in self._lines:
            line.guest_end(reset=True).close()
        numbers = range(len(self._lines))
        guests = {forked(partial(self._be_guest, number)): number for number in numbers}
        root = 0
        ends = time.monotonic() + PATIENCE_S
        try:
            while guests:
                dying = time.monotonic() < until
                how = self._arm() if dying else ""
                root = forked(self._be_root)
                if how == "from outside":
                    time.sleep(self._random.uniform(0, 0.01))
                    os.kill(root, signal.SIGKILL)
                status = None
                while status is None and guests:
                    assert time.monotonic() < ends, "the guests do not come to an end"
                    status = self._reap(root, guests)
                if status is not None:
                    assert status == -signal.SIGKILL, (
                        f"the root ended with {status}, armed for {how or 'nothing'}"
                    )
                    self.deaths[how] += 1
        finally:
            for pid in filter(None, (root, *guests)):
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            for line in self._lines:
                line.close()
        return [read_history(self._folder / f"history{number}") for number in range(len(self._plans))]

    def _arm(self) -> str:
        """Each way to die comes once in every round, so that few deaths, on a busy host, are still of every kind."""
        if not self._round:
            self._round = self._random.sample((*DATA_STEPS, None), len(DATA_STEPS) + 1)
        step = self._round.pop()
        if step is None:
            return "from outside"
        self._seam.arm(step, self._random.choice((1, 1, 2, 3, self._random.randint(1, 60))))
        return step.text

    def _reap(self, root: int, guests: dict[int, int]) -> int | None:
        """The root's end; guests that have ended are taken out. Waits for no other child of the test process."""
        ours = {os.pidfd_open(pid): pid for pid in (root, *guests)}
        try:
            pid = ours[select.select(ours, [], [])[0][0]]
        finally:
            for fd in ours:
                os.close(fd)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if pid == root:
            return code
        assert code == 0, f"guest {guests[pid]} ended with {code}"
        del guests[pid]
        return None
