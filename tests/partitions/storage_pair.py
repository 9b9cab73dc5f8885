"""A disk client and a disk server at the two ends of a real channel, the server in a thread, for tests."""

import mmap
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from bus.memory import PAGE_BYTES
from bus.native import Channel, GpaMap, RingError, Waiting
from partitions.storage._blockio import DeviceLock, Forward, Relay
from partitions.storage.backends import BlockBackend
from partitions.storage.queues import ONLY_QUEUE, Queue
from partitions.storage.vsp import StorageVsp

FIRST_GPFN = 0x1000
JOIN_S = 20


@dataclass
class Pair:
    guest: Channel
    host: Channel
    data: memoryview
    data_gpfn: int
    wait_fd: int  # the guest's doorbell
    host_wait_fd: int
    gpa_map: GpaMap
    memory: mmap.mmap
    ring_bytes: int
    vsp: StorageVsp
    stop: threading.Event
    thread: threading.Thread
    failure: list[RingError]

    def end(self) -> None:
        self.stop.set()
        self.host.close()
        self.thread.join(JOIN_S)
        assert not self.thread.is_alive()
        self.vsp.let_go()

    @contextmanager
    def succeeded_by(self, backend: BlockBackend, saved: Mapping[str, object]) -> Iterator[StorageVsp]:
        """Another server on the same rings, with an end of its own; the first one never comes back."""
        channel = host_end(self.memory, self.ring_bytes, self.host_wait_fd, self.wait_fd, "adaptive")
        vsp = StorageVsp(channel, self.gpa_map, backend, serial="pair", saved=saved)
        thread = threading.Thread(target=vsp.serve, args=(threading.Event(),), daemon=True)
        thread.start()
        try:
            yield vsp
        finally:
            channel.close()
            thread.join(JOIN_S)
            assert not thread.is_alive()


def host_end(
    memory: mmap.mmap,
    ring_bytes: int,
    to_host: int,
    to_guest: int,
    waiting: str,
    record: memoryview | None = None,
) -> Channel:
    return Channel(
        memory,
        outgoing_offset=PAGE_BYTES + ring_bytes,
        outgoing_bytes=ring_bytes,
        incoming_bytes=ring_bytes,
        incoming_offset=0,
        signal_fd=to_guest,
        wait_fd=to_host,
        waiting=Waiting(waiting),
        journal=record,
    )


def guest_end(
    memory: mmap.mmap,
    ring_bytes: int,
    to_host: int,
    to_guest: int,
    waiting: str | None = None,
    *,
    reset: bool = True,
) -> Channel:
    return Channel(
        memory,
        outgoing_offset=0,
        outgoing_bytes=ring_bytes,
        incoming_offset=PAGE_BYTES + ring_bytes,
        incoming_bytes=ring_bytes,
        signal_fd=to_host,
        wait_fd=to_guest,
        waiting=None if waiting is None else Waiting(waiting),
        reset=reset,
    )


@contextmanager
def connected(
    backend: BlockBackend,
    *,
    ring_pages: int = 4,
    data_pages: int = 64,
    fast: bool = True,
    waiting: str = "adaptive",
    max_transfer_bytes: int = 256 * 1024,
    more: Mapping[int, bytes] | None = None,
    lock: DeviceLock | None = None,
    relay: Relay | Forward | None = None,
    record: memoryview | None = None,
    turns: memoryview | None = None,
    queue: Queue = ONLY_QUEUE,
) -> Iterator[Pair]:
    """Guest page FIRST_GPFN is the first of the rings; the data area follows them, all in one piece of memory."""
    ring_bytes = ring_pages * PAGE_BYTES
    rings = 2 * (PAGE_BYTES + ring_bytes)
    memory = mmap.mmap(-1, rings + data_pages * PAGE_BYTES)
    to_host, to_guest = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    guest = guest_end(memory, ring_bytes, to_host, to_guest, waiting)
    host = host_end(memory, ring_bytes, to_host, to_guest, waiting, record)
    gpa_map = GpaMap()
    gpa_map.add(FIRST_GPFN, memory)
    for gpfn, pages in (more or {}).items():  # read-only
        gpa_map.add(gpfn, pages, writable=False)
    vsp = StorageVsp(
        host,
        gpa_map,
        backend,
        serial="pair",
        max_transfer_bytes=max_transfer_bytes,
        fast=fast,
        lock=lock,
        relay=relay,
        record=record,
        turns=turns,
        queue=queue,
    )
    stop = threading.Event()
    failure: list[RingError] = []

    def serve() -> None:
        try:
            vsp.serve(stop)
        except RingError as error:
            failure.append(error)

    thread = threading.Thread(target=serve, daemon=True)
    pair = Pair(
        guest,
        host,
        memoryview(memory)[rings:],
        FIRST_GPFN + rings // PAGE_BYTES,
        to_guest,
        to_host,
        gpa_map,
        memory,
        ring_bytes,
        vsp,
        stop,
        thread,
        failure,
    )
    thread.start()
    try:
        yield pair
    finally:
        pair.end()
        guest.close()
        os.close(to_host)
        os.close(to_guest)
