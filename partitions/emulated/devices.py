"""The emulated devices of one partition, found by port and by page: an intercept goes in, registers come out."""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from bus.intercept_messages import InterceptAccess, MemoryIntercept, PortIntercept, memory_access_size
from partitions.emulated.ide import IdeDisk
from partitions.emulated.keyboard import KeyboardController
from partitions.emulated.plan import EmulatedPlan, EmulationError
from partitions.emulated.port_device import PortDevice
from partitions.emulated.records import AccessKey, Answer, Record
from partitions.emulated.rtc import RealTimeClock
from partitions.emulated.serial_port import SerialPort
from partitions.emulated.string_memory import StringMemory
from runtime.abi import PAGE_BYTES, RegisterName

STRING_BYTES_MAX: Final = 4096  # that one answer moves; the rest is the next intercept's

_U64: Final = 2**64 - 1


@dataclass(slots=True)
class Emulated:
    """One device with its record."""

    plan: EmulatedPlan
    device: PortDevice
    record: Record
    answered: dict[AccessKey, Answer] = field(default_factory=dict)  # by a predecessor, and perhaps not told


@dataclass(frozen=True, slots=True)
class Reply:
    """How the VP goes on."""

    rax: int
    rip: int
    rcx: int | None = None  # of a string access, as is the address
    address: int | None = None


class PartitionDevices:
    """Pure but for the guest's memory: what comes of an access beside the reply is left in the devices, to be taken."""

    def __init__(self, devices: list[Emulated], memory: StringMemory) -> None:
        self.devices: Final = devices
        self._memory = memory
        self._ports: dict[int, tuple[Emulated, int]] = {}
        self._pages: dict[int, Emulated] = {}
        self._may_be_answered = False  # something, by a predecessor
        for each in devices:
            for offset, port in enumerate(each.plan.ports):
                self._ports[port] = each, offset
            if each.plan.mmio_gpfn is not None:
                self._pages[each.plan.mmio_gpfn] = each

    def close(self) -> None:
        self._memory.close()

    # -- taking over

    def take_over(self) -> None:
        """Become what the records say. What a predecessor did and may not have told is not done again."""
        for each in self.devices:
            if (saved := each.record.load()) is not None:
                each.device.restore(saved.state)
                each.answered[saved.last] = saved.answer
                self._may_be_answered = True

    def restore(self, states: Sequence[tuple[str, bytes]]) -> None:
        """Become what was saved, in another machine perhaps. Interrupts were asserted before. EmulationError."""
        if [kind for kind, _ in states] != [each.plan.kind for each in self.devices]:
            had = ", ".join(kind for kind, _ in states)
            raise EmulationError(f"what was saved are other devices: {had}")
        for each, (kind, state) in zip(self.devices, states, strict=True):
            try:
                each.device.restore(state)
            except (struct.error, ValueError, IndexError) as error:
                raise EmulationError(f"the saved state of its {kind} is none: {error}") from error
            each.device.take_interrupt()

    def _answered(self, key: AccessKey) -> Answer | None:
        """What a predecessor's device said to this very access, if it did. Asked once for each VP: an access is told
        twice only if it was the VP's last."""
        found: Answer | None = None
        if not self._may_be_answered:
            return found
        for each in self.devices:
            for last in [last for last in each.answered if last.vp == key.vp]:
                answer = each.answered.pop(last)
                if last == key:
                    found = answer
        self._may_be_answered = any(each.answered for each in self.devices)
        return found

    # -- ports

    def port(self, message: PortIntercept) -> Reply:
        header = message.header
        key = AccessKey(header.vp, header.rip, message.rcx if message.is_string else 0)
        next_rip = (header.rip + header.instruction_length) & _U64
        answer = self._answered(key)
        if message.is_string:
            if answer is None:
                answer = self._string(message, key)
            rip = next_rip if answer.rcx == 0 else header.rip
            return Reply(message.rax, rip, answer.rcx, answer.address)
        if answer is None:
            answer = self._single(message, key)
        return Reply(answer.rax, next_rip)

    def _single(self, message: PortIntercept, key: AccessKey) -> Answer:
        mask = (1 << 8 * message.size) - 1
        touched: list[Emulated] = []
        if message.header.access is InterceptAccess.WRITE:
            self._write(message.port, message.size, message.rax & mask, touched)
            rax = message.rax
        else:
            value = self._read(message.port, message.size, touched)
            # As the processor does it: 32 bits clear the upper half, 8 and 16 leave the rest.
            rax = value if message.size == 4 else message.rax & ~mask | value
        return _saved(touched, key, Answer(rax, 0, 0))

    def _read(self, port: int, size: int, touched: list[Emulated]) -> int:
        found = self._ports.get(port)
        if found is not None and (size == 1 or found[0].device.is_wide(found[1])):
            touched.append(found[0])
            return found[0].device.read(found[1], size)
        if size == 1:
            return 0xFF
        return sum(self._read(port + place, 1, touched) << 8 * place for place in range(size))

    def _write(self, port: int, size: int, value: int, touched: list[Emulated]) -> None:
        found = self._ports.get(port)
        if found is not None and (size == 1 or found[0].device.is_wide(found[1])):
            touched.append(found[0])
            found[0].device.write(found[1], size, value)
        elif size > 1:
            for place in range(size):
                self._write(port + place, 1, value >> 8 * place & 0xFF, touched)

    def _string(self, message: PortIntercept, key: AccessKey) -> Answer:
        """Between the port and the guest's memory, as much as one answer may. Where there is no device or no memory it
        goes on all the same, as on a bus: ones come, and bytes go nowhere."""
        size, is_write = message.size, message.header.access is InterceptAccess.WRITE
        count = min(message.rcx, STRING_BYTES_MAX // size)
        length = size * count
        address = message.rsi if is_write else message.rdi
        found = self._ports.get(message.port)
        is_whole = found is not None and (size == 1 or found[0].device.is_wide(found[1]))
        view = self._memory.view(address, length) if length and address + length <= _U64 else None
        touched: list[Emulated] = []
        is_nobody = not any(message.port + place in self._ports for place in range(size))
        if is_write:
            data = bytes(view) if view is not None else b"\xff" * length
            if found is not None and is_whole:
                found[0].device.write_string(found[1], size, data)
                touched.append(found[0])
            elif not is_nobody:
                for at in range(0, length, size):
                    self._write(message.port, size, int.from_bytes(data[at : at + size], "little"), touched)
        else:
            if found is not None and is_whole:
                data = found[0].device.read_string(found[1], size, count)
                touched.append(found[0])
            elif is_nobody:
                data = b"\xff" * length
            else:
                data = b"".join(
                    self._read(message.port, size, touched).to_bytes(size, "little") for _ in range(count)
                )
            if view is not None:
                view[:] = data
        return _saved(touched, key, Answer(message.rax, message.rcx - count, (address + length) & _U64))

    # -- memory

    def memory(self, message: MemoryIntercept, rax: Callable[[], int]) -> Reply:
        """`rax`: fetches the register, which the message does not hold."""
        header = message.header
        key = AccessKey(header.vp, header.rip, 0)
        size = memory_access_size(message.instruction) or 1
        rip = (header.rip + header.instruction_length) & _U64
        if (answer := self._answered(key)) is None:
            answer = self._memory_access(message, key, size, rax)
        return Reply(answer.rax, rip)

    def _memory_access(
        self, message: MemoryIntercept, key: AccessKey, size: int, rax: Callable[[], int]
    ) -> Answer:
        touched: list[Emulated] = []
        value = 0
        if message.header.access is InterceptAccess.WRITE:
            stored = value = rax()
            for place in range(size):
                if (found := self._register(message.gpa + place)) is not None:
                    touched.append(found[0])
                    found[0].device.write(found[1], 1, stored >> 8 * place & 0xFF)
        else:
            for place in range(size):
                byte = 0xFF
                if (found := self._register(message.gpa + place)) is not None:
                    touched.append(found[0])
                    byte = found[0].device.read(found[1], 1)
                value |= byte << 8 * place
        return _saved(touched, key, Answer(value, 0, 0))

    def _register(self, gpa: int) -> tuple[Emulated, int] | None:
        each = self._pages.get(gpa // PAGE_BYTES)
        offset = gpa % PAGE_BYTES
        return (each, offset) if each is not None and offset < len(each.plan.ports) else None


def _saved(touched: list[Emulated], key: AccessKey, answer: Answer) -> Answer:
    """Before anything of it is told: whoever takes over answers the same. Where one access touched two devices, each
    has it."""
    done: list[Emulated] = []
    for each in touched:
        if not any(each is one for one in done):
            each.record.save(each.device.save(), key, answer)
            done.append(each)
    return answer


def make_device(
    plan: EmulatedPlan,
    disks: Mapping[str, IdeDisk],
    clock_us: Callable[[], int],
    memory_bytes: int,
    make_port: Callable[[], SerialPort] = SerialPort,
) -> PortDevice:
    """`disks`: an IDE disk for each device that a plan names."""
    match plan.kind:
        case "uart":
            port = make_port()
            port.type_in(plan.typed.encode())
            return port
        case "keyboard":
            return KeyboardController()
        case "rtc":
            return RealTimeClock(clock_us, memory_bytes, bool(disks))
        case _:
            assert plan.device is not None  # the config's validation sees to it
            return disks[plan.device]


def string_registers(reply: Reply) -> dict[int, int]:
    assert reply.rcx is not None
    assert reply.address is not None
    return {
        RegisterName.RIP: reply.rip,
        RegisterName.RCX: reply.rcx,
        RegisterName.RDI: reply.address,
        RegisterName.RSI: reply.address,
    }


class _NoMemory(StringMemory):
    def __init__(self) -> None:
        pass

    def view(self, gpa: int, length: int) -> memoryview | None:
        return None


NOBODY: Final = PartitionDevices([], _NoMemory())  # of a child without devices: its accesses read as ones
