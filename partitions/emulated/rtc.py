"""The MC146818 real-time clock of a PC and its CMOS memory, behind ports 0x70 (index) and 0x71 (data).

The time is the host's, in UTC, plus what the guest has set it forward or back. It raises no interrupt: alarm, periodic
and update flags are worked out when register C is read.

Source: Motorola MC146818A data sheet; IBM PC AT Technical Reference, CMOS RAM.
"""

import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from partitions.emulated.port_device import PortDevice

INDEX, DATA = 0, 1  # offsets
CMOS_BYTES: Final = 128

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
WEEKDAY, DAY, MONTH, YEAR, REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D = range(6, 14)
CENTURY: Final = 0x32

A_UPDATING, A_DIVIDER, A_RATE = 0x80, 0x70, 0x0F
B_SET, B_PERIODIC, B_ALARM, B_UPDATE, B_BINARY, B_24_HOURS = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
C_ANY, C_PERIODIC, C_ALARM, C_UPDATE = 0x80, 0x40, 0x20, 0x10
D_VALID: Final = 0x80
_DIVIDER_RESET: Final = 0x60  # and above: the clock stands
_UPDATING_US: Final = 244  # UIP comes so long before the second ends
_PM: Final = 0x80  # of an hour on a 12-hour clock
_ANY: Final = 0xC0  # and above: an alarm field that matches everything
_DAY_S: Final = 86_400
_FIRST_YEAR: Final = 1970
_TIME: Final = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)

_STATE: Final = struct.Struct("<BBqqq128s")


class RealTimeClock(PortDevice):
    """`clock` tells the host's time, in microseconds since 1970."""

    def __init__(self, clock: Callable[[], int], memory_bytes: int, has_disk: bool) -> None:
        super().__init__()
        self._clock = clock
        self._index = 0
        self._offset_us = 0  # ours, less the host's
        self._frozen_us = 0  # the time while the clock is being set, or stands
        self._looked_us = clock()  # our time when register C was read last
        self._is_broken = False  # the guest has put a date together that does not exist
        self._cmos = bytearray(CMOS_BYTES)
        self._cmos[REGISTER_A] = 0x26  # 32,768 Hz, 1,024 periods a second
        self._cmos[REGISTER_B] = B_24_HOURS
        self._cmos[REGISTER_D] = D_VALID
        self._describe(memory_bytes, has_disk)

    def _describe(self, memory_bytes: int, has_disk: bool) -> None:
        """What a PC's firmware would have found: no floppy, perhaps a disk, memory in KiB and in 64 KiB pieces."""
        self._cmos[0x12] = 0xF0 if has_disk else 0  # the first disk: see the byte for its type
        self._cmos[0x19] = 47 if has_disk else 0  # that is: ask the disk
        self._cmos[0x14] = 0x02  # a floating point unit
        base = min(memory_bytes >> 10, 640)
        extended = min(max((memory_bytes >> 10) - 1024, 0), 0xFFFF)
        high = min(max((memory_bytes >> 16) - 256, 0), 0xFFFF)  # above 16 MiB
        for place, value in ((0x15, base), (0x17, extended), (0x30, extended), (0x34, high)):
            self._cmos[place : place + 2] = value.to_bytes(2, "little")
        self._cmos[0x2E:0x30] = sum(self._cmos[0x10:0x2E]).to_bytes(2, "big")

    # -- ports

    def read(self, offset: int, size: int) -> int:
        if offset == INDEX:
            return 0xFF  # it can only be written
        index = self._index
        if index in _TIME:
            return self._read_time(index)
        if index == REGISTER_A:
            return self._cmos[REGISTER_A] | (A_UPDATING if self._is_updating else 0)
        if index == REGISTER_C:
            return self._take_flags()
        return self._cmos[index]

    def write(self, offset: int, size: int, value: int) -> None:
        value &= 0xFF
        if offset == INDEX:
            self._index = value & 0x7F  # bit 7 masks the NMI, of which there is none
        elif self._index in _TIME:
            self._write_time(self._index, value)
        elif self._index == REGISTER_A:
            self._write_control(REGISTER_A, value & ~A_UPDATING)
        elif self._index == REGISTER_B:
            self._write_control(REGISTER_B, value & ~B_UPDATE if value & B_SET else value)
        elif self._index not in (REGISTER_C, REGISTER_D):
            self._cmos[self._index] = value

    @property
    def interrupt(self) -> bool:
        return False

    # -- time

    @property
    def _stands(self) -> bool:
        return bool(self._cmos[REGISTER_B] & B_SET) or self._cmos[REGISTER_A] & A_DIVIDER >= _DIVIDER_RESET

    @property
    def _now_us(self) -> int:
        return self._frozen_us if self._stands else self._clock() + self._offset_us

    @property
    def _is_updating(self) -> bool:
        return not self._stands and self._now_us % 1_000_000 >= 1_000_000 - _UPDATING_US

    def _write_control(self, register: int, value: int) -> None:
        """The clock stops with the time that it has, and goes on with the time that it was given."""
        stood, now_us = self._stands, self._now_us
        self._cmos[register] = value
        if self._stands and not stood:
            self._frozen_us, self._is_broken = now_us, False
        elif stood and not self._stands:
            self._offset_us = self._frozen_us - self._clock()
            self._looked_us, self._is_broken = self._frozen_us, False

    def _read_time(self, register: int) -> int:
        if self._is_broken:
            return self._cmos[register]
        return self._encoded(register, _at(self._now_us))

    def _write_time(self, register: int, value: int) -> None:
        """One field. Until the next ones are written there may be no such date: then the registers are just memory."""
        now_us = self._now_us
        if not self._is_broken:
            for each in _TIME:
                self._cmos[each] = self._encoded(each, _at(now_us))
        self._cmos[register] = value
        try:
            fields = [self._decoded(each) for each in _TIME]
            second, minute, hour, _, day, month, year, century = fields
            moment = datetime(century * 100 + year, month, day, hour, minute, second, tzinfo=UTC)
        except ValueError:
            self._is_broken = True
            return
        self._is_broken = False
        set_us = _us(moment) + now_us % 1_000_000
        if self._stands:
            self._frozen_us = set_us
        else:
            self._offset_us = set_us - self._clock()
            self._looked_us = set_us

    def _encoded(self, register: int, moment: datetime) -> int:
        if register == WEEKDAY:
            return self._number(moment.isoweekday() % 7 + 1)  # Sunday is 1
        value = {
            SECONDS: moment.second,
            MINUTES: moment.minute,
            HOURS: moment.hour,
            DAY: moment.day,
            MONTH: moment.month,
            YEAR: moment.year % 100,
            CENTURY: moment.year // 100,
        }[register]
        if register == HOURS and not self._cmos[REGISTER_B] & B_24_HOURS:
            return self._number((value + 11) % 12 + 1) | (_PM if value >= 12 else 0)
        return self._number(value)

    def _decoded(self, register: int) -> int:
        """Of the time or of an alarm. Raises ValueError: two digits that are none."""
        value = self._cmos[register]
        if register not in (HOURS, HOURS_ALARM) or self._cmos[REGISTER_B] & B_24_HOURS:
            return self._value(value)
        hour = self._value(value & ~_PM)
        if not 1 <= hour <= 12:
            raise ValueError(f"hour {hour} of twelve")
        return hour % 12 + (12 if value & _PM else 0)

    def _number(self, value: int) -> int:
        return value if self._cmos[REGISTER_B] & B_BINARY else value // 10 << 4 | value % 10

    def _value(self, number: int) -> int:
        if self._cmos[REGISTER_B] & B_BINARY:
            return number
        if number >> 4 > 9 or number & 0xF > 9:
            raise ValueError(f"{number:#x} are no digits")
        return (number >> 4) * 10 + (number & 0xF)

    # -- flags

    def _take_flags(self) -> int:
        """What happened since register C was read last; reading it clears it."""
        now_us = self._now_us
        before_us, self._looked_us = self._looked_us, now_us
        control, rate = self._cmos[REGISTER_B], self._cmos[REGISTER_A] & A_RATE
        flags = 0
        if not self._stands and now_us > before_us:
            before_s, now_s = before_us // 1_000_000, now_us // 1_000_000
            if now_s > before_s:
                flags |= C_UPDATE
                if self._alarm_matches(before_s, now_s):
                    flags |= C_ALARM
            if rate:
                hertz = 32_768 >> (rate - 1 if rate > 2 else rate + 6)
                if now_us * hertz // 1_000_000 > before_us * hertz // 1_000_000:
                    flags |= C_PERIODIC
        return flags | (C_ANY if flags & control & (C_PERIODIC | C_ALARM | C_UPDATE) else 0)

    def _alarm_matches(self, after_s: int, until_s: int) -> bool:
        """Whether the alarm's time of day came in (after_s, until_s]."""

        def wanted(register: int, count: int) -> range:
            if self._cmos[register] >= _ANY:
                return range(count)
            value = self._decoded(register)
            return range(value, value + 1) if value < count else range(0)

        try:
            hours = wanted(HOURS_ALARM, 24)
            minutes, seconds = wanted(MINUTES_ALARM, 60), wanted(SECONDS_ALARM, 60)
        except ValueError:
            return False
        if until_s - after_s >= _DAY_S:
            return bool(hours and minutes and seconds)
        first = after_s + 1
        for hour in hours:
            for minute in minutes:
                for second in seconds:
                    if (hour * 3600 + minute * 60 + second - first) % _DAY_S <= until_s - first:
                        return True
        return False

    # -- state

    def save(self) -> bytes:
        return _STATE.pack(
            self._index, self._is_broken, self._offset_us, self._frozen_us, self._looked_us, bytes(self._cmos)
        )

    def restore(self, state: bytes) -> None:
        self._index, is_broken, self._offset_us, self._frozen_us, self._looked_us, cmos = _STATE.unpack(state)
        self._index %= CMOS_BYTES
        self._is_broken, self._cmos = bool(is_broken), bytearray(cmos)


def _at(moment_us: int) -> datetime:
    """A moment that the registers can show; those beyond them are shown as the nearest."""
    seconds = moment_us // 1_000_000
    return datetime(_FIRST_YEAR, 1, 1, tzinfo=UTC) + timedelta(seconds=min(max(seconds, _MIN_S), _MAX_S))


def _us(moment: datetime) -> int:
    return round((moment - datetime(_FIRST_YEAR, 1, 1, tzinfo=UTC)).total_seconds()) * 1_000_000


_MIN_S: Final = _us(datetime(1, 1, 1, tzinfo=UTC)) // 1_000_000
_MAX_S: Final = _us(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)) // 1_000_000
