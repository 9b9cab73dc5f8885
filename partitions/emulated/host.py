"""A parent's emulators at work: takes the intercepts of its children, answers them, and does what the devices ask for.

Intercepts that come through the hypervisor are answered by a virtual processor of their own, a thread that does nothing
else: an event loop between interrupt and answer costs more than the answer. Those of a child with direct intercepts are
answered in a thread of that child's. What waits for a disk runs in a thread, with the device busy meanwhile. One lock
guards all devices.

The order for each access: the device changes and says what it has to say, its record is written, the VP goes on, and
then what follows is done: an interrupt, a disk's request. A successor does again what may not have been done: an
interrupt that stands, a disk's request; and a line of text may be said twice.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import trio

from bus.intercept_messages import (
    INTERCEPT_SINT,
    InterceptFormatError,
    MemoryIntercept,
    PortIntercept,
    memory_access_size,
)
from bus.intercept_page import DirectAnswer, DirectRequest
from bus.memory import MemorySlot
from bus.native import ServiceBudget
from bus.synic import MessageType
from partitions.emulated.consequences import Consequences
from partitions.emulated.devices import (
    NOBODY,
    Emulated,
    PartitionDevices,
    Reply,
    make_device,
    string_registers,
)
from partitions.emulated.direct import DirectServer
from partitions.emulated.disk_medium import ide_disk
from partitions.emulated.expected import Expected, count_of, expected_of
from partitions.emulated.guest import EmulatedGuest
from partitions.emulated.keyboard import KeyboardController
from partitions.emulated.paced_turns import PacedTurns
from partitions.emulated.plan import EmulationError
from partitions.emulated.records import Record
from partitions.emulated.serial_port import SerialPort
from partitions.emulated.string_memory import StringMemory
from partitions.storage.device import DiskDevice
from partitions.vp.processor import VirtualProcessor
from runtime.abi import HypercallError, HypervisorGone, InterceptType, RegisterName
from runtime.hypercalls.caller import Birth, HypercallPort, MappedSlot

RECORDS_GPFN: Final = 0x8000  # in the parent's GPA space: a page for each emulated device
SAVE_MS_MAX: Final = 5_000  # for a disk to answer what it was asked before
_LOOK_S: Final = 0.005
_INTERCEPT_VP: Final = 1  # of the parent's, and made for this: VP 0 is the VMBus's
_U64: Final = 2**64 - 1
_ANSWERABLE: Final = frozenset(
    (MessageType.X64_IO_PORT_INTERCEPT, MessageType.GPA_INTERCEPT, MessageType.UNMAPPED_GPA)
)


class EmulationHost:
    """The emulated devices of all children of one parent."""

    def __init__(
        self,
        hypercalls: HypercallPort,
        birth: Birth,
        nursery: trio.Nursery,
        log: Callable[..., None],
    ) -> None:
        """
        Args:
            birth: ours.
            log: (kind, **fields): to the machine's console.
        """
        self._call, self._birth, self._nursery, self._log = hypercalls, birth, nursery, log
        self._vp: VirtualProcessor | None = None  # where intercepts arrive, on SINT 0, if there may be any
        self._token = trio.lowlevel.current_trio_token()
        self._lock = threading.RLock()  # guards the guests' devices and records
        self._consequences = Consequences(hypercalls, nursery, self._lock, log)
        self._expected: dict[str, Expected] = {}
        self._guests: dict[int, EmulatedGuest] = {}
        self.on_serial_output: Callable[[str, bytes], None] = lambda name, data: None  # for a terminal

    # -- children come and go

    def expect(
        self, tables: Sequence[Mapping[str, Any]], get_pages: Callable[[int, int], list[MappedSlot]]
    ) -> None:
        """Children will have the devices that their [[partition]] tables say.

        Args:
            get_pages: (gpfn, pages): new ones of ours, which outlive this process, or those of a predecessor.
        """
        if not (count := count_of(tables)):
            return
        inherited = [lines for lines in self._birth.vps if lines.vp == _INTERCEPT_VP]
        lines = inherited[0] if inherited else self._call.create_vp(_INTERCEPT_VP)
        assert lines is not None  # it is our own
        self._vp = VirtualProcessor(lines, self._call)
        self._vp.enable((INTERCEPT_SINT,))
        (mapped,) = get_pages(RECORDS_GPFN, count)
        memory = MemorySlot.from_fd(mapped.fd, mapped.gpfn, mapped.pages).memory
        self._expected = expected_of(tables, memory)

    def attach(
        self,
        partition: int,
        name: str,
        devices: Mapping[str, object],
        *,
        budget: ServiceBudget | None = None,
        taken_over: bool = False,
        restored: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """A child that is there and has not started yet; or, taken over, one of a predecessor's.

        Args:
            devices: the parent's, by name; what an IDE disk stands for must be a `DiskDevice`.
            budget: its own, with which it pays for what is done for it here.
            restored: what `save` said of each device of the partition that it is the continuation of.

        Raises:
            HypercallError: for instance, too little memory deposited.
            EmulationError: a disk is not ours; what is restored are not these devices.
        """
        expected = self._expected.get(name)
        if expected is None or not expected.plans:
            return
        assert self._vp is not None
        plans = expected.plans
        disks = {each: disk for each, disk in devices.items() if isinstance(disk, DiskDevice)}
        for plan in plans:
            if plan.device is not None and plan.device not in disks:
                raise EmulationError(
                    f"IDE disk {plan.device}: only a disk that the root itself drives can be one"
                )
        ide = {plan.device: ide_disk(disks[plan.device]) for plan in plans if plan.device is not None}
        if not taken_over:  # a child of that name may have been here before
            for record in expected.records:
                record[:] = bytes(len(record))
        emulated = [
            Emulated(
                plan,
                make_device(plan, ide, _clock_us, expected.memory_bytes, lambda: self._port(name)),
                Record(record),
            )
            for plan, record in zip(plans, expected.records, strict=True)
        ]
        pc = PartitionDevices(emulated, StringMemory(self._call, partition))
        if taken_over:
            pc.take_over()
        if restored:
            pc.restore(restored)
        for each in emulated:
            each.record.save(each.device.save())
        for plan in plans:
            for first, last in plan.port_ranges:
                self._call.intercept_ports(partition, first, last, vp=self._vp.index)
            if plan.mmio_gpfn is not None:
                self._call.intercept_pages(partition, plan.mmio_gpfn, 1, vp=self._vp.index)
        direct = None
        if expected.is_direct:
            direct = DirectServer(self._call, self._birth.partition, partition, taken_over=taken_over)
        self._guests[partition] = guest = EmulatedGuest(
            partition, name, pc, disks, direct, budget or ServiceBudget()
        )
        if direct is not None and not taken_over:
            self._start(guest, direct)
        if restored:
            self._consequences.follow(guest)

    def _start(self, guest: EmulatedGuest, direct: DirectServer) -> None:
        direct.start(lambda request: self._answer_directly(guest, request), guest.budget)

    def _port(self, name: str) -> SerialPort:
        return SerialPort(
            lambda data: self.on_serial_output(name, data),
            lambda line: self._log("output", partition=name, stream="serial", text=line),
        )

    def detach(self, partition: int) -> None:
        """It has ended."""
        if (guest := self._guests.pop(partition, None)) is None:
            return
        if guest.direct is not None:
            guest.direct.stop()
        with self._lock:
            for place, each in enumerate(guest.devices.devices):
                if isinstance(each.device, SerialPort) and not (
                    guest.saved and guest.saved[place][1] == each.device.save()
                ):  # a line that was begun goes on where the partition does
                    each.device.end_line()
            guest.devices.close()

    async def save(self, partition: int) -> list[tuple[str, bytes]]:
        """(kind, state) of each device of a child that stands still, with nothing under way. EmulationError."""
        if (guest := self._guests.get(partition)) is None:
            return []
        with trio.move_on_after(SAVE_MS_MAX / 1000) as patience:
            self._consequences.follow(guest)
            while guest.running:
                await trio.sleep(_LOOK_S)
        if patience.cancelled_caught:
            raise EmulationError(f"{guest.name}: its disk has not answered for {SAVE_MS_MAX} ms")
        with self._lock:
            guest.saved = [(each.plan.kind, each.device.save()) for each in guest.devices.devices]
            return guest.saved

    def resume(self) -> None:
        """Do again what a predecessor may not have done."""
        for guest in self._guests.values():
            self._consequences.follow(guest)
            if guest.direct is not None:
                self._start(guest, guest.direct)

    # -- from outside

    def type_in(self, name: str, data: bytes) -> int:
        """Bytes for a partition's first serial port; how many found a place. KeyError: it has none."""
        guest, each = self._find(name, SerialPort)
        assert isinstance(each.device, SerialPort)
        with self._lock:
            taken = each.device.type_in(data)
            each.record.save(each.device.save())
        self._consequences.follow(guest)
        return taken

    def press(self, name: str, key: int, pressed: bool) -> bool:
        """A key of a partition's keyboard. False: it did not take it. KeyError: there is none."""
        guest, each = self._find(name, KeyboardController)
        assert isinstance(each.device, KeyboardController)
        with self._lock:
            fits = each.device.press(key, pressed)
            each.record.save(each.device.save())
        self._consequences.follow(guest)
        return fits

    def _find(self, name: str, kind: type) -> tuple[EmulatedGuest, Emulated]:
        for guest in self._guests.values():
            for each in guest.devices.devices:
                if guest.name == name and isinstance(each.device, kind):
                    return guest, each
        raise KeyError(name)

    # -- intercepts

    def start(self) -> None:
        """From here on accesses are answered. A successor has taken its children over by then."""
        if self._vp is not None:
            self._vp.run(self._serve)

    def _serve(self, vp: VirtualProcessor) -> None:
        """In that VP's thread."""
        try:
            turns: PacedTurns[tuple[int, bytes]] = PacedTurns(self._budget_of)
            while True:
                # Before the first wait: the line may have told a predecessor.
                for kind, sender, payload in vp.take_messages(INTERCEPT_SINT):
                    if kind in _ANSWERABLE:
                        turns.put(sender, (kind, payload))
                if (turn := turns.next(time.monotonic_ns())) is not None:
                    self._take_turn(*turn)
                elif (wait_ns := turns.wait_ns(time.monotonic_ns())) is None:
                    vp.wait()
                elif wait_ns:
                    vp.wait(wait_ns / 1e6)
        except HypervisorGone:
            pass  # then all is over
        except BaseException as error:  # no access would be answered any more: whoever comes next does better
            self._token.run_sync_soon(self._nursery.start_soon, _fail, error)

    def _budget_of(self, partition: int) -> ServiceBudget | None:
        guest = self._guests.get(partition)
        return None if guest is None else guest.budget

    def _take_turn(self, partition: int, message: tuple[int, bytes]) -> None:
        budget = self._budget_of(partition)
        if budget is None or not budget.share:
            self._answer(message[0], partition, message[1])
            return
        # By the wall's clock: all others wait while this thread does, as it does for the hypervisor.
        begun_ns = time.monotonic_ns()
        self._answer(message[0], partition, message[1])
        budget.charge(time.monotonic_ns() - begun_ns)

    def _answer(self, kind: int, partition: int, payload: bytes) -> None:
        """What came through the hypervisor."""
        guest = self._guests.get(partition)
        try:
            if kind == MessageType.X64_IO_PORT_INTERCEPT:
                message = PortIntercept.decode(payload)
                reply, vp = self._port_reply(guest, message), message.header.vp
                if message.is_string:
                    self._call.answer_intercept(partition, vp, string_registers(reply))
                else:
                    value = reply.rax & (1 << 8 * message.size) - 1
                    self._call.complete_intercept(partition, vp, InterceptType.IO_PORT, value)
            else:
                access = MemoryIntercept.decode(payload)
                vp = access.header.vp
                reply = self._memory_reply(guest, access, lambda: self._rax(partition, vp))
                size = memory_access_size(access.instruction) or 1
                value = reply.rax & (1 << 8 * size) - 1
                self._call.complete_intercept(partition, vp, InterceptType.MMIO, value)
        except InterceptFormatError as error:
            self._log("emulation.bad_message", partition=partition, error=str(error))
        except HypercallError:
            pass  # it has died, or somebody else has answered
        if guest is not None:
            self._consequences.follow_soon(guest)

    def _answer_directly(self, guest: EmulatedGuest, request: DirectRequest) -> DirectAnswer:
        """In the guest's thread. Whatever it wrote there gets an answer."""
        try:
            if request.message_type == MessageType.X64_IO_PORT_INTERCEPT:
                reply = self._port_reply(guest, PortIntercept.decode(request.payload))
            else:
                access = MemoryIntercept.decode(request.payload)
                reply = self._memory_reply(guest, access, lambda: access.gva)  # see DirectAccess
        except InterceptFormatError:
            return DirectAnswer(_U64, 0, 0, _U64)
        self._consequences.follow_soon(guest)
        return DirectAnswer(reply.rax, reply.rcx or 0, reply.address or 0, reply.rip)

    def _port_reply(self, guest: EmulatedGuest | None, message: PortIntercept) -> Reply:
        with self._lock:
            return (NOBODY if guest is None else guest.devices).port(message)

    def _memory_reply(
        self, guest: EmulatedGuest | None, message: MemoryIntercept, rax: Callable[[], int]
    ) -> Reply:
        with self._lock:
            return (NOBODY if guest is None else guest.devices).memory(message, rax)

    def _rax(self, partition: int, vp: int) -> int:
        return self._call.get_vp_registers([RegisterName.RAX], vp, partition)[0]


async def _fail(error: BaseException) -> None:
    """In the parent's nursery, which ends with it."""
    raise error


def _clock_us() -> int:
    return time.time_ns() // 1000
