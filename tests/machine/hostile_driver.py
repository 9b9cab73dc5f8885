"""A driver that serves as it should, and lets go of nothing: it keeps a mapping of each slot that it was ever granted.

`install` puts it in the place of partitions.drivers.process; a test's sitecustomize calls that before there is a
zygote. So is its guest.
"""

import mmap
import os
import threading
import time
from typing import Any, Final

from bus.channel_client_states import ClientChannelState
from bus.memory import MemorySlot
from partitions.child import Partition
from partitions.drivers import process as driver
from partitions.drivers.table import Action, StopServing
from partitions.vsc.conversation import VmbusError
from partitions.vsc.vmbus import VmbusGuest

MODE_VARIABLE: Final = "PARTVISOR_TEST_DRIVER"  # clings | rescinds | ignores-stop
BLOCK: Final = 4096
BEFORE: Final = b"meant for its driver's eyes, too".ljust(64, b".") * (BLOCK // 64)
AFTER: Final = b"what the guest does afterwards".ljust(64, b".") * (BLOCK // 64)
SCRIBBLE: Final = 0xEE
WRITTEN: Final = 0x77
DATA_BYTES: Final = 64 << 10
WORK_S: Final = 0.2
PROWL_S: Final = 3 * WORK_S  # so that it lasts while the guest works
_PAUSE_S: Final = 0.004


class _Clinging(driver._Attached):
    """Beside each slot a mapping by a descriptor of its own, which `release` knows nothing of."""

    first: "_Clinging | None" = None

    def __init__(self, serve: Any, served: Any, slots: list[MemorySlot]) -> None:
        super().__init__(serve, served, slots)
        self.released = threading.Event()
        self.kept = [(mmap.mmap(os.dup(slot.fd), slot.size_bytes), os.dup(slot.fd)) for slot in slots]
        if _Clinging.first is None:
            _Clinging.first = self

    def release(self) -> None:
        super().release()
        self.released.set()


class HostileDriver(driver.Driver):
    def __init__(self, partition: Partition) -> None:
        super().__init__(partition)
        self._mode = os.environ[MODE_VARIABLE]
        if self._mode != "ignores-stop":
            threading.Thread(target=self._prowl, daemon=True).start()

    def _perform(self, actions: list[Action]) -> None:
        if self._mode_is_deaf():
            actions = [action for action in actions if not isinstance(action, StopServing)]
        super()._perform(actions)

    def _mode_is_deaf(self) -> bool:
        return getattr(self, "_mode", "") == "ignores-stop" and self._table.generation == 1

    def _prowl(self) -> None:
        """See what it may see; once it has let go, as it says: look and write there again and again."""
        while (held := _Clinging.first) is None:
            time.sleep(_PAUSE_S)
        ((old, fd),) = held.kept
        while BEFORE not in old[:] or old[-2] != WRITTEN:
            time.sleep(_PAUSE_S)
        old[-1] = SCRIBBLE  # so far it may: its guest waits for it
        if self._mode == "rescinds":
            number = held.serve.number
            self._tell(lambda: self._table.lost(number, False, "it says so"))
        held.released.wait()
        spied = passes = 0
        while old[:] != bytes(len(old)):  # the guest has only just heard
            spied += AFTER in old[:]
            time.sleep(_PAUSE_S)
        self._partition.report("emptied")
        ends = time.monotonic() + PROWL_S
        while time.monotonic() < ends:
            spied += AFTER in old[:] or AFTER in os.pread(fd, len(old), 0)
            old[:] = bytes([SCRIBBLE]) * len(old)
            passes += 1
            time.sleep(_PAUSE_S)
        self._partition.report("prowled", passes=passes, spied=spied, writes_arrive=old[0] == SCRIBBLE)


def install() -> None:
    driver._Attached = _Clinging  # type: ignore[misc]
    driver.Driver = HostileDriver  # type: ignore[misc]


def guest(partition: Partition) -> None:
    """Open the disk, lose or close it, open it again, write what its driver shall not see, look for scribbling."""
    with partition.open_disk("disk0", DATA_BYTES) as disk:
        disk.write(0, BEFORE)
        if partition.args["mode"] != "ignores-stop":
            _wait_to_be_seen(partition)
        if partition.args["mode"] == "rescinds":
            _lose(partition)
    partition.report("let_go")
    while True:
        try:
            with partition.open_disk("disk0", DATA_BYTES) as disk:
                (opened,) = partition.vmbus._channels.values()
                area = opened.data[-BLOCK:]  # the allocator begins at the other end
                area[:] = AFTER
                spoilt, ends = 0, time.monotonic() + WORK_S
                while time.monotonic() < ends:
                    disk.write(BLOCK, AFTER)
                    spoilt += disk.read(BLOCK, BLOCK) != AFTER
                    spoilt += bytes(area) != AFTER
                kept = disk.read(0, BLOCK) == BEFORE
                del area
                partition.report("done", spoilt=spoilt, kept=kept)
                time.sleep(600)
        except VmbusError:  # not offered again yet
            time.sleep(0.02)


def _wait_to_be_seen(partition: Partition) -> None:
    (opened,) = partition.vmbus._channels.values()
    opened.data[-2] = WRITTEN  # the write has been answered: now it may be taken away
    while opened.data[-1] != SCRIBBLE:
        time.sleep(_PAUSE_S)
    partition.report("was_seen")


def _is_open(bus: VmbusGuest, relid: int) -> bool:
    """Not any more, once it was rescinded: then it is offered again."""
    return bus._client.channel_state(relid) is ClientChannelState.OPEN


def _lose(partition: Partition) -> None:
    """Until the channel is rescinded; then go on writing into its buffers for a while, as one who has not noticed."""
    bus = partition.vmbus
    ((relid, opened),) = bus._channels.items()
    with bus._changed:
        bus._changed.wait_for(lambda: not _is_open(bus, relid), 20)
    area, spoilt = opened.data[-BLOCK:], 0
    area[:] = AFTER
    ends = time.monotonic() + WORK_S
    while time.monotonic() < ends:
        spoilt += bytes(area) != AFTER
        time.sleep(_PAUSE_S)
    partition.report("lost", spoilt=spoilt)
