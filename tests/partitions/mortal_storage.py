"""Storage servers that die, and disks that lie, with the verified load on them, for tests of the checker.

A server here is a function that serves a `Host` and may raise `Died`; the next one then takes over the same rings, as
a successor process would. They answer with the real `Executor`; what they get wrong is when.
"""

import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bus.memory import PAGE_BYTES
from bus.native import Channel, GpaMap, RingClosed
from partitions.guests.verified import Plan, Result, VerifiedLoad
from partitions.storage.backends import BlockBackend, MemoryBackend
from partitions.storage.disk import Disk
from partitions.storage.executor import Executor
from runtime.chaos.blocks import BLOCK_BYTES, image_values
from runtime.chaos.history import History, HistoryWriter, read_history
from tests.partitions.storage_pair import FIRST_GPFN, guest_end, host_end

RING_BYTES = 16 * PAGE_BYTES
POLL_NS = 20_000_000
JOIN_S = 20

Packet = tuple[int, int, int, bytes, bytes]


class Died(Exception):
    """The server is gone, as after SIGKILL: nothing more of it happens."""


@dataclass
class Host:
    """What a server holds."""

    channel: Channel
    gpa_map: GpaMap
    backend: BlockBackend
    executor: Executor
    stop: threading.Event

    def take(self, most: int = 64) -> list[Packet]:
        """Requests, held until `release`; waits for the first one. Died: nobody needs us any more."""
        while not self.stop.is_set():
            if packets := self.channel.receive_batch(most, POLL_NS):
                return packets
        raise Died

    def answer(self, packet: Packet, executor: Executor | None = None) -> None:
        _, _, identity, extra, payload = packet
        self.channel.send_completion((executor or self.executor).execute(extra, payload), identity)

    def serve(self, requests: int | None = None) -> None:
        """As it should be: take, execute, publish, release."""
        while requests is None or requests > 0:
            (packet,) = self.take(1)
            self.answer(packet)
            self.channel.release()
            requests = None if requests is None else requests - 1

    def twin(self, backend: BlockBackend) -> Executor:
        """The same session on another disk."""
        return Executor(backend, self.gpa_map.views, serial="mortal", saved=self.executor.session.snapshot())


Server = Callable[[Host], None]


def honest(host: Host) -> None:
    host.serve()


@contextmanager
def served(
    backend: BlockBackend, servers: Sequence[Server], data_bytes: int, depth: int | None = None
) -> Iterator[Disk]:
    """A disk that the servers serve, one after the other; behind the last one is nobody.

    `depth`: of the load. Once so many requests wait for that nobody, the channel is closed.
    """
    rings = 2 * (PAGE_BYTES + RING_BYTES)
    memory = mmap.mmap(-1, rings + data_bytes)
    to_host, to_guest = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    guest = guest_end(memory, RING_BYTES, to_host, to_guest, "block")
    gpa_map = GpaMap()
    gpa_map.add(FIRST_GPFN, memory)
    stop = threading.Event()

    def serve_all() -> None:
        saved = None
        for server in servers:
            channel = host_end(memory, RING_BYTES, to_host, to_guest, "block")
            channel.kick()
            executor = Executor(backend, gpa_map.views, serial="mortal", saved=saved)
            try:
                server(Host(channel, gpa_map, backend, executor, stop))
            except (Died, RingClosed):
                saved = executor.session.snapshot()
        while depth is not None and not stop.is_set():
            if disks and disks[0].in_flight == depth and not guest.has_work:
                guest.close()
                return
            stop.wait(0.001)

    disks: list[Disk] = []
    thread = threading.Thread(target=serve_all, daemon=True)
    thread.start()
    try:
        with Disk(guest, memoryview(memory)[rings:], FIRST_GPFN + rings // PAGE_BYTES) as disk:
            disks.append(disk)
            yield disk
    finally:
        stop.set()
        thread.join(JOIN_S)
        assert not thread.is_alive()
        guest.close()
        os.close(to_host)
        os.close(to_guest)


def load(disk: Disk, plan: Plan, path: Path) -> tuple[Result, History]:
    """Run the verified load; its result, and its history as read back."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with HistoryWriter(
        descriptor,
        seed=plan.seed,
        first_block=plan.first_block,
        blocks=plan.blocks,
        blocks_max=plan.blocks_max,
        operations_max=plan.operations,
    ) as history:
        os.close(descriptor)
        result = VerifiedLoad(disk, history, plan).run()
    return result, read_history(path)


def data_bytes(plan: Plan) -> int:
    return plan.depth * plan.blocks_max * BLOCK_BYTES


def image_of(backend: MemoryBackend, blocks: int) -> dict[int, int]:
    assert backend._descriptor is not None
    return dict(enumerate(image_values(backend._descriptor, 0, blocks)))


class PlantedBackend(MemoryBackend):
    """A memory disk without a fast path, so that each access comes by, and `due` says when to go wrong."""

    every = 25  # accesses of the kind that the defect is about

    def __init__(self, blocks: int) -> None:
        super().__init__(blocks * BLOCK_BYTES)
        self.seen = 0
        self.struck = 0

    @property
    def descriptor(self) -> int | None:
        return None

    def due(self) -> bool:
        self.seen += 1
        strikes = self.seen % self.every == 0
        self.struck += strikes
        return strikes


class VolatileBackend(PlantedBackend):
    """A disk with a write cache, which loses some of it when the power goes. `lying`: a flush does nothing."""

    def __init__(self, blocks: int, *, lying: bool) -> None:
        super().__init__(blocks)
        self.lying = lying
        self.medium = bytes(self.size_bytes)

    def _content(self) -> bytes:
        return os.pread(self._open_descriptor(), self.size_bytes, 0)

    def flush(self) -> None:
        if not self.lying:
            self.medium = self._content()

    def cut_power(self) -> None:
        """Every second dirty block had been written back by chance; the others are as on the medium."""
        content, dirty = self._content(), 0
        for at in range(0, self.size_bytes, BLOCK_BYTES):
            old = self.medium[at : at + BLOCK_BYTES]
            if content[at : at + BLOCK_BYTES] != old:
                dirty += 1
                if dirty % 2:
                    os.pwrite(self._open_descriptor(), old, at)
        self.medium = self._content()
