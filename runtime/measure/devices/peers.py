"""Peers of a device: what this machine has for the same thing without partitions, measured in the same round."""

import os
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bus.native import Histogram, monotonic_ns
from runtime.config.model import WaitingKind
from runtime.exits import CommandError
from runtime.measure.devices.client_clock import ClientClock
from runtime.measure.devices.machines import DISK_BYTES
from runtime.measure.devices.nbd_reader import NbdReader
from runtime.measure.devices.on_cpu import on_cpu
from runtime.measure.devices.operations import Means, Peer, PeerKind
from runtime.measure.devices.outside import NBD_SECONDS_MIN
from runtime.measure.devices.python_pair import run_apart
from runtime.measure.devices_disk import NBDKIT, measure_peer, qemu_server, running_peer
from runtime.measure.process_usage import Usage
from runtime.measure.reference_programs import ReferencePrograms

PROGRAMS: Final = ("frame_pair", "ipc_pingpong")
_FRAMES: Final = {PeerKind.VETH: "veth", PeerKind.TAP: "tap"}
_TALKS: Final = {
    PeerKind.PIPE: "pipe",
    PeerKind.PTY: "pty",
    PeerKind.SOCKET: "seqpacket",
    PeerKind.STREAM: "stream",
}
_PYTHON: Final = {  # kind and mode of python_pair
    PeerKind.PTY_PYTHON: ("pty", "exchange"),
    PeerKind.PTY_ECHO: ("pty", "echo"),
    PeerKind.PIPE_ECHO: ("pipe", "echo"),
    PeerKind.STREAM_PYTHON: ("stream", "exchange"),
    PeerKind.STREAM_FLOW: ("stream", "flow"),
    PeerKind.VSOCK: ("vsock", "exchange"),
    PeerKind.VSOCK_FLOW: ("vsock", "flow"),
}
_SERVERS: Final = {PeerKind.NBDKIT: NBDKIT, PeerKind.QEMU: qemu_server()}
_OFFSETS: Final = 4096


@dataclass(frozen=True, slots=True)
class PeerFigures:
    p50_ns: float  # of one operation; 0: only the rate was measured
    per_second: float
    cpu_ns: float  # an operation, of all processes


class Peers:
    """Ready to be measured, time and again. Use it in a `with` block."""

    def __init__(
        self, programs: ReferencePrograms, waiting: WaitingKind, cpus: tuple[int, int], seconds: float
    ) -> None:
        self._programs, self._cpus, self._seconds = programs, cpus, seconds
        self._waits = "block" if waiting is WaitingKind.BLOCK else "spin"

    def measure(self, peer: Peer) -> PeerFigures:
        """CommandError: this machine has no such thing; one line that says why."""
        if peer.kind in _FRAMES:
            return self._frames(peer)
        if peer.kind in _TALKS:
            return self._talk(peer)
        if peer.kind in _PYTHON:
            return self._pair(peer)
        if peer.kind in (PeerKind.PREAD, PeerKind.PWRITE):
            return self._file(peer)
        if peer.kind is PeerKind.MEMCPY:
            return self._copies(peer)
        if peer.kind is PeerKind.NBDKIT_READ:
            return self._nbd_reads()
        found = measure_peer(_SERVERS[peer.kind], max(self._seconds, NBD_SECONDS_MIN))
        return PeerFigures(0, found.per_second, (found.server_cpu_us or 0) * 1e3)

    def _nbd_reads(self) -> PeerFigures:
        clock = ClientClock()
        with running_peer(NBDKIT) as (path, pid), on_cpu(self._cpus[1]), NbdReader(path) as reader:
            reader.read(0)
            before, begun = Usage.of_process(pid), monotonic_ns()
            reader.read_until(begun + int(self._seconds * 1e9), clock)
            took, used = monotonic_ns() - begun, Usage.of_process(pid).since(before)
        count = clock.latency.count
        return PeerFigures(clock.latency.percentile(50), count * 1e9 / took, used.cpu_ns / count)

    def _pair(self, peer: Peer) -> PeerFigures:
        found = run_apart(*_PYTHON[peer.kind], peer.payload_bytes, self._seconds, self._cpus)
        count = max(found["operations"], 1)
        return PeerFigures(found["p50_ns"], count / found["seconds"], found["cpu_ns"] / count)

    def _copies(self, peer: Peer) -> PeerFigures:
        source, target, count = bytes(peer.payload_bytes), bytearray(peer.payload_bytes), 0
        with on_cpu(self._cpus[0]):
            used, begun = time.process_time_ns(), monotonic_ns()
            deadline = begun + int(self._seconds * 1e9)
            while monotonic_ns() < deadline:
                target[:] = source
                count += 1
            took, used = monotonic_ns() - begun, time.process_time_ns() - used
        return PeerFigures(0, count * 1e9 / took, used / count)

    def _frames(self, peer: Peer) -> PeerFigures:
        mode = "exchange" if peer.means is Means.LATENCY else "flow"
        found = self._programs.run(
            "frame_pair",
            _FRAMES[peer.kind],
            peer.payload_bytes,
            self._seconds,
            mode,
            self._waits,
            *self._cpus,
        )
        frames = found["frames"]
        return PeerFigures(found["p50_ns"], frames / found["seconds"], found["cpu_ns"] / frames)

    def _talk(self, peer: Peer) -> PeerFigures:
        found = self._programs.run(
            "ipc_pingpong", _TALKS[peer.kind], peer.payload_bytes, self._seconds, 0, *self._cpus
        )
        count = found["exchanges"]
        used = found["client"]["cpu_ns"] + found["server"]["cpu_ns"]
        return PeerFigures(found["p50_ns"], count / found["seconds"], used / count)

    def _file(self, peer: Peer) -> PeerFigures:
        """Between the page cache and one buffer, at random places."""
        size, latency, rng = peer.payload_bytes, Histogram(), random.Random(1)
        transfer = os.preadv if peer.kind is PeerKind.PREAD else os.pwritev
        with tempfile.TemporaryDirectory(prefix="partvisor-bench-") as place, on_cpu(self._cpus[0]):
            path = Path(place) / "disk.img"
            path.write_bytes(bytes(1) * DISK_BYTES)
            fd, buffers = os.open(path, os.O_RDWR | os.O_CLOEXEC), [bytearray(size)]
            offsets = [rng.randrange(DISK_BYTES // size) * size for _ in range(_OFFSETS)]
            try:
                now, record, count = time.perf_counter_ns, latency.record, 0
                used, began = time.process_time_ns(), now()
                end = before = began
                finish = began + int(self._seconds * 1e9)
                while end < finish:
                    before = end
                    if transfer(fd, buffers, offsets[count % _OFFSETS]) != size:
                        raise CommandError("a transfer of the page cache came short")
                    end = now()
                    record(end - before)
                    count += 1
                used = time.process_time_ns() - used
            finally:
                os.close(fd)
        return PeerFigures(latency.percentile(50), count * 1e9 / (end - began), used / count)
