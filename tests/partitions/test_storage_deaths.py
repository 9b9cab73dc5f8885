"""Whatever instant a root dies at, its successors leave every disk linearizable: hundreds of deaths, in small."""

import mmap
import os
import signal
import time
from pathlib import Path

import pytest

from bus.memory import PAGE_BYTES
from bus.native import Channel
from bus.seam import SEAM_BYTES, Seam, Step
from partitions.guests.verified import Plan
from partitions.storage.backends import MemoryBackend
from partitions.storage.disk import Disk
from partitions.storage.vsp import StorageVsp
from runtime.chaos.blocks import BLOCK_BYTES
from runtime.chaos.checker import check
from runtime.chaos.history import Ending
from runtime.chaos.verdict import summary
from tests.partitions.dying_root import DATA_STEPS, EXECUTING_AT, RECORD_BYTES, DyingRoot
from tests.partitions.mortal_storage import image_of
from tests.partitions.storage_pair import connected

BLOCKS = 64  # few, so that requests of all guests meet


@pytest.mark.parametrize("guests", [1, 2, 3])
def test_a_disk_stays_one_while_its_root_dies_over_and_over(tmp_path: Path, guests: int) -> None:
    """The guests' requests overlap; the device's lock keeps them whole, so even a torn read is a finding."""
    plans = [
        Plan(seed=1 + number, blocks=BLOCKS, depth=8, operations=30_000, seconds=2.0, patience_s=30)
        for number in range(guests)
    ]
    root = DyingRoot(tmp_path, plans, seed=guests)
    histories = root.run(until=time.monotonic() + 2.0)
    verdict = check(histories, bound_s=30, image=image_of(root.backend, BLOCKS))
    root.backend.close()
    assert verdict.passed, summary(verdict)
    assert all(history.ending is Ending.FINISHED for history in histories)
    if (
        sum(root.deaths.values()) > len(DATA_STEPS) + 1
    ):  # each once, in any order; a busy host has time for fewer
        assert set(root.deaths) >= {step.text for step in DATA_STEPS}, root.deaths
    assert root.deaths


def test_who_was_executing_stays_marked_until_all_of_it_has_been_replayed(tmp_path: Path) -> None:
    """Else a third root might let another channel in before it: what was read and overwritten would come back."""
    shared = memoryview(mmap.mmap(-1, PAGE_BYTES))
    record, seam = shared[:RECORD_BYTES], Seam(shared[RECORD_BYTES : RECORD_BYTES + SEAM_BYTES])
    with MemoryBackend(BLOCKS * BLOCK_BYTES) as backend, connected(backend) as pair:
        disk = Disk(pair.guest, pair.data, pair.data_gpfn)
        pair.end()
        buffer = disk.allocate(BLOCK_BYTES)
        for block in range(3):
            disk.submit_write(block * BLOCK_BYTES, buffer, BLOCK_BYTES)
        record[EXECUTING_AT] = 1  # the first root died in their midst

        def take_over() -> int:
            child = os.fork()
            if child == 0:
                channel = Channel(
                    pair.memory,
                    outgoing_offset=PAGE_BYTES + pair.ring_bytes,
                    outgoing_bytes=pair.ring_bytes,
                    incoming_offset=0,
                    incoming_bytes=pair.ring_bytes,
                    signal_fd=-1,
                    wait_fd=-1,
                    journal=record,
                    seam=seam.memory,
                )
                saved = pair.vsp.snapshot()
                StorageVsp(channel, pair.gpa_map, backend, saved=saved, record=record, seam=seam).replay()
                os._exit(0)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        for death in range(2):
            seam.arm(Step.RELEASE)
            assert take_over() == -signal.SIGKILL
            assert record[EXECUTING_AT] == 1, f"unmarked after {death + 1} of 3 requests"
        assert take_over() == 0
        assert record[EXECUTING_AT] == 0
