"""Who serves a disk, or another device, under a fault: native path, drivers of the user's, messages; and back again."""

import errno
import threading
from collections.abc import Sequence

import pytest
import trio

from partitions.custom.client import RingCustom
from partitions.custom.device import CustomDevice
from partitions.faults.fault_board import BOARD_BYTES
from partitions.machine_plan import DevicePlan
from partitions.sdk.block import AsyncBlockDriver
from partitions.storage.device import DiskDevice
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskCommandError
from partitions.storage.vsp import StorageVsp
from runtime.chaos.faults.knobs import Knobs
from tests.partitions.custom_pair import answering
from tests.partitions.faulty_machine import DISK_BYTES, NAME, comes_true, faulty_machine, order_of
from tests.partitions.message_world import GPFN, PlainBackend, message_channel, message_server

BLOCK = bytes(range(256)) * 2


def test_the_native_path_steps_aside_and_comes_back() -> None:
    with faulty_machine() as machine, machine.disk() as disk:
        disk.write(0, BLOCK)

        def native_reads() -> int:
            service = machine.served._service
            assert isinstance(service, StorageVsp)
            return 0 if service._fast is None else service._fast.statistics()["reads"]

        disk.read(0, 512)
        assert native_reads() > 0
        machine.inject("storage-error", Knobs(space=2), which="read")
        for _ in range(2):
            assert disk.read(0, 512) == BLOCK
        with pytest.raises(DiskCommandError) as caught:
            disk.read(0, 512)
        assert caught.value.errno == errno.EIO
        disk.write(512, BLOCK)
        assert native_reads() == 0
        assert machine.site.counts()[1].passes == 3
        machine.site.heal(1)
        assert disk.read(512, 512) == BLOCK
        assert comes_true(lambda: disk.read(0, 512) == BLOCK and native_reads() > 0)


def test_a_stuck_disk_is_healed_and_nothing_is_lost_and_others_go_on() -> None:
    with faulty_machine() as machine, faulty_machine() as other, machine.disk() as disk:
        machine.inject("storage-stuck", which="write")
        writer = threading.Thread(target=disk.write, args=(0, BLOCK))
        writer.start()
        assert comes_true(lambda: machine.fired == 1)
        with other.disk() as well:
            well.write(0, BLOCK)
        assert writer.is_alive()
        machine.site.heal(1)
        writer.join(20)
        assert not writer.is_alive()
        assert disk.read(0, 512) == BLOCK
        assert not machine.ends


def test_a_successor_arms_what_its_predecessor_had_and_goes_on_counting() -> None:
    board = memoryview(bytearray(BOARD_BYTES))
    with faulty_machine(board=board) as machine:
        with machine.disk() as disk:
            machine.inject("storage-error", Knobs(times=3), which="write")
            for _ in range(2):
                with pytest.raises(DiskCommandError):
                    disk.write(0, BLOCK)
        kept = bytes(board)
    board[:] = kept  # who closed it has healed everything
    with faulty_machine(board=board) as machine, machine.disk() as disk:
        with pytest.raises(DiskCommandError):
            disk.write(0, BLOCK)
        disk.write(0, BLOCK)
        assert machine.fired == 3


class Later(AsyncBlockDriver):
    """In memory; each call waits a little."""

    content = bytearray(DISK_BYTES)

    async def readv(self, views: Sequence[memoryview], offset: int) -> None:
        await trio.sleep(0.0001)
        for view in views:
            view[:] = self.content[offset : offset + view.nbytes]
            offset += view.nbytes

    async def writev(self, views: Sequence[memoryview], offset: int) -> None:
        await trio.sleep(0.0001)
        for view in views:
            self.content[offset : offset + view.nbytes] = view
            offset += view.nbytes


def test_a_driver_with_coroutines_is_hit_too() -> None:
    plan = DevicePlan(NAME, "disk", None, None, DISK_BYTES, False, 512, driver=f"{__name__}:Later")
    with faulty_machine(DiskDevice(plan)) as machine, machine.disk() as disk:
        disk.write(0, BLOCK)
        machine.inject("storage-error", Knobs(times=1), which="write")
        with pytest.raises(DiskCommandError):
            disk.write(0, BLOCK)
        disk.write(512, BLOCK)
        machine.site.inject(order_of("storage-stuck", 2, which="read"))
        reader = threading.Thread(target=disk.read, args=(512, 512))
        reader.start()
        assert comes_true(lambda: machine.site.counts()[2].fired == 1)
        machine.site.heal(None)
        reader.join(20)
        assert not reader.is_alive()
        assert disk.read(512, 512) == BLOCK
        assert not machine.ends


def test_a_custom_device_s_rings_break_as_a_disk_s_do() -> None:
    device = CustomDevice(NAME, answering(bytes.upper))
    with faulty_machine(device) as machine:
        custom = RingCustom(machine.guest, 8192, machine.data, machine.data_gpfn)
        assert custom.exchange(b"abc") == b"ABC"
        machine.inject("ring-delayed", Knobs(times=2), delay_ms=1)
        machine.site.inject(order_of("ring-twice", 2, Knobs(times=2)))
        for _ in range(4):
            assert custom.exchange(b"abc") == b"ABC"
        assert [counts.fired for counts in machine.site.counts().values()] == [2, 2]
        machine.site.inject(order_of("ring-lost", 3, Knobs(times=1)))
        replies: list[bytes] = []
        waiting = threading.Thread(target=lambda: replies.append(custom.exchange(b"lost")))
        waiting.start()
        assert comes_true(lambda: machine.site.counts()[3].fired == 1)
        machine.site.heal(None)
        waiting.join(20)
        assert replies == [b"LOST"]
        assert custom.exchange(b"abc") == b"ABC"


def test_a_server_of_messages_steps_aside_between_two_messages() -> None:
    """Its thread may be in C, and stay there for as long as plain messages come."""
    with (
        message_server(PlainBackend) as server,
        message_channel(server.connect) as (channel, area),
        Disk(channel, area, GPFN) as disk,
    ):
        disk.write(0, BLOCK)
        service = server.service
        assert service is not None
        assert service._fast is not None
        native, medium = service._fast, service._medium
        before = native.statistics()["reads"]
        assert disk.read(0, 512) == BLOCK
        assert native.statistics()["reads"] == before + 1
        medium.inject(order_of("storage-error", knobs=Knobs(times=1), which="read"))
        with pytest.raises(DiskCommandError):
            disk.read(0, 512)
        assert disk.read(0, 512) == BLOCK
        assert native.statistics()["reads"] == before + 1
        medium.heal(None)
        for _ in range(2):
            assert disk.read(0, 512) == BLOCK
        assert native.statistics()["reads"] > before + 1
