"""Whatever instant servers and monitors die at, every disk stays linearizable: hundreds of deaths, in small."""

import mmap
import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from bus.memory import PAGE_BYTES
from bus.native import Channel
from bus.seam import SEAM_BYTES, Seam, Step
from partitions.guests.verified import Plan
from partitions.storage.disk import Disk
from partitions.storage.message_channel import MessageChannel
from partitions.storage.passed_on import TURNS_AT, TURNS_END, VscBackend
from partitions.storage.vsp import StorageVsp
from runtime.chaos.blocks import BLOCK_BYTES
from runtime.chaos.checker import check
from runtime.chaos.history import Ending
from runtime.chaos.verdict import summary
from tests.partitions.dying_root import DATA_STEPS, RECORD_BYTES, SEAM_AT
from tests.partitions.dying_servers import DyingServers
from tests.partitions.message_world import (
    DATA_BYTES,
    GPFN,
    CountingBackend,
    MessageServer,
    PlainBackend,
    message_channel,
)
from tests.partitions.mortal_storage import image_of
from tests.partitions.storage_pair import Pair, connected

PATIENCE_S = 20.0
BLOCKS = 8  # few, so that requests of all guests meet
SECONDS = 0.8
FEW = 20


@pytest.mark.parametrize("fast", [True, False], ids=["c", "python"])
@pytest.mark.parametrize("monitors", [False, True], ids=["microkernel", "hosted"])
def test_a_disk_stays_one_while_its_servers_die_over_and_over(
    tmp_path: Path, fast: bool, monitors: bool
) -> None:
    """Two guests on the same blocks. Armed at each step that there is, or killed from outside."""
    plans = [
        Plan(seed=1 + number, blocks=BLOCKS, depth=8, operations=30_000, seconds=SECONDS, patience_s=30)
        for number in range(2)
    ]
    world = DyingServers(tmp_path, plans, seed=fast, fast=fast, monitors=monitors)
    histories = world.run(until=time.monotonic() + SECONDS)
    verdict = check(histories, bound_s=30, image=image_of(world.backend, BLOCKS))
    world.backend.close()
    assert verdict.passed, summary(verdict)
    assert all(history.ending is Ending.FINISHED for history in histories)
    assert world.deaths
    if sum(world.deaths.values()) > FEW:  # which is all that a busy host has time for
        assert world.deaths["server", "execute"], world.deaths
        if monitors:
            assert any(world.deaths["monitor", step.text] for step in DATA_STEPS), world.deaths


@pytest.mark.parametrize("backend_type", [CountingBackend, PlainBackend], ids=["python", "c"])
@pytest.mark.parametrize("durable", [False, True], ids=["one step", "two steps"])
@pytest.mark.parametrize("step", [Step.EXECUTE, Step.COMMIT, Step.PUBLISH])
def test_what_a_dead_monitor_had_done_is_not_done_again(
    step: Step, durable: bool, backend_type: type[CountingBackend]
) -> None:
    """Its guest has not heard of the write; another guest has read it and replaced it. No order explains it twice."""
    shared = memoryview(mmap.mmap(-1, PAGE_BYTES))
    record, seam = shared[:RECORD_BYTES], Seam(shared[SEAM_AT : SEAM_AT + SEAM_BYTES])
    with ExitStack() as stack:
        backend = stack.enter_context(backend_type())
        first, second = MessageServer(backend), MessageServer(backend)
        second.lock = first.lock
        for server in (first, second):
            server.start()
            stack.callback(server.stop)
        pair = stack.enter_context(connected(backend))
        disk = Disk(pair.guest, pair.data, pair.data_gpfn, timeout_s=PATIENCE_S)
        pair.end()
        other_channel, area = stack.enter_context(message_channel(second.connect))
        other = Disk(other_channel, area, GPFN)
        buffer = disk.allocate(BLOCK_BYTES)
        buffer.view[:] = b"1" * BLOCK_BYTES
        ticket = disk.submit_write(0, buffer, BLOCK_BYTES, durable=durable)

        def monitor(*, serves: bool) -> int:
            """One process. Its exit code."""
            fd = first.connect()
            if (child := os.fork()) == 0:
                memory = memoryview(bytearray(DATA_BYTES))
                channel = MessageChannel(lambda: fd, memory, 0)
                passing = VscBackend(Disk(channel, memory, 0))
                vsp = StorageVsp(
                    ring_end(pair, record, seam),
                    pair.gpa_map,
                    passing,
                    saved=pair.vsp.snapshot(),
                    record=record,
                    seam=seam,
                    relay=passing.relay,
                    turns=record[TURNS_AT:TURNS_END],
                )
                vsp.serve(threading.Event()) if serves else vsp.replay()
                os._exit(0)
            os.close(fd)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        seam.arm(step)
        assert monitor(serves=True) == -signal.SIGKILL
        assert other.read(0, BLOCK_BYTES) == b"1" * BLOCK_BYTES
        other.write(0, b"2" * BLOCK_BYTES)
        assert monitor(serves=False) == 0
        disk.wait(ticket)
        assert other.read(0, BLOCK_BYTES) == b"2" * BLOCK_BYTES, "it was done again"


def ring_end(pair: Pair, record: memoryview, seam: Seam) -> Channel:
    """A monitor's, without a doorbell: it finds what there is."""
    return Channel(
        pair.memory,
        outgoing_offset=PAGE_BYTES + pair.ring_bytes,
        outgoing_bytes=pair.ring_bytes,
        incoming_offset=0,
        incoming_bytes=pair.ring_bytes,
        signal_fd=pair.wait_fd,
        wait_fd=-1,
        journal=record,
        seam=seam.memory,
    )
