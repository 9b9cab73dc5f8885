"""The 16550A UART: a byte stream each way behind eight ports.

The line is infinitely fast: a byte written is a byte sent, so the transmitter is always empty. The receiver holds 16
bytes (one, without FIFOs); whoever brings more keeps it until there is `room`.

Source: National Semiconductor PC16550D data sheet.
"""

import struct
from collections import deque
from typing import Final

from partitions.emulated.port_device import PortDevice

FIFO_BYTES: Final = 16
OUTPUT_BYTES_MAX: Final = 64 * 1024  # not taken yet; then the oldest go: nobody listens

# offsets; with DLAB set, the first two are the divisor
DATA, INTERRUPT_ENABLE, INTERRUPT_ID, LINE_CONTROL, MODEM_CONTROL, LINE_STATUS, MODEM_STATUS, SCRATCH = range(
    8
)
FIFO_CONTROL: Final = INTERRUPT_ID  # written

IER_RECEIVED, IER_EMPTY, IER_LINE, IER_MODEM = 0x01, 0x02, 0x04, 0x08
IIR_NONE, IIR_MODEM, IIR_EMPTY, IIR_RECEIVED, IIR_LINE, IIR_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
IIR_FIFOS: Final = 0xC0
FCR_ENABLE, FCR_CLEAR_RECEIVER = 0x01, 0x02
LCR_DLAB: Final = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
LSR_DATA, LSR_OVERRUN, LSR_IDLE = 0x01, 0x02, 0x60  # IDLE: holding register and transmitter are empty
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
_MSR_TRAILING_RI: Final = 0x04  # the one delta that only the falling edge sets
_TRIGGERS: Final = (1, 4, 8, 14)
_CONNECTED: Final = MSR_CTS | MSR_DSR | MSR_DCD  # somebody is always there

_STATE: Final = struct.Struct("<9BBB16s")


class Uart(PortDevice):
    """`receive` bytes for it, and `take_output`."""

    def __init__(self) -> None:
        super().__init__()
        self._divisor = 12  # 9600 bit/s: kept, and of no effect
        self._enabled = self._line_control = self._modem_control = self._scratch = 0
        self._fifo_control = 0
        self._overrun = 0
        self._modem_deltas = 0
        self._empty_pending = False  # the transmitter's interrupt was not seen yet
        self._received: deque[int] = deque()
        self._output = bytearray()

    # -- the line

    @property
    def room(self) -> int:
        """How many bytes the receiver takes now."""
        if self._modem_control & MCR_LOOP:
            return 0
        return self._depth - len(self._received)

    @property
    def wants_input(self) -> bool:
        """Whether a byte that arrives interrupts."""
        return bool(self._enabled & IER_RECEIVED)

    def receive(self, data: bytes) -> int:
        """Bytes from the line; how many were taken."""
        taken = data[: max(self.room, 0)]
        self._received.extend(taken)
        self._watch_line()
        return len(taken)

    def take_output(self) -> bytes:
        output, self._output = bytes(self._output), bytearray()
        return output

    # -- ports

    def read(self, offset: int, size: int) -> int:
        value = self._read(offset)
        self._watch_line()
        return value

    def _read(self, offset: int) -> int:
        if self._line_control & LCR_DLAB and offset in (DATA, INTERRUPT_ENABLE):
            return self._divisor >> 8 * offset & 0xFF
        match offset:
            case 0:  # DATA
                return self._received.popleft() if self._received else 0
            case 1:  # INTERRUPT_ENABLE
                return self._enabled
            case 2:  # INTERRUPT_ID
                cause = self._cause
                if cause == IIR_EMPTY:
                    self._empty_pending = False
                return cause | (IIR_FIFOS if self._has_fifos else 0)
            case 3:  # LINE_CONTROL
                return self._line_control
            case 4:  # MODEM_CONTROL
                return self._modem_control
            case 5:  # LINE_STATUS
                status = LSR_IDLE | (LSR_DATA if self._received else 0) | self._overrun
                self._overrun = 0
                return status
            case 6:  # MODEM_STATUS
                status = self._modem_lines | self._modem_deltas
                self._modem_deltas = 0
                return status
            case _:  # SCRATCH
                return self._scratch

    def write(self, offset: int, size: int, value: int) -> None:
        self._write(offset, value & 0xFF)
        self._watch_line()

    def _write(self, offset: int, value: int) -> None:
        if self._line_control & LCR_DLAB and offset in (DATA, INTERRUPT_ENABLE):
            shift = 8 * offset
            self._divisor = self._divisor & ~(0xFF << shift) | value << shift
            return
        match offset:
            case 0:  # DATA
                self._transmit(value)
            case 1:  # INTERRUPT_ENABLE
                if value & ~self._enabled & IER_EMPTY:
                    self._empty_pending = True  # it is empty, and somebody wants to hear so
                self._enabled = value & 0x0F
            case 2:  # FIFO_CONTROL
                self._control_fifos(value)
            case 3:  # LINE_CONTROL
                self._line_control = value
            case 4:  # MODEM_CONTROL
                self._control_modem(value & 0x1F)
            case 7:  # SCRATCH
                self._scratch = value
            case _:  # the status registers are read only
                pass

    def _transmit(self, value: int) -> None:
        if not self._modem_control & MCR_LOOP:
            self._output.append(value)
            del self._output[:-OUTPUT_BYTES_MAX]
        elif len(self._received) < self._depth:
            self._received.append(value)
        else:
            self._overrun = LSR_OVERRUN
            if not self._has_fifos:
                self._received[-1] = value  # there is no place but the one that is taken
        # The line falls while the byte is on its way, so that each one interrupts.
        self._empty_pending = False
        self._watch_line()
        self._empty_pending = True

    def _control_fifos(self, value: int) -> None:
        if (value ^ self._fifo_control) & FCR_ENABLE or value & FCR_CLEAR_RECEIVER:
            self._received.clear()
        self._fifo_control = value & 0xC1 if value & FCR_ENABLE else 0

    def _control_modem(self, value: int) -> None:
        before = self._modem_lines
        self._modem_control = value
        changed = before ^ self._modem_lines
        deltas = changed >> 4 & ~_MSR_TRAILING_RI
        if changed & MSR_RI and not self._modem_lines & MSR_RI:
            deltas |= _MSR_TRAILING_RI
        self._modem_deltas |= deltas

    # -- what follows from the registers

    @property
    def _has_fifos(self) -> bool:
        return bool(self._fifo_control & FCR_ENABLE)

    @property
    def _depth(self) -> int:
        return FIFO_BYTES if self._has_fifos else 1

    @property
    def _modem_lines(self) -> int:
        if not self._modem_control & MCR_LOOP:
            return _CONNECTED
        wires = {MCR_RTS: MSR_CTS, MCR_DTR: MSR_DSR, MCR_OUT1: MSR_RI, MCR_OUT2: MSR_DCD}
        return sum(line for control, line in wires.items() if self._modem_control & control)

    @property
    def _cause(self) -> int:
        """Of the interrupt, the most urgent first."""
        if self._enabled & IER_LINE and self._overrun:
            return IIR_LINE
        if self._enabled & IER_RECEIVED and self._received:
            trigger = _TRIGGERS[self._fifo_control >> 6] if self._has_fifos else 1
            # Nothing more is on the line: what is below the trigger has waited long enough.
            return IIR_RECEIVED if len(self._received) >= trigger else IIR_TIMEOUT
        if self._enabled & IER_EMPTY and self._empty_pending:
            return IIR_EMPTY
        if self._enabled & IER_MODEM and self._modem_deltas:
            return IIR_MODEM
        return IIR_NONE

    @property
    def interrupt(self) -> bool:
        """On a PC, OUT2 connects it; in loopback that pin is off."""
        is_connected = self._modem_control & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
        return is_connected and self._cause != IIR_NONE

    # -- state; what was sent is the line's, not ours

    def save(self) -> bytes:
        return _STATE.pack(
            self._divisor & 0xFF,
            self._divisor >> 8,
            self._enabled,
            self._line_control,
            self._modem_control,
            self._scratch,
            self._fifo_control,
            self._overrun,
            self._modem_deltas,
            self._empty_pending,
            len(self._received),
            bytes(self._received),
        )

    def restore(self, state: bytes) -> None:
        (
            low,
            high,
            self._enabled,
            self._line_control,
            self._modem_control,
            self._scratch,
            self._fifo_control,
            self._overrun,
            self._modem_deltas,
            empty_pending,
            count,
            received,
        ) = _STATE.unpack(state)
        self._divisor = low | high << 8
        self._empty_pending = bool(empty_pending)
        self._received = deque(received[:count])
        self._watch_line()
