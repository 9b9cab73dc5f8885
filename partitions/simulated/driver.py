"""A simulated driver partition: a process that serves one device's channels, and outlives the root.

What it serves is in a table that its next process finds, as partitions.drivers.state keeps it. What it is told, and
what it tells the root, takes a wake each way; the messages' own protocol (partitions.drivers.messages) is not
simulated.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from bus.channel_messages import STATUS_SUCCESS
from bus.memory import MemorySlot
from bus.native import GpaMap
from bus.seam import SEAM_BYTES
from partitions.drivers.building import DRIVER_PRIVILEGES
from partitions.simulated.kernel import SimulatedHypercalls
from partitions.simulated.process import DeadlySeam, Process
from partitions.simulated.root import RootLife
from partitions.simulated.serving import RingParts, ServedRing, Turns
from partitions.simulated.surroundings import Surroundings
from partitions.stack.channel_host import ChannelListener, Opening, OpenRequest
from partitions.stack.channel_ports import ChannelPorts, claim_doorbells, remove_ports
from partitions.stack.grant import Grant
from partitions.stack.guest_memory import GpaWindows, GuestMemory
from partitions.stack.saved_state import RECORD_BYTES
from partitions.stack.served_channel import ServedChannel, clear_record, place_rings
from partitions.stack.vmbus_ports import FlagAllocator, guest_channel_port, server_event_port
from runtime.abi import PAGE_BYTES, PartitionProperty, Route

_OWN_MEMORY_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Served:
    """One opening, as the driver's next process has to know it."""

    guest: int
    name: str
    relid: int
    number: int
    flag: int
    silent: bool
    ring_gpfn: int
    ring_pages: int
    downstream_page_offset: int
    grants: tuple[Grant, ...]


class DriverSurroundings(Surroundings, Protocol):
    """What a driver needs of its machine."""

    @property
    def lives(self) -> Sequence[RootLife]:
        """The last one is the one that counts."""

    def make_ring(
        self,
        process: Process,
        device: str,
        turns: Turns,
        parts: RingParts,
        seam: DeadlySeam,
        guest: str,
        on_broken: Callable[[str], None],
    ) -> ServedRing: ...
    def kill(self, name: str) -> None: ...


class SimulatedDriver:
    """One device's."""

    def __init__(self, machine: DriverSurroundings, device: str) -> None:
        self._machine, self.device = machine, device
        self.label: Final = device
        self.partition = 0
        self.windows, self.flags = GpaWindows(), FlagAllocator()  # the living root's knowledge
        self.rings: list[ServedRing] = []
        self.seam: Final = DeadlySeam(memoryview(bytearray(SEAM_BYTES)), machine.watchers_of(device))
        self._table: dict[int, Served] = {}  # by number
        self._records: dict[int, memoryview] = {}  # by flag
        self._serving: dict[int, tuple[ServedRing, list[MemorySlot]]] = {}
        self._answered: set[int] = set()  # openings that a root has heard of
        self._process: Process | None = None
        self._turns = Turns()

    def close(self) -> None:
        self._drop_all()

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.is_alive

    def record(self, flag: int) -> memoryview:
        if flag not in self._records:
            self._records[flag] = memoryview(bytearray(RECORD_BYTES))
        return self._records[flag]

    # -- the root's side

    def attach(self, life: RootLife) -> None:
        """A root begins: it creates the partition, or finds it there."""
        self.windows, self.flags = GpaWindows(), FlagAllocator()
        if not self.partition:
            self._create(life)
        else:
            life.process.after(self._machine.costs.wake, self.restart, life)

    def _create(self, life: RootLife) -> None:
        call = life.call
        call.label_made = self.label
        self.partition = driver = call.create_partition()
        call.label_made = ""
        call.set_privileges(driver, DRIVER_PRIVILEGES)
        call.set_property(driver, PartitionProperty.OUTLIVES_PROCESS, 1)
        call.deposit(driver, _OWN_MEMORY_BYTES // PAGE_BYTES)
        call.initialize(driver)
        call.create_vp(0, driver)
        call.set_program(driver, "partitions.drivers.process", self.label)
        call.start_vp(driver)

    def restart(self, life: RootLife) -> None:
        """Its process has ended: another one."""
        world = self._machine.kernel.world
        if not self.is_alive and self.partition not in world.starting and self.partition not in world.running:
            life.call.start_vp(self.partition)

    def tell(self, served: Served) -> None:
        """Serve it: at once, or when there is a process again."""
        self._table[served.number] = served
        if self._process is not None:
            self._process.after(self._machine.costs.wake, self._serve, served)

    def stop(self, number: int) -> None:
        self._table.pop(number, None)
        if (found := self._serving.pop(number, None)) is not None:
            self._drop(*found)

    # -- its processes

    def started(self, process: Process) -> None:
        """As a root takes over: who was in the midst of a batch first."""
        self._process, self._turns = process, Turns()
        self.beat(self._machine.hang_ms)
        struck = self.seam.take_struck()
        for served in self._table.values():
            self._attach(served)
        rings = [ring for ring, _ in self._serving.values()]
        for ring in sorted(rings, key=lambda one: not one.was_executing):
            ring.replay()
        for ring in rings:
            ring.serve()
        died_at = struck.text if struck is not None else None
        self._machine.log("driver.serving", self.device, channels=len(rings), died_at=died_at)
        for served in self._table.values():
            self._tell_root(served)

    def beat(self, within_ms: int) -> None:
        SimulatedHypercalls(self._machine.kernel, self.label).heartbeat(within_ms)

    def ended(self) -> None:
        self._drop_all()

    def _serve(self, served: Served) -> None:
        if served.number in self._table and served.number not in self._serving:
            for other in [
                one for one in self._table.values() if one.flag == served.flag and one is not served
            ]:
                self.stop(other.number)  # an earlier try of a root that died
            self._attach(served).serve()
            self._tell_root(served)

    def _tell_root(self, served: Served) -> None:
        life = self._machine.lives[-1]

        def opened() -> None:
            guest = life.stack.guests.get(served.guest) if life.stack is not None else None
            if guest is not None and served.number not in self._answered:
                self._answered.add(served.number)
                guest.opened(served.relid, served.number, STATUS_SUCCESS)

        life.process.after(self._machine.costs.wake, opened)

    def _attach(self, served: Served) -> ServedRing:
        assert self._process is not None
        call = SimulatedHypercalls(self._machine.kernel, self.label)
        slots: dict[int, MemorySlot] = {}
        for grant in served.grants:
            shift = grant.gpfn - grant.guest_gpfn
            for mapped in call.claim_gpa_pages(grant.gpfn, grant.pages):
                if (gpfn := mapped.gpfn - shift) in slots:
                    os.close(mapped.fd)
                else:
                    slots[gpfn] = MemorySlot.from_fd(mapped.fd, gpfn, mapped.pages)
        gpa_map = GpaMap()
        for slot in slots.values():
            gpa_map.add(slot.gpfn, slot.memory)
        kernel = self._machine.kernel
        parts = RingParts(
            claim_doorbells(call, served.flag, Route.DIRECT, silent=served.silent),
            place_rings(slots.values(), served.ring_gpfn, served.ring_pages, served.downstream_page_offset),
            self.record(served.flag),
            gpa_map,
            kernel.bell(served.guest, guest_channel_port(served.relid)),
            kernel.bell(self.partition, server_event_port(served.flag)),
        )
        ring = self._machine.make_ring(
            self._process, self.device, self._turns, parts, self.seam, served.name, self._broken(served)
        )
        self._serving[served.number] = ring, list(slots.values())
        self.rings.append(ring)
        return ring

    def _broken(self, served: Served) -> Callable[[str], None]:
        def tell(reason: str) -> None:
            life = self._machine.lives[-1]
            guest = life.stack.guests.get(served.guest) if life.stack is not None else None
            if guest is not None:
                life.process.after(0, guest.lost, served.relid, served.number, False, reason)

        return tell

    def _drop(self, ring: ServedRing, slots: list[MemorySlot]) -> None:
        self.rings.remove(ring)
        ring.close()
        ring.release()
        for slot in slots:
            slot.close()

    def _drop_all(self) -> None:
        for found in list(self._serving.values()):
            self._drop(*found)
        self._serving.clear()

    def find_stuck(self, stuck_ms: int) -> None:
        for ring in self.rings:
            if ring.hangs_for_ns() >= stuck_ms * 1_000_000 and self.is_alive:
                self._machine.log("driver.failed", self.device, reason="stuck")
                self._machine.kill(self.label)
                return


class DriverRings:
    """A ChannelHost of the root's: the driver serves."""

    def __init__(self, life: RootLife, driver: SimulatedDriver, listener: ChannelListener) -> None:
        assert life.resources is not None
        self._root, self._driver, self._listener = life.resources, driver, listener
        self.memory: GuestMemory = GuestMemory(
            self._root.hypercalls, driver.windows, listener.partition, driver.partition
        )

    @property
    def flags(self) -> FlagAllocator:
        return self._driver.flags

    def open(self, request: OpenRequest) -> None:
        action, opening, driver = request.action, request.opening, self._driver
        call, guest = self._root.hypercalls, self._listener.partition
        ports = ChannelPorts(call, driver.partition, guest, action, opening.flag, Route.DIRECT)
        ports.delete()
        ports.connect()
        clear_record(driver.record(opening.flag))
        gpfn, pages = self.memory.ring_pages(action.ring_gpadl)
        driver.tell(
            Served(
                guest,
                self._listener.name,
                action.relid,
                opening.number,
                opening.flag,
                ports.silent,
                gpfn,
                pages,
                action.downstream_page_offset,
                self.memory.grants_of_channel(action.relid),
            )
        )

    def adopt(self, request: OpenRequest) -> None:
        """The driver goes on."""

    def waits_to_be_served(self, relid: int) -> bool:
        return False

    def was_executing(self, relid: int) -> bool:
        return False

    def replay(self, relid: int) -> bool:
        return True

    def serve(self, relid: int) -> None:
        pass

    def close(self, relid: int, opening: Opening) -> None:
        self._root.nursery.start_soon(self._close, relid, opening)

    async def _close(self, relid: int, opening: Opening) -> None:
        await self._root.sleep(0)
        self.bury(relid, opening)
        self._listener.closed(relid, opening.number)

    def bury(self, relid: int, opening: Opening) -> None:
        self._driver.stop(opening.number)
        call, guest = self._root.hypercalls, self._listener.partition
        remove_ports(call, self._driver.partition, guest, relid, opening.connection_id, opening.flag)

    def find_stuck(self, stuck_ms: int) -> int | None:
        return None

    def workers(self) -> Iterable[ServedChannel]:
        return ()

    def is_busy(self, relid: int) -> bool:
        return False

    def statistics(self, relid: int) -> dict[str, Any]:
        return {}
