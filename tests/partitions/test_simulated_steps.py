"""A simulated death leaves the same memory behind as SIGKILL of a process at the same step."""

import mmap
import os
import signal
import threading
from typing import Any, cast

import pytest

from bus.memory import PAGE_BYTES
from bus.native import Channel, GpaMap
from bus.seam import SEAM_BYTES, Seam, Step
from partitions.simulated.process import DeadlySeam, Died
from partitions.simulated.rings import OneTurn, SteppedChannel, rung
from partitions.stack.served_channel import RingPlacement
from partitions.storage.backends import MemoryBackend
from partitions.storage.disk import Disk
from partitions.storage.handshake import DiskDescription
from partitions.storage.identity import Capacity
from partitions.storage.protocol import ProtocolVersion
from partitions.storage.vsp import StorageVsp
from tests.partitions.dying_root import DATA_STEPS, RECORD_BYTES
from tests.partitions.storage_pair import FIRST_GPFN, guest_end, host_end

RING_BYTES = 2 * PAGE_BYTES
RINGS_BYTES = 2 * (PAGE_BYTES + RING_BYTES)
DATA_BYTES = 8 * PAGE_BYTES
DISK_BYTES = 64 * PAGE_BYTES
READY = {"snapshot": 1, "state": "ready", "version": int(ProtocolVersion.BLUE)}


class Bench:
    """A channel with some requests in its ring, and a guest that sleeps."""

    def __init__(self, requests: int) -> None:
        self.memory = mmap.mmap(-1, RINGS_BYTES + DATA_BYTES)
        self.kept = memoryview(mmap.mmap(-1, PAGE_BYTES))
        self.record = self.kept[:RECORD_BYTES]
        self.bells = (
            os.eventfd(0, os.EFD_NONBLOCK),
            os.eventfd(0, os.EFD_NONBLOCK),
        )  # to the host, to the guest
        self.backend = MemoryBackend(DISK_BYTES)
        guest = guest_end(self.memory, RING_BYTES, *self.bells)
        capacity = Capacity(DISK_BYTES // 512, 512, can_discard=True)
        data = memoryview(self.memory)[RINGS_BYTES:]
        description = DiskDescription(capacity, DATA_BYTES, False, "bench", int(ProtocolVersion.BLUE))
        disk = Disk(guest, data, FIRST_GPFN + RINGS_BYTES // PAGE_BYTES, description=description)
        for block in range(requests):
            buffer = disk.allocate(PAGE_BYTES)
            buffer.view[:] = bytes([block + 1]) * PAGE_BYTES
            disk.submit_write(block * PAGE_BYTES, buffer)
        guest.arm()

    def server(self, channel: Any, seam: Seam) -> StorageVsp:
        gpa_map = GpaMap()
        gpa_map.add(FIRST_GPFN, self.memory)
        return StorageVsp(
            channel, gpa_map, self.backend, saved=READY, fast=False, record=self.record, seam=seam
        )

    def left(self) -> dict[str, object]:
        """All that outlives the server."""
        descriptor = self.backend.descriptor
        assert descriptor is not None
        return {
            "rings": bytes(self.memory[:RINGS_BYTES]),
            "record": bytes(self.record),
            "disk": os.pread(descriptor, DISK_BYTES, 0),
            "guest woken": rung(self.bells[1]),
        }


def killed(step: Step, passes: int) -> dict[str, object]:
    bench = Bench(3)
    seam = Seam(bench.kept[RECORD_BYTES : RECORD_BYTES + SEAM_BYTES])
    seam.arm(step, passes)
    child = os.fork()
    if child == 0:
        channel = Channel(
            bench.memory,
            outgoing_offset=PAGE_BYTES + RING_BYTES,
            outgoing_bytes=RING_BYTES,
            incoming_offset=0,
            incoming_bytes=RING_BYTES,
            signal_fd=bench.bells[1],
            wait_fd=bench.bells[0],
            journal=bench.record,
            seam=seam.memory,
        )
        bench.server(channel, seam).serve(threading.Event())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return bench.left()


def died(step: Step, passes: int) -> dict[str, object]:
    bench = Bench(3)
    seam = DeadlySeam(bench.kept[RECORD_BYTES : RECORD_BYTES + SEAM_BYTES])
    seam.arm(step, passes)
    native = host_end(bench.memory, RING_BYTES, bench.bells[0], bench.bells[1], "block", bench.record)
    channel = SteppedChannel(
        native,
        seam,
        RingPlacement(memoryview(bench.memory)[:RINGS_BYTES], 1 + RING_BYTES // PAGE_BYTES),
        bench.bells[1],
    )
    server = bench.server(channel, seam)

    def serve() -> None:
        while native.has_work:
            server.serve(cast(threading.Event, OneTurn()))
            channel.take_signal()

    with pytest.raises(Died) as death:
        serve()
    assert death.value.step is step
    return bench.left()


PASSES = [(step, passes) for step in DATA_STEPS for passes in (1, 2)]
PASSES.remove((Step.SIGNAL, 2))  # the guest is rung once: after that it does not sleep


@pytest.mark.parametrize(("step", "passes"), PASSES)
def test_a_simulated_death_leaves_what_a_killed_process_leaves(step: Step, passes: int) -> None:
    simulated, real = died(step, passes), killed(step, passes)
    woken = simulated.pop("guest woken"), real.pop("guest woken")
    assert simulated == real
    if passes == 1:  # later the guest was rung for the first answer already; here nobody looked in between
        assert woken[0] == woken[1]
