"""A parent's emulators at work: takes the intercepts of its children, answers them, and does what the devices ask for.

Intercepts that come through the hypervisor are answered by a virtual processor of their own, a thread that does nothing
else: an event loop between interrupt and answer costs more than the answer. Those of a child with direct intercepts are
answered in a thread of that child's. What waits for a disk runs in a thread, with the device busy meanwhile. One lock
guards all devices.

The order for each access: the device changes and says what it has to say, its record is written, the VP goes on, and
then what follows is done: an interrupt, a disk's request. A successor does again what may not have been done: an
interrupt that stands, a disk's request; and a line of text may be said twice.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from partitions.emulated.devices import (
    NOBODY,
    Emulated,
    PartitionDevices,
    Reply,
    make_device,
    string_registers,
)
from partitions.emulated.direct import DirectServer
from partitions.emulated.disk_medium import carry_out, ide_disk
from partitions.emulated.expected import Expected, count_of, expected_of
from partitions.emulated.ide import DiskRequest, IdeDisk
from partitions.emulated.keyboard import KeyboardController
from partitions.emulated.paced_turns import PacedTurns
from partitions.emulated.plan import EmulationError
from partitions.emulated.records import Record
from partitions.emulated.serial_port import SerialPort
from partitions.emulated.string_memory import StringMemory
from partitions.storage.device import DiskDevice
from partitions.vp.processor import VirtualProcessor
from runtime.abi import HypercallCode, HypercallError, HypervisorGone, InterceptType, RegisterName
from runtime.hypercalls.caller import Birth, HypercallPort, MappedSlot

RECORDS_GPFN: Final = 0x8000  # in the parent's GPA space: a page for each emulated device
VECTOR_OF_IRQ_0: Final = 0x20  # where operating systems put a PC's sixteen interrupt lines
_INTERRUPTED_VP: Final = 0
_INTERCEPT_VP: Final = 1  # of the parent's, and made for this: VP 0 is the VMBus's
_U64: Final = 2**64 - 1
_ANSWERABLE: Final = frozenset(
    (MessageType.X64_IO_PORT_INTERCEPT, MessageType.GPA_INTERCEPT, MessageType.UNMAPPED_GPA)
)


@dataclass(slots=True)
class _Guest:
    """Under the host's lock, but for its ends."""

    partition: int
    name: str
    devices: PartitionDevices
    disks: Mapping[str, DiskDevice]
    direct: DirectServer | None
    budget: ServiceBudget
    running: set[int] = field(default_factory=set)  # devices whose request is with a thread, by place


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
        self._expected: dict[str, Expected] = {}
        self._guests: dict[int, _Guest] = {}
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
    ) -> None:
        """A child that is there and has not started yet; or, taken over, one of a predecessor's.

        Args:
            devices: the parent's, by name; what an IDE disk stands for must be a `DiskDevice`.
            budget: its own, with which it pays for what is done for it here.

        Raises:
            HypercallError: for instance, too little memory deposited.
            EmulationError: a disk is not ours.
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
        self._guests[partition] = guest = _Guest(
            partition, name, pc, disks, direct, budget or ServiceBudget()
        )
        if direct is not None and not taken_over:
            self._start(guest, direct)

    def _start(self, guest: _Guest, direct: DirectServer) -> None:
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
            for each in guest.devices.devices:
                if isinstance(each.device, SerialPort):
                    each.device.end_line()
            guest.devices.close()

    def resume(self) -> None:
        """Do again what a predecessor may not have done."""
        for guest in self._guests.values():
            self._follow(guest)
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
        self._follow(guest)
        return taken

    def press(self, name: str, key: int, pressed: bool) -> bool:
        """A key of a partition's keyboard. False: it did not take it. KeyError: there is none."""
        guest, each = self._find(name, KeyboardController)
        assert isinstance(each.device, KeyboardController)
        with self._lock:
            fits = each.device.press(key, pressed)
            each.record.save(each.device.save())
        self._follow(guest)
        return fits

    def _find(self, name: str, kind: type) -> tuple[_Guest, Emulated]:
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
            self._follow_soon(guest)

    def _answer_directly(self, guest: _Guest, request: DirectRequest) -> DirectAnswer:
        """In the guest's thread. Whatever it wrote there gets an answer."""
        try:
            if request.message_type == MessageType.X64_IO_PORT_INTERCEPT:
                reply = self._port_reply(guest, PortIntercept.decode(request.payload))
            else:
                access = MemoryIntercept.decode(request.payload)
                reply = self._memory_reply(guest, access, lambda: access.gva)  # see DirectAccess
        except InterceptFormatError:
            return DirectAnswer(_U64, 0, 0, _U64)
        self._follow_soon(guest)
        return DirectAnswer(reply.rax, reply.rcx or 0, reply.address or 0, reply.rip)

    def _port_reply(self, guest: _Guest | None, message: PortIntercept) -> Reply:
        with self._lock:
            return (NOBODY if guest is None else guest.devices).port(message)

    def _memory_reply(self, guest: _Guest | None, message: MemoryIntercept, rax: Callable[[], int]) -> Reply:
        with self._lock:
            return (NOBODY if guest is None else guest.devices).memory(message, rax)

    def _rax(self, partition: int, vp: int) -> int:
        return self._call.get_vp_registers([RegisterName.RAX], vp, partition)[0]

    # -- what follows

    def _follow_soon(self, guest: _Guest) -> None:
        """From the threads that answer. What follows takes trio, and nobody waits for it."""
        if not all(each.device.is_quiet for each in guest.devices.devices):
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._follow, guest)

    def _follow(self, guest: _Guest) -> None:
        with self._lock:
            self._follow_devices(guest)

    def _follow_devices(self, guest: _Guest) -> None:
        for place, each in enumerate(guest.devices.devices):
            device = each.device
            if isinstance(device, IdeDisk):
                if device.request is not None and place not in guest.running:
                    guest.running.add(place)
                    self._nursery.start_soon(self._run_requests, guest, place, device)
            elif isinstance(device, KeyboardController) and device.take_reset():
                self._reset(guest)
            if each.plan.irq is not None and device.take_interrupt():
                self._interrupt(guest, each.plan.irq)

    def _interrupt(self, guest: _Guest, irq: int) -> None:
        with contextlib.suppress(HypercallError):  # it has died
            self._call.call(
                HypercallCode.ASSERT_VIRTUAL_INTERRUPT,
                partition=guest.partition,
                vp=_INTERRUPTED_VP,
                vector=VECTOR_OF_IRQ_0 + irq,
            )

    def _reset(self, guest: _Guest) -> None:
        """A reset ends a partition: nothing starts it again."""
        self._log("emulation.reset", guest=guest.name)
        with contextlib.suppress(HypercallError):
            self._call.finalize(guest.partition)

    async def _run_requests(self, guest: _Guest, place: int, disk: IdeDisk) -> None:
        """Until the device asks for nothing more."""
        each = guest.devices.devices[place]
        assert each.plan.device is not None
        medium = guest.disks[each.plan.device]
        while (request := self._request_of(disk)) is not None:
            data = await trio.to_thread.run_sync(carry_out, medium, request)
            with self._lock:
                disk.complete(request, data)
                each.record.save(disk.save())
        guest.running.discard(place)
        self._follow(guest)

    def _request_of(self, disk: IdeDisk) -> DiskRequest | None:
        with self._lock:
            return disk.request


async def _fail(error: BaseException) -> None:
    """In the parent's nursery, which ends with it."""
    raise error


def _clock_us() -> int:
    return time.time_ns() // 1000
