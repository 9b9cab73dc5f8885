"""Peers of a device: what this machine has for the same thing without partitions, measured in the same round."""

import os
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bus.native import Histogram
from runtime.config.model import WaitingKind
from runtime.exits import CommandError
from runtime.measure.devices.machines import DISK_BYTES
from runtime.measure.devices.operations import Means, Peer, PeerKind
from runtime.measure.devices.outside import NBD_SECONDS_MIN
from runtime.measure.devices_disk import API, NBDKIT, measure_peer, qemu_server
from runtime.measure.reference_programs import ReferencePrograms

PROGRAMS: Final = ("frame_pair", "ipc_pingpong")
_FRAMES: Final = {PeerKind.VETH: "veth", PeerKind.TAP: "tap"}
_TALKS: Final = {PeerKind.PIPE: "pipe", PeerKind.SOCKET: "seqpacket", PeerKind.STREAM: "stream"}
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
        if peer.kind is PeerKind.PREAD:
            return self._reads(peer)
        return self._nbd(peer)

    def _nbd(self, peer: Peer) -> PeerFigures:
        servers = {PeerKind.NBDKIT: NBDKIT, PeerKind.QEMU: qemu_server(), PeerKind.DISK_API: API}
        found = measure_peer(servers[peer.kind], max(self._seconds, NBD_SECONDS_MIN), self._cpus)
        return PeerFigures(0, found.per_second, (found.server_cpu_us or 0) * 1e3)

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

    def _reads(self, peer: Peer) -> PeerFigures:
        """From the page cache into one buffer, at random places."""
        size, latency, rng = peer.payload_bytes, Histogram(), random.Random(1)
        allowed = os.sched_getaffinity(0)
        with tempfile.TemporaryDirectory(prefix="partvisor-bench-") as place:
            path = Path(place) / "disk.img"
            path.write_bytes(bytes(1) * DISK_BYTES)
            fd, buffers = os.open(path, os.O_RDONLY | os.O_CLOEXEC), [bytearray(size)]
            offsets = [rng.randrange(DISK_BYTES // size) * size for _ in range(_OFFSETS)]
            os.sched_setaffinity(0, {self._cpus[0]})
            try:
                now, record, count = time.perf_counter_ns, latency.record, 0
                used, began = time.process_time_ns(), now()
                end = before = began
                finish = began + int(self._seconds * 1e9)
                while end < finish:
                    before = end
                    if os.preadv(fd, buffers, offsets[count % _OFFSETS]) != size:
                        raise CommandError("a read of the page cache came short")
                    end = now()
                    record(end - before)
                    count += 1
                used = time.process_time_ns() - used
            finally:
                os.sched_setaffinity(0, allowed)
                os.close(fd)
        return PeerFigures(latency.percentile(50), count * 1e9 / (end - began), used / count)
