"""The i8042 keyboard controller of a PC, with a keyboard on it.

Port 0x60 is data, 0x64 command and status. Bytes of the controller come before those of the keyboard. There is no
mouse: its port answers as if nothing were plugged in.

Source: IBM PS/2 Hardware Interface Technical Reference, Keyboard and Auxiliary Device Controller.
"""

import struct
from collections import deque
from typing import Final

from partitions.emulated.port_device import PortDevice
from partitions.emulated.scan_codes import BREAK_PREFIX, key_bytes, translated

DATA, COMMAND = 0, 1  # offsets: ports 0x60 and 0x64
KEYBOARD_BYTES_MAX: Final = 16  # that the keyboard keeps; then it says that it overran
_REPLY_BYTES_MAX: Final = 16

STATUS_OUTPUT, STATUS_SYSTEM, STATUS_COMMAND, STATUS_UNLOCKED = 0x01, 0x04, 0x08, 0x10
CONFIG_INTERRUPT, CONFIG_SYSTEM, CONFIG_DISABLED, CONFIG_TRANSLATE = 0x01, 0x04, 0x10, 0x40
OUTPUT_RESET, OUTPUT_A20, OUTPUT_FULL = 0x01, 0x02, 0x10  # of the output port; RESET is low-active
_INPUT_PORT: Final = 0x80  # not locked
_OVERRUN: Final = {1: 0xFF, 2: 0x00}  # by scan code set
ACK, RESEND, SELF_TEST_PASSED, ECHO = 0xFA, 0xFE, 0xAA, 0xEE
_IDENTITY: Final = b"\xab\x83"

# Controller commands that a byte to port 0x60 follows.
_WRITE_CONFIG, _WRITE_OUTPUT_PORT, _WRITE_REPLY, _WRITE_MOUSE_REPLY, _WRITE_MOUSE = (
    0x60,
    0xD1,
    0xD2,
    0xD3,
    0xD4,
)
_WITH_DATA: Final = (_WRITE_CONFIG, _WRITE_OUTPUT_PORT, _WRITE_REPLY, _WRITE_MOUSE_REPLY, _WRITE_MOUSE)
# Keyboard commands that another byte follows.
_SET_LEDS, _SCAN_SET, _TYPEMATIC = 0xED, 0xF0, 0xF3

_STATE: Final = struct.Struct("<12B16s16s")


class KeyboardController(PortDevice):
    """`press` keys on it; look at `a20` and `take_reset`."""

    def __init__(self) -> None:
        super().__init__()
        self._config = CONFIG_INTERRUPT | CONFIG_SYSTEM | CONFIG_TRANSLATE
        self._output_port = OUTPUT_RESET | OUTPUT_A20
        self._last_was_command = False
        self._awaits = 0  # the controller command whose data byte is next; 0: none
        self._last_byte = 0
        self._replies: deque[int] = deque()  # the controller's own
        self._reset = False
        # the keyboard
        self._is_scanning = True
        self._scan_set = 2
        self._leds = 0
        self._keyboard_awaits = 0
        self._last_sent = 0  # by the keyboard, as far as the controller has taken it
        self._sent: deque[int] = deque()  # by the keyboard, before translation

    # -- the outside

    def press(self, key: int, pressed: bool = True) -> bool:
        """A value of `scan_codes.KEYS` goes down or up. False: the keyboard's buffer is full, and it says so."""
        if not self._is_scanning:
            return True
        data = key_bytes(key, pressed, self._scan_set)
        fits = len(self._sent) + len(data) < KEYBOARD_BYTES_MAX
        if fits:
            self._sent.extend(data)
        elif len(self._sent) < KEYBOARD_BYTES_MAX:
            self._sent.append(_OVERRUN[self._scan_set])
        self._watch_line()
        return fits

    @property
    def a20(self) -> bool:
        """Whether the processor's 21st address line is on."""
        return bool(self._output_port & OUTPUT_A20)

    @property
    def leds(self) -> int:
        """Scroll lock 1, num lock 2, caps lock 4."""
        return self._leds

    @property
    def is_quiet(self) -> bool:
        return not self._reset and super().is_quiet

    def take_reset(self) -> bool:
        """Whether the guest has pulled the processor's reset line since this was asked last."""
        reset, self._reset = self._reset, False
        return reset

    # -- ports

    def read(self, offset: int, size: int) -> int:
        if offset != DATA:
            return self._status
        self._last_byte = self._next_byte()
        # Empty for a moment, whatever comes next: each byte interrupts.
        self._was_raised = False
        self._watch_line()
        return self._last_byte

    def write(self, offset: int, size: int, value: int) -> None:
        value &= 0xFF
        self._last_was_command = offset != DATA
        if offset != DATA:
            self._awaits = 0
            self._command(value)
        elif self._awaits:
            command, self._awaits = self._awaits, 0
            self._command_data(command, value)
        else:
            self._config &= ~CONFIG_DISABLED  # speaking to the keyboard enables it
            self._keyboard(value)
        self._watch_line()

    @property
    def _status(self) -> int:
        return (
            STATUS_UNLOCKED
            | (STATUS_OUTPUT if self._has_output else 0)
            | (STATUS_SYSTEM if self._config & CONFIG_SYSTEM else 0)
            | (STATUS_COMMAND if self._last_was_command else 0)
        )

    @property
    def _has_output(self) -> bool:
        return bool(self._replies) or (bool(self._sent) and not self._config & CONFIG_DISABLED)

    @property
    def interrupt(self) -> bool:
        return self._has_output and bool(self._config & CONFIG_INTERRUPT)

    def _next_byte(self) -> int:
        if self._replies:
            return self._replies.popleft()
        if not self._has_output:
            return self._last_byte
        self._last_sent = self._sent.popleft()
        if not self._config & CONFIG_TRANSLATE:
            return self._last_sent
        is_break = self._last_sent == BREAK_PREFIX and bool(self._sent)
        if is_break:
            self._last_sent = self._sent.popleft()
        return translated(self._last_sent) | (0x80 if is_break else 0)

    # -- the controller

    def _reply(self, *data: int) -> None:
        self._replies.extend(data[: _REPLY_BYTES_MAX - len(self._replies)])

    def _command(self, command: int) -> None:
        if command in _WITH_DATA:
            self._awaits = command
            return
        match command:
            case 0x20:  # read the configuration
                self._reply(self._config)
            case 0xA9:  # test the mouse's port: its clock line is stuck low
                self._reply(0x01)
            case 0xAA:  # self test
                self._config |= CONFIG_SYSTEM
                self._reply(0x55)
            case 0xAB:  # test the keyboard's port
                self._reply(0x00)
            case 0xAD:
                self._config |= CONFIG_DISABLED
            case 0xAE:
                self._config &= ~CONFIG_DISABLED
            case 0xC0:
                self._reply(_INPUT_PORT)
            case 0xD0:
                self._reply(self._output_port | (OUTPUT_FULL if self._has_output else 0))
            case 0xDD:
                self._output_port &= ~OUTPUT_A20
            case 0xDF:
                self._output_port |= OUTPUT_A20
            case _ if command >= 0xF0 and not command & 0x01:  # pulse; bit 0 low: the reset line
                self._reset = True
            case _:
                pass

    def _command_data(self, command: int, value: int) -> None:
        match command:
            case 0x60:  # _WRITE_CONFIG
                self._config = value & ~0x88  # two bits are always 0
            case 0xD1:  # _WRITE_OUTPUT_PORT
                if not value & OUTPUT_RESET:
                    self._reset = True
                self._output_port = value & OUTPUT_A20 | OUTPUT_RESET
            case 0xD2:  # _WRITE_REPLY: as if the keyboard had sent it
                self._reply(value)
            case _:  # to the mouse, which is not there
                pass

    # -- the keyboard

    def _send(self, *data: int) -> None:
        """An answer goes before keys that wait: those are older than the command."""
        if len(self._sent) + len(data) > KEYBOARD_BYTES_MAX:
            self._sent.clear()
        self._sent.extendleft(reversed(data))

    def _keyboard(self, value: int) -> None:
        if self._keyboard_awaits and value < 0x80:
            command, self._keyboard_awaits = self._keyboard_awaits, 0
            self._keyboard_data(command, value)
            return
        self._keyboard_awaits = 0
        match value:
            case 0xED | 0xF0 | 0xF3:
                self._keyboard_awaits = value
                self._send(ACK)
            case 0xEE:
                self._send(ECHO)
            case 0xF2:
                self._send(ACK, *_IDENTITY)
            case 0xF4:
                self._sent.clear()
                self._is_scanning = True
                self._send(ACK)
            case 0xF5 | 0xF6:
                self._set_defaults(scanning=value == 0xF6)
                self._send(ACK)
            case 0xFE:
                self._send(self._last_sent)
            case 0xFF:
                self._set_defaults(scanning=True)
                self._send(ACK, SELF_TEST_PASSED)
            case _:
                self._send(RESEND)

    def _keyboard_data(self, command: int, value: int) -> None:
        if command == _SCAN_SET and value == 0:
            self._send(ACK, self._scan_set)
            return
        if command == _SCAN_SET and value not in _OVERRUN:
            self._send(RESEND)
            return
        if command == _SCAN_SET:
            self._sent.clear()
            self._scan_set = value
        elif command == _SET_LEDS:
            self._leds = value & 0x07
        self._send(ACK)

    def _set_defaults(self, scanning: bool) -> None:
        self._sent.clear()
        self._scan_set, self._leds, self._is_scanning = 2, 0, scanning

    # -- state

    def save(self) -> bytes:
        return _STATE.pack(
            self._config,
            self._output_port,
            self._last_was_command,
            self._awaits,
            self._last_byte,
            self._last_sent,
            self._is_scanning,
            self._scan_set,
            self._leds,
            self._keyboard_awaits,
            len(self._replies),
            len(self._sent),
            bytes(self._replies),
            bytes(self._sent),
        )

    def restore(self, state: bytes) -> None:
        (
            self._config,
            self._output_port,
            last_was_command,
            self._awaits,
            self._last_byte,
            self._last_sent,
            is_scanning,
            self._scan_set,
            self._leds,
            self._keyboard_awaits,
            reply_count,
            sent_count,
            replies,
            sent,
        ) = _STATE.unpack(state)
        self._last_was_command, self._is_scanning = bool(last_was_command), bool(is_scanning)
        self._replies, self._sent = deque(replies[:reply_count]), deque(sent[:sent_count])
        self._watch_line()
