"""A disk, its server with the agent that carries faults out, and a client of it, in one process, for tests."""

import contextlib
import mmap
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from bus.memory import PAGE_BYTES
from bus.native import Channel, GpaMap, Waiting
from bus.seam import Seam
from partitions.drivers.driven_device import DrivenDevice, medium_of
from partitions.faults.fault_board import BOARD_BYTES, FaultBoard
from partitions.faults.fault_site import FaultSite
from partitions.faults.server_agent import ServerAgent
from partitions.machine_plan import DevicePlan
from partitions.stack.channel_client import ChannelClient, open_device
from partitions.stack.channel_ports import Doorbells
from partitions.stack.served_channel import RingPlacement, ServedChannel, WorkerEnd
from partitions.storage.device import DiskDevice
from partitions.storage.disk import Disk
from runtime.abi import Route
from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.knobs import Knobs
from runtime.chaos.faults.orders import Order

NAME: Final = "disk0"
DISK_BYTES: Final = 1 << 20
RING_PAGES: Final = 2
DATA_PAGES: Final = 32
FIRST_GPFN: Final = 0x1000
PATIENCE_S: Final = 20.0
_RING_BYTES: Final = RING_PAGES * PAGE_BYTES
_SECOND: Final = PAGE_BYTES + _RING_BYTES


def order_of(kind: str, number: int = 1, knobs: Knobs | None = None, **parameters: int | str) -> Order:
    return Order(number, kind, NAME, FAULTS[kind].settle(parameters), knobs or Knobs(), seed=5)


def comes_true(condition: Callable[[], bool]) -> bool:
    ends = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < ends:
        time.sleep(0.002)
    return condition()


@dataclass
class FaultyMachine:
    guest: Channel
    served: ServedChannel
    agent: ServerAgent
    site: FaultSite
    ends: list[WorkerEnd]
    data: memoryview
    data_gpfn: int

    def disk(self, **options: float) -> Disk:
        return Disk(self.guest, self.data, self.data_gpfn, timeout_s=PATIENCE_S, **options)  # type: ignore[arg-type]

    def inject(self, kind: str, knobs: Knobs | None = None, **parameters: int | str) -> None:
        self.site.inject(order_of(kind, 1, knobs, **parameters))

    @property
    def fired(self) -> int:
        return self.site.counts()[1].fired


@contextlib.contextmanager
def faulty_machine(
    device: DrivenDevice | None = None, board: memoryview | None = None
) -> Iterator[FaultyMachine]:
    """`device`: of that name; None: a disk in memory."""
    memory = mmap.mmap(-1, 2 * _SECOND + DATA_PAGES * PAGE_BYTES)
    to_host, to_guest = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    guest = Channel(
        memory,
        outgoing_offset=0,
        outgoing_bytes=_RING_BYTES,
        incoming_offset=_SECOND,
        incoming_bytes=_RING_BYTES,
        signal_fd=to_host,
        wait_fd=to_guest,
        waiting=Waiting("adaptive"),
        reset=True,
    )
    device = device or DiskDevice(DevicePlan(NAME, "disk", "memory", None, DISK_BYTES, False, 512))
    agent = ServerAgent(
        FaultBoard(memoryview(bytearray(BOARD_BYTES)) if board is None else board),
        lambda _: medium_of(device),
    )
    pages, seam, ends = GpaMap(), Seam(), list[WorkerEnd]()
    pages.add(FIRST_GPFN, memory)
    client = ChannelClient(2, lambda gpadl: (_ for _ in ()).throw(LookupError(gpadl)))
    served = ServedChannel(
        Doorbells(1, Route.DIRECT, to_host, to_guest),
        RingPlacement(memoryview(memory)[: 2 * _SECOND], 1 + RING_PAGES),
        "adaptive",
        memoryview(bytearray(PAGE_BYTES)),
        memoryview(bytearray(64)),
        seam,
        lambda served: open_device(device, client, served, pages, seam, agent),
    )
    agent.look()
    served.start("worker", ends.append)
    machine = FaultyMachine(
        guest,
        served,
        agent,
        FaultSite(agent.board, seam, agent.look),
        ends,
        memoryview(memory)[2 * _SECOND :],
        FIRST_GPFN + 2 * _SECOND // PAGE_BYTES,
    )
    try:
        yield machine
    finally:
        machine.site.heal(None)
        guest.close()
        assert served.stop(PATIENCE_S)
        served.release()
        device.close()
