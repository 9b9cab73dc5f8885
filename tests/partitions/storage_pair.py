"""A disk client and a disk server at the two ends of a real channel, the server in a thread, for tests."""

import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bus.memory import PAGE_BYTES
from bus.native import Channel, GpaMap, RingError, Waiting
from partitions.storage.backends import BlockBackend
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
    vsp: StorageVsp
    stop: threading.Event
    thread: threading.Thread
    failure: list[RingError]

    def end(self) -> None:
        self.stop.set()
        self.host.close()
        self.thread.join(JOIN_S)
        assert not self.thread.is_alive()


@contextmanager
def connected(
    backend: BlockBackend,
    *,
    ring_pages: int = 4,
    data_pages: int = 64,
    fast: bool = True,
    waiting: str = "adaptive",
    max_transfer_bytes: int = 256 * 1024,
) -> Iterator[Pair]:
    """Guest page FIRST_GPFN is the first of the rings; the data area follows them, all in one piece of memory."""
    ring_bytes = ring_pages * PAGE_BYTES
    rings = 2 * (PAGE_BYTES + ring_bytes)
    memory = mmap.mmap(-1, rings + data_pages * PAGE_BYTES)
    to_host, to_guest = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    guest = Channel(
        memory,
        outgoing_offset=0,
        outgoing_bytes=ring_bytes,
        incoming_bytes=ring_bytes,
        incoming_offset=PAGE_BYTES + ring_bytes,
        signal_fd=to_host,
        wait_fd=to_guest,
        waiting=Waiting(waiting),
        reset=True,
    )
    host = Channel(
        memory,
        outgoing_offset=PAGE_BYTES + ring_bytes,
        outgoing_bytes=ring_bytes,
        incoming_bytes=ring_bytes,
        incoming_offset=0,
        signal_fd=to_guest,
        wait_fd=to_host,
        waiting=Waiting(waiting),
    )
    gpa_map = GpaMap()
    gpa_map.add(FIRST_GPFN, memory)
    vsp = StorageVsp(host, gpa_map, backend, serial="pair", max_transfer_bytes=max_transfer_bytes, fast=fast)
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
