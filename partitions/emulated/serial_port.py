"""A UART with a line on it: what it sends becomes lines of text, what is typed waits until it has room."""

import struct
from collections.abc import Callable
from typing import Final

from partitions.emulated.port_device import STATE_BYTES_MAX, PortDevice
from partitions.emulated.uart import INTERRUPT_ID, LINE_STATUS, Uart

LINE_BYTES_MAX: Final = 240  # a longer line is cut
INPUT_BYTES_MAX: Final = 512  # typed, and not yet read; more is refused

_STATE: Final = struct.Struct("<HH")
assert 64 + _STATE.size + LINE_BYTES_MAX + INPUT_BYTES_MAX <= STATE_BYTES_MAX


def _nobody(_: object) -> None:
    pass


class SerialPort(PortDevice):
    """`type_in` bytes.

    What it sends is told at once, before its state can be saved: whoever takes over may tell something again, but
    nothing is lost.
    """

    def __init__(self, show: Callable[[bytes], None] = _nobody, say: Callable[[str], None] = _nobody) -> None:
        """`show`: bytes as they come, for a terminal; `say`: whole lines without their ends, for a log."""
        super().__init__()
        self.uart: Final = Uart()
        self._show, self._say = show, say
        self._typed = bytearray()
        self._line = bytearray()  # begun, and not ended

    # -- the line

    def type_in(self, data: bytes) -> int:
        """How many bytes were taken; the rest finds no place yet."""
        taken = data[: INPUT_BYTES_MAX - len(self._typed)]
        self._typed += taken
        if self.uart.wants_input:
            self._feed()
        return len(taken)

    def end_line(self) -> None:
        """Nothing more will come: what was begun is a line."""
        if self._line:
            self._say(_text(self._line))
            self._line.clear()

    def _feed(self) -> None:
        """As much as the receiver has room for: when the guest looks for it, or wants an interrupt for it. Whoever sets
        a UART up empties its receiver first, and what was typed before shall not be lost by that."""
        if self._typed and (room := self.uart.room) > 0:
            taken = self.uart.receive(bytes(self._typed[:room]))
            del self._typed[:taken]

    def _drain(self) -> None:
        sent = self.uart.take_output()
        if sent:
            self._show(sent)
        for byte in sent:
            if byte == 0x0A or len(self._line) >= LINE_BYTES_MAX:
                self._say(_text(self._line))
                self._line.clear()
            if byte != 0x0A:
                self._line.append(byte)

    # -- ports

    def read(self, offset: int, size: int) -> int:
        if offset in (LINE_STATUS, INTERRUPT_ID):
            self._feed()
        value = self.uart.read(offset, size)
        if self.uart.wants_input:
            self._feed()
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        self.uart.write(offset, size, value)
        self._drain()
        if self.uart.wants_input:
            self._feed()

    @property
    def interrupt(self) -> bool:
        return self.uart.interrupt

    @property
    def is_quiet(self) -> bool:
        return self.uart.is_quiet

    def take_interrupt(self) -> bool:
        return self.uart.take_interrupt()

    # -- state

    def save(self) -> bytes:
        head = _STATE.pack(len(self._line), len(self._typed))
        return head + bytes(self._line) + bytes(self._typed) + self.uart.save()

    def restore(self, state: bytes) -> None:
        line, typed = _STATE.unpack_from(state)
        at = _STATE.size
        self._line = bytearray(state[at : at + line])
        self._typed = bytearray(state[at + line : at + line + typed])
        self.uart.restore(state[at + line + typed :])


def _text(line: bytearray) -> str:
    return bytes(line).rstrip(b"\r").decode("utf-8", "replace")
