"""Measure the storage path alone: two pinned processes, one channel between them, a file in the page cache.

Prints each figure with the baseline that was measured beside it, in the same run. For a whole machine:
`partvisor bench disk`.
"""

import argparse
import mmap
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bus.memory import PAGE_BYTES
from bus.native import Channel, GpaMap, Histogram, Waiting, monotonic_ns
from partitions.guests.disk_load import CHUNK_BYTES, Load, Volume
from partitions.storage.backends import FileBackend
from partitions.storage.disk import Disk
from partitions.storage.vsp import StorageVsp

FIRST_GPFN = 0x1000
RING_BYTES = 16 * PAGE_BYTES
DATA_BYTES = 256 * PAGE_BYTES
RINGS_BYTES = 2 * (PAGE_BYTES + RING_BYTES)


class Pair:
    """Shared memory and two doorbells; `channel` makes one end or the other."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, RINGS_BYTES + DATA_BYTES)
        self.to_host, self.to_guest = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)

    def channel(self, host: bool, waiting: str) -> Channel:
        low, high = 0, PAGE_BYTES + RING_BYTES
        return Channel(
            self.memory,
            outgoing_offset=high if host else low,
            outgoing_bytes=RING_BYTES,
            incoming_offset=low if host else high,
            incoming_bytes=RING_BYTES,
            signal_fd=self.to_guest if host else self.to_host,
            wait_fd=self.to_host if host else self.to_guest,
            waiting=Waiting(waiting),
        )


def serve_disk(pair: Pair, waiting: str, path: Path) -> None:
    channel, gpa_map = pair.channel(True, waiting), GpaMap()
    gpa_map.add(FIRST_GPFN, pair.memory)
    with FileBackend.open(path) as backend:
        StorageVsp(channel, gpa_map, backend).serve(threading.Event())


def serve_echo(pair: Pair, waiting: str) -> None:
    channel, answer = pair.channel(True, waiting), bytes(64)
    request = channel.receive()
    while request is not None:
        request = channel.reply_and_receive(answer, request[2])


def start(function: Callable[..., None], cpu: int, *arguments: object) -> int:
    """Fork a server onto its processor, and return once it is there."""
    ready = os.eventfd(0)
    pid = os.fork()
    if pid == 0:
        os.sched_setaffinity(0, [cpu])
        os.eventfd_write(ready, 1)
        try:
            function(*arguments)
        finally:
            os._exit(0)
    os.eventfd_read(ready)
    os.close(ready)
    return pid


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def measure_exchange(waiting: str, server_cpu: int, count: int) -> Histogram:
    pair, latency = Pair(), Histogram()
    guest = pair.channel(False, waiting)
    pid = start(serve_echo, server_cpu, pair, waiting)
    request = bytes(64)
    for number in range(1, count + 1):
        begun = monotonic_ns()
        guest.exchange(request, number)
        latency.record(monotonic_ns() - begun)
    stop(pid)
    return latency


def measure_disk(waiting: str, server_cpu: int, path: Path, operations: int, single: int) -> list[Load]:
    pair = Pair()
    guest = pair.channel(False, waiting)
    pid = start(serve_disk, server_cpu, pair, waiting, path)
    try:
        disk = Disk(guest, memoryview(pair.memory)[RINGS_BYTES:], FIRST_GPFN + RINGS_BYTES // PAGE_BYTES)
        volume = Volume(disk, disk.size_bytes)
        loads = [volume.read_singly(single)]
        if operations:
            loads += [volume.read_randomly(operations), volume.read_in_order(operations // 8)]
        return loads
    finally:
        stop(pid)


def memcpy_bytes_per_second(source_bytes: int) -> float:
    """Of `source_bytes`, in 64 KiB pieces into one buffer: what a read from the page cache has to do at least."""
    source, target = memoryview(b"x" * source_bytes), memoryview(bytearray(CHUNK_BYTES))
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        for at in range(0, source_bytes, CHUNK_BYTES):
            target[:] = source[at : at + CHUNK_BYTES]
        best = min(best, time.perf_counter() - begun)
    return source_bytes / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--operations", type=int, default=500_000)
    parser.add_argument("--guest-cpu", type=int, default=0)
    parser.add_argument("--server-cpu", type=int, default=1)
    parser.add_argument("--ping-pong-ns", type=float, help="a bare C exchange of 64 bytes, measured just now")
    options = parser.parse_args()
    os.sched_setaffinity(0, [options.guest_cpu])
    server, size = options.server_cpu, options.megabytes << 20
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "disk.img"
        FileBackend.open(path, size, create=True).close()
        spun = measure_exchange("spin", server, 200_000).percentile(50)
        slept = measure_exchange("block", server, 5_000).percentile(50)
        copied = memcpy_bytes_per_second(size)
        single, many, ordered = measure_disk("spin", server, path, options.operations, 200_000)
        (asleep,) = measure_disk("block", server, path, 0, 5_000)
    base = options.ping_pong_ns or spun
    print(f"channel exchange, spinning           {spun:>9} ns")
    print(f"channel exchange, blocking           {slept:>9} ns")
    print(f"memcpy, 64 KiB pieces                {copied / 1e9:>9.2f} GB/s")
    print(
        f"QD1 4 KiB reads, spinning, p50       {single.p50_ns:>9} ns   {single.p50_ns / base:.1f} x bare exchange"
    )
    print(
        f"QD1 4 KiB reads, blocking, p50       {asleep.p50_ns:>9} ns   {asleep.p50_ns / slept:.2f} x exchange"
    )
    print(f"QD{many.depth} 4 KiB random reads             {many.operations_per_second:>9.0f} /s")
    print(
        f"sequential 64 KiB reads              {ordered.bytes_per_second / 1e9:>9.2f} GB/s "
        f"{ordered.bytes_per_second / copied:.2f} x memcpy"
    )
    wrong = sum(load.mismatches for load in (single, many, ordered, asleep))
    print(f"blocks that did not have their CRC   {wrong:>9}")


if __name__ == "__main__":
    main()
