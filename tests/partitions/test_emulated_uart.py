"""The 16550 against a model of plain queues, and the serial port that makes lines of it."""

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from partitions.emulated.serial_port import INPUT_BYTES_MAX, LINE_BYTES_MAX, SerialPort
from partitions.emulated.uart import (
    DATA,
    FIFO_BYTES,
    FIFO_CONTROL,
    IIR_EMPTY,
    IIR_MODEM,
    IIR_NONE,
    IIR_RECEIVED,
    IIR_TIMEOUT,
    INTERRUPT_ENABLE,
    INTERRUPT_ID,
    LCR_DLAB,
    LINE_CONTROL,
    LINE_STATUS,
    LSR_DATA,
    LSR_IDLE,
    LSR_OVERRUN,
    MCR_LOOP,
    MCR_OUT2,
    MODEM_CONTROL,
    MODEM_STATUS,
    SCRATCH,
    Uart,
)


def _restored(uart: Uart) -> Uart:
    other = Uart()
    other.restore(uart.save())
    return other


class UartMachine(RuleBasedStateMachine):
    """Bytes keep their order and none is lost or invented, through any settings; a restored one goes on the same."""

    def __init__(self) -> None:
        super().__init__()
        self.uart = Uart()
        self.received: deque[int] = deque()
        self.sent = bytearray()
        self.enabled = self.scratch = 0
        self.fifos = self.loop = self.divisor_open = False
        self.divisor = 12

    @property
    def depth(self) -> int:
        return FIFO_BYTES if self.fifos else 1

    @rule(data=st.binary(max_size=20))
    def bytes_arrive(self, data: bytes) -> None:
        room = 0 if self.loop else self.depth - len(self.received)
        assert self.uart.room == room
        assert self.uart.receive(data) == min(len(data), room)
        self.received.extend(data[:room])

    @rule()
    def read_data(self) -> None:
        value = self.uart.read(DATA, 1)
        if self.divisor_open:
            assert value == self.divisor & 0xFF
        else:
            assert value == (self.received.popleft() if self.received else 0)

    @rule(value=st.integers(0, 255))
    def write_data(self, value: int) -> None:
        self.uart.write(DATA, 1, value)
        if self.divisor_open:
            self.divisor = self.divisor & 0xFF00 | value
        elif not self.loop:
            self.sent.append(value)
        elif len(self.received) < self.depth:
            self.received.append(value)
        elif not self.fifos:
            self.received[-1] = value

    @rule(value=st.integers(0, 255))
    def write_enable(self, value: int) -> None:
        self.uart.write(INTERRUPT_ENABLE, 1, value)
        if self.divisor_open:
            self.divisor = self.divisor & 0x00FF | value << 8
        else:
            self.enabled = value & 0x0F

    @rule(value=st.integers(0, 255))
    def write_fifo_control(self, value: int) -> None:
        self.uart.write(FIFO_CONTROL, 1, value)
        if bool(value & 1) != self.fifos or value & 2:
            self.received.clear()
        self.fifos = bool(value & 1)

    @rule(is_open=st.booleans())
    def open_the_divisor(self, is_open: bool) -> None:
        self.uart.write(LINE_CONTROL, 1, 0x03 | (LCR_DLAB if is_open else 0))
        self.divisor_open = is_open

    @rule(value=st.integers(0, 255))
    def write_modem_control(self, value: int) -> None:
        self.uart.write(MODEM_CONTROL, 1, value)
        assert self.uart.read(MODEM_CONTROL, 1) == value & 0x1F
        self.loop = bool(value & MCR_LOOP)

    @rule(value=st.integers(0, 255))
    def write_scratch(self, value: int) -> None:
        self.uart.write(SCRATCH, 1, value)
        self.scratch = value

    @rule(offset=st.integers(0, 7), value=st.integers(0, 2**32 - 1))
    def write_what_is_read_only(self, offset: int, value: int) -> None:
        if offset in (LINE_STATUS, MODEM_STATUS):
            self.uart.write(offset, 4, value)

    @rule()
    def take_over(self) -> None:
        self.sent_so_far_matches()
        self.uart = _restored(self.uart)

    @invariant()
    def the_registers_say_what_there_is(self) -> None:
        status = self.uart.read(LINE_STATUS, 1)
        assert status & ~LSR_OVERRUN == LSR_IDLE | (LSR_DATA if self.received else 0)
        assert self.uart.read(SCRATCH, 1) == self.scratch
        cause = self.uart.read(INTERRUPT_ID, 1)
        assert (cause & 0xC0 == 0xC0) == self.fifos
        if self.enabled & 1 and self.received:
            assert cause & 0x0F in (IIR_RECEIVED, IIR_TIMEOUT)
        if not self.enabled:
            assert cause & 0x0F == IIR_NONE
            assert not self.uart.interrupt

    @invariant()
    def sent_so_far_matches(self) -> None:
        assert self.uart.take_output() == bytes(self.sent)
        self.sent.clear()


TestUartMachine = UartMachine.TestCase
TestUartMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def _raised(uart: Uart) -> bool:
    return uart.take_interrupt()


def test_the_transmitter_interrupts_once_a_byte_and_when_it_is_first_asked_to() -> None:
    uart = Uart()
    uart.write(MODEM_CONTROL, 1, MCR_OUT2)
    assert not _raised(uart)
    uart.write(INTERRUPT_ENABLE, 1, 0x02)
    assert _raised(uart)
    assert uart.read(INTERRUPT_ID, 1) == IIR_EMPTY
    assert uart.read(INTERRUPT_ID, 1) == IIR_NONE  # reading it was the acknowledgement
    for _ in range(3):
        uart.write(DATA, 1, 0x41)
        assert _raised(uart)
        assert not _raised(uart)
    uart.write(INTERRUPT_ENABLE, 1, 0x00)
    uart.write(DATA, 1, 0x41)
    assert not _raised(uart)


def test_the_receiver_interrupts_at_its_trigger_and_for_what_stays_below_it() -> None:
    uart = Uart()
    uart.write(MODEM_CONTROL, 1, MCR_OUT2)
    uart.write(INTERRUPT_ENABLE, 1, 0x01)
    uart.write(FIFO_CONTROL, 1, 0x81)  # FIFOs, trigger 8
    uart.receive(b"1234567")
    assert uart.read(INTERRUPT_ID, 1) & 0x0F == IIR_TIMEOUT
    uart.receive(b"8")
    assert uart.read(INTERRUPT_ID, 1) & 0x0F == IIR_RECEIVED
    assert _raised(uart)
    assert bytes(uart.read(DATA, 1) for _ in range(8)) == b"12345678"
    assert not uart.interrupt
    uart.receive(b"9")
    assert _raised(uart)


def test_an_interrupt_needs_out2_and_no_loop() -> None:
    uart = Uart()
    uart.write(INTERRUPT_ENABLE, 1, 0x02)
    assert not _raised(uart)
    uart.write(MODEM_CONTROL, 1, MCR_OUT2)
    assert _raised(uart)
    uart.write(MODEM_CONTROL, 1, MCR_OUT2 | MCR_LOOP)
    assert not uart.interrupt


def test_loopback_wires_the_modem_lines_to_themselves_and_tells_what_changed() -> None:
    uart = Uart()
    uart.read(MODEM_STATUS, 1)
    uart.write(MODEM_CONTROL, 1, MCR_LOOP | 0x0F)
    assert uart.read(MODEM_STATUS, 1) >> 4 == 0xF
    uart.write(INTERRUPT_ENABLE, 1, 0x08)
    uart.write(MODEM_CONTROL, 1, MCR_LOOP | 0x0A)  # DTR and OUT1 fall
    assert uart.read(INTERRUPT_ID, 1) == IIR_MODEM
    assert uart.read(MODEM_STATUS, 1) == 0x90 | 0x06  # CTS, DCD; changed: DSR, and RI at its end
    assert uart.read(MODEM_STATUS, 1) == 0x90
    for byte in b"123":
        uart.write(DATA, 1, byte)
    assert uart.read(LINE_STATUS, 1) & LSR_OVERRUN
    assert uart.read(DATA, 1) == ord("3")
    assert uart.take_output() == b""


# -- lines ---------------------------------------------------------------------------------------------------


def _expected_lines(data: bytes) -> tuple[list[str], bytes]:
    lines, rest = [], b""
    for byte in data:
        if byte == 0x0A or len(rest) >= LINE_BYTES_MAX:
            lines.append(rest.rstrip(b"\r").decode("utf-8", "replace"))
            rest = b""
        if byte != 0x0A:
            rest += bytes([byte])
    return lines, rest


@given(
    st.lists(st.sampled_from([b"a", b"\n", b"\r\n", b"hello", b"\xff", b"x" * 200]), max_size=30), st.data()
)
@settings(max_examples=100, deadline=None)
def test_lines_are_whole_whoever_serves_the_port(pieces: list[bytes], data: st.DataObject) -> None:
    """A successor may come between any two bytes; nothing is lost, and nothing is said twice."""
    said: list[str] = []
    raw = bytearray()
    port = SerialPort(raw.extend, said.append)
    for byte in b"".join(pieces):
        port.write(DATA, 1, byte)
        if data.draw(st.integers(0, 9)) == 0:
            successor = SerialPort(raw.extend, said.append)
            successor.restore(port.save())
            port = successor
    lines, rest = _expected_lines(b"".join(pieces))
    assert raw == b"".join(pieces)
    assert said == lines
    port.end_line()
    assert said[len(lines) :] == ([rest.rstrip(b"\r").decode("utf-8", "replace")] if rest else [])


@given(st.lists(st.binary(max_size=300), max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_typed_is_read_in_order_and_what_finds_no_place_is_refused(
    pieces: list[bytes], data: st.DataObject
) -> None:
    port, accepted, read = SerialPort(), b"", b""
    for piece in pieces:
        taken = port.type_in(piece)
        accepted += piece[:taken]
        assert taken == len(piece) or len(accepted) - len(read) >= INPUT_BYTES_MAX
        for _ in range(data.draw(st.integers(0, 40))):
            if port.read(LINE_STATUS, 1) & LSR_DATA:
                read += bytes([port.read(DATA, 1)])
        successor = SerialPort()
        successor.restore(port.save())
        port = successor
    while port.read(LINE_STATUS, 1) & LSR_DATA:
        read += bytes([port.read(DATA, 1)])
    assert read == accepted
