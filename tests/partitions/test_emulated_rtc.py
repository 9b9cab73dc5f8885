"""The real-time clock against Python's own calendar."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions.emulated.rtc import (
    B_24_HOURS,
    B_ALARM,
    B_BINARY,
    B_SET,
    C_ALARM,
    C_ANY,
    C_PERIODIC,
    C_UPDATE,
    CENTURY,
    CMOS_BYTES,
    DATA,
    DAY,
    HOURS,
    HOURS_ALARM,
    INDEX,
    MINUTES,
    MINUTES_ALARM,
    MONTH,
    REGISTER_A,
    REGISTER_B,
    REGISTER_C,
    REGISTER_D,
    SECONDS,
    SECONDS_ALARM,
    WEEKDAY,
    YEAR,
    RealTimeClock,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOMENTS = st.datetimes(
    datetime(1971, 1, 1), datetime(2199, 12, 30), timezones=st.just(UTC)
)  # a guest's clock shows any of them


class Clock:
    """The host's time, as a test says it."""

    def __init__(self, moment: datetime) -> None:
        self.now_us = (moment - EPOCH) // timedelta(microseconds=1)

    def __call__(self) -> int:
        return self.now_us


def _made(moment: datetime, memory_bytes: int = 64 << 20) -> tuple[RealTimeClock, Clock]:
    clock = Clock(moment)
    return RealTimeClock(clock, memory_bytes, True), clock


def _get(rtc: RealTimeClock, register: int) -> int:
    rtc.write(INDEX, 1, register)
    return rtc.read(DATA, 1)


def _set(rtc: RealTimeClock, register: int, value: int) -> None:
    rtc.write(INDEX, 1, register)
    rtc.write(DATA, 1, value)


def _bcd(value: int) -> int:
    return value // 10 << 4 | value % 10


def _coded(value: int, mode: int) -> int:
    return value if mode & B_BINARY else _bcd(value)


def _hour(hour: int, mode: int) -> int:
    if mode & B_24_HOURS:
        return _coded(hour, mode)
    return _coded((hour + 11) % 12 + 1, mode) | (0x80 if hour >= 12 else 0)


MODES = st.sampled_from([0, B_24_HOURS, B_BINARY, B_24_HOURS | B_BINARY])


@given(MOMENTS, MODES)
@settings(deadline=None)
def test_every_moment_reads_as_the_calendar_has_it_in_each_format(moment: datetime, mode: int) -> None:
    rtc, _ = _made(moment)
    _set(rtc, REGISTER_B, mode)
    expected = {
        SECONDS: _coded(moment.second, mode),
        MINUTES: _coded(moment.minute, mode),
        HOURS: _hour(moment.hour, mode),
        WEEKDAY: moment.isoweekday() % 7 + 1,
        DAY: _coded(moment.day, mode),
        MONTH: _coded(moment.month, mode),
        YEAR: _coded(moment.year % 100, mode),
        CENTURY: _coded(moment.year // 100, mode),
    }
    assert {register: _get(rtc, register) for register in expected} == expected


@given(MOMENTS, MOMENTS, MODES, st.integers(0, 10**9), st.booleans())
@settings(deadline=None)
def test_a_time_that_was_set_goes_on_from_there(
    host: datetime, guest: datetime, mode: int, later_s: int, stopped: bool
) -> None:
    """Whichever way it is set: with the clock stopped, or field by field while it runs."""
    rtc, clock = _made(host)
    _set(rtc, REGISTER_B, mode | (B_SET if stopped else 0))
    fields = {
        DAY: _coded(1, mode),  # there is no 31st of February on the way
        CENTURY: _coded(guest.year // 100, mode),
        YEAR: _coded(guest.year % 100, mode),
        MONTH: _coded(guest.month, mode),
        HOURS: _hour(guest.hour, mode),
        MINUTES: _coded(guest.minute, mode),
        SECONDS: _coded(guest.second, mode),
    }
    for register, value in fields.items():
        _set(rtc, register, value)
    _set(rtc, DAY, _coded(guest.day, mode))
    _set(rtc, REGISTER_B, mode)
    restored = RealTimeClock(clock, 0, False)
    restored.restore(rtc.save())
    clock.now_us += later_s * 1_000_000
    # What was set kept the fraction of its second, so it may be a second on.
    expected = guest.replace(microsecond=0) + timedelta(seconds=later_s)
    shown = restored._now_us // 1_000_000
    assert shown == (expected - EPOCH) // timedelta(seconds=1)
    if expected.year < 2200:
        assert _get(restored, MINUTES) == _coded(expected.minute, mode)
        assert _get(restored, DAY) == _coded(expected.day, mode)


def test_a_stopped_clock_stands() -> None:
    rtc, clock = _made(datetime(2024, 2, 29, 23, 59, 58, tzinfo=UTC))
    _set(rtc, REGISTER_B, B_SET | B_24_HOURS)
    clock.now_us += 3600 * 1_000_000
    assert _get(rtc, SECONDS) == 0x58
    _set(rtc, REGISTER_B, B_24_HOURS)
    clock.now_us += 2_000_000
    assert (_get(rtc, MONTH), _get(rtc, DAY), _get(rtc, HOURS)) == (3, 1, 0)
    _set(rtc, REGISTER_A, 0x76)  # the divider is held in reset
    clock.now_us += 5_000_000
    assert _get(rtc, SECONDS) == 0
    _set(rtc, REGISTER_A, 0x26)
    clock.now_us += 5_000_000
    assert _get(rtc, SECONDS) == 5


def test_a_date_that_does_not_exist_is_memory_until_it_does() -> None:
    rtc, clock = _made(datetime(2023, 1, 31, 12, tzinfo=UTC))
    _set(rtc, MONTH, 0x02)
    assert (_get(rtc, MONTH), _get(rtc, DAY), _get(rtc, HOURS)) == (0x02, 0x31, 0x12)
    clock.now_us += 10_000_000
    assert _get(rtc, SECONDS) == 0
    _set(rtc, DAY, 0x28)
    assert (_get(rtc, MONTH), _get(rtc, DAY)) == (0x02, 0x28)
    clock.now_us += 10_000_000
    assert _get(rtc, SECONDS) == 0x10  # it stood meanwhile
    for nonsense in (0xFF, 0x6A, 0x00):
        _set(rtc, MONTH, nonsense)
        assert _get(rtc, MONTH) == nonsense


def test_an_update_is_announced_just_before_it_comes() -> None:
    rtc, clock = _made(datetime(2024, 1, 1, tzinfo=UTC))
    seen = set()
    for _ in range(1000):
        clock.now_us += 1_003
        seen.add((clock.now_us % 1_000_000 >= 1_000_000 - 244, bool(_get(rtc, REGISTER_A) & 0x80)))
    assert seen <= {(False, False), (True, True)}
    clock.now_us += 1_000_000 - clock.now_us % 1_000_000 - 1
    assert _get(rtc, REGISTER_A) & 0x80
    _set(rtc, REGISTER_B, B_SET)
    assert not _get(rtc, REGISTER_A) & 0x80


@given(
    st.datetimes(datetime(2024, 1, 1), datetime(2024, 1, 3), timezones=st.just(UTC)),
    st.integers(1, 90_000),
    st.tuples(*(st.sampled_from([0xC0, 0xFF, *map(_bcd, range(0, top, 7)), 0x99]) for top in (24, 60, 60))),
)
@settings(deadline=None, max_examples=200)
def test_an_alarm_has_come_if_a_second_matched_it(
    start: datetime, elapsed_s: int, alarm: tuple[int, int, int]
) -> None:
    """Against going through the seconds one by one."""
    start = start.replace(microsecond=0)
    rtc, clock = _made(start)
    _set(rtc, REGISTER_B, B_24_HOURS | B_ALARM)
    for register, value in zip((HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM), alarm, strict=True):
        _set(rtc, register, value)
    clock.now_us += elapsed_s * 1_000_000
    matched = any(
        all(
            wanted >= 0xC0 or wanted == _bcd(actual)
            for wanted, actual in zip(
                alarm, (second // 3600 % 24, second // 60 % 60, second % 60), strict=True
            )
        )
        for second in range(
            start.hour * 3600 + start.minute * 60 + start.second + 1,
            start.hour * 3600 + start.minute * 60 + start.second + 1 + min(elapsed_s, 86_400),
        )
    )
    flags = _get(rtc, REGISTER_C)
    assert flags & C_UPDATE
    assert bool(flags & C_ALARM) == bool(flags & C_ANY) == matched
    assert _get(rtc, REGISTER_C) == 0  # reading cleared it


@pytest.mark.parametrize(("rate", "hertz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)])
def test_periods_are_as_long_as_the_rate_says(rate: int, hertz: int) -> None:
    rtc, clock = _made(datetime(2024, 1, 1, tzinfo=UTC))
    _set(rtc, REGISTER_A, 0x20 | rate)
    _get(rtc, REGISTER_C)
    clock.now_us += 1_000_000 // hertz - 1
    assert not _get(rtc, REGISTER_C) & C_PERIODIC
    clock.now_us += 2
    assert _get(rtc, REGISTER_C) & C_PERIODIC
    _set(rtc, REGISTER_A, 0x20)
    clock.now_us += 500_000
    assert not _get(rtc, REGISTER_C) & C_PERIODIC


@pytest.mark.parametrize(
    ("memory_bytes", "base", "extended", "high"),
    [
        (512 << 10, 512, 0, 0),
        (1 << 20, 640, 0, 0),
        (32 << 20, 640, 31 << 10, 256),
        (1 << 30, 640, 0xFFFF, 16384 - 256),
    ],
)
def test_the_cmos_says_how_much_memory_there_is(
    memory_bytes: int, base: int, extended: int, high: int
) -> None:
    rtc, _ = _made(datetime(2024, 1, 1, tzinfo=UTC), memory_bytes)

    def word(at: int) -> int:
        return _get(rtc, at) | _get(rtc, at + 1) << 8

    assert (word(0x15), word(0x17), word(0x30), word(0x34)) == (base, extended, extended, high)
    total = sum(_get(rtc, at) for at in range(0x10, 0x2E))
    assert _get(rtc, 0x2E) << 8 | _get(rtc, 0x2F) == total


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 1), st.integers(0, 255), st.integers(0, 10**12)), max_size=60
    )
)
@settings(max_examples=200, deadline=None)
def test_garbage_is_answered_and_a_successor_answers_the_same(
    accesses: list[tuple[bool, int, int, int]],
) -> None:
    rtc, clock = _made(datetime(2024, 1, 1, tzinfo=UTC))
    for is_write, offset, value, pause_us in accesses:
        clock.now_us += pause_us
        successor = RealTimeClock(clock, 0, False)
        successor.restore(rtc.save())
        for each in (rtc, successor):
            if is_write:
                each.write(offset, 1, value)
        if not is_write:
            assert rtc.read(offset, 1) == successor.read(offset, 1) <= 0xFF
        assert rtc.save() == successor.save()
    assert rtc.read(INDEX, 1) == 0xFF
    _set(rtc, REGISTER_D, 0)
    assert _get(rtc, REGISTER_D) == 0x80
    _set(rtc, CMOS_BYTES - 1, 0x5A)
    assert _get(rtc, CMOS_BYTES - 1) == 0x5A
