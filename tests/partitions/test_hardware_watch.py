"""A device's errors, counted: each policy, without a device."""

import errno
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.hardware import watch
from partitions.hardware.watch import RETRIES_MAX, Condition, HardwareWatch
from partitions.stack.device_gone import DeviceGone
from partitions.storage.backends import BackendError

FULL, BAD, GONE = errno.ENOSPC, errno.EIO, errno.ENODEV


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(watch, "RETRY_PAUSE_MS", 0)
    yield
    watch._emit.clear()


def fails(times: int, number: int = BAD) -> Any:
    left = [times]

    def act() -> str:
        if left[0]:
            left[0] -= 1
            raise BackendError(number, "on purpose")
        return "done"

    return act


def records() -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = []
    watch.deliver_to(lambda kind, **fields: said.append(fields))
    return said


@pytest.mark.parametrize("times", range(RETRIES_MAX + 3))
def test_a_request_is_tried_so_often_and_no_oftener(times: int) -> None:
    said, device = records(), HardwareWatch("disk0", "storage", "retry")
    act = fails(times)
    if times > RETRIES_MAX:
        with pytest.raises(BackendError):
            device.run("read", act)
        assert [one["severity"] for one in said] == ["recoverable"]
    else:
        assert device.run("read", act) == "done"
        assert [one["severity"] for one in said] == ["corrected"] * (times > 0)


@pytest.mark.parametrize("number", [FULL, GONE])
def test_what_trying_again_does_not_mend_is_not_tried_again(number: int) -> None:
    tried: list[int] = []

    def act() -> None:
        tried.append(1)
        raise BackendError(number, "on purpose")

    with pytest.raises(BackendError):
        HardwareWatch("disk0", "storage", "retry").run("write", act)
    assert len(tried) == 1


@given(
    policy=st.sampled_from(["report", "retry", "degrade", "remove"]),
    threshold=st.integers(1, 5),
    numbers=st.lists(st.sampled_from([FULL, BAD, GONE]), max_size=12),
)
def test_the_threshold_is_what_decides(policy: str, threshold: int, numbers: list[int]) -> None:
    device = HardwareWatch("disk0", "storage", policy, threshold)
    changes: list[Condition] = []
    device.on_change = lambda: changes.append(device.condition)
    after = {"degrade": Condition.DEGRADED, "remove": Condition.REMOVED}.get(policy, Condition.WELL)
    counted, is_over = 0, False
    for number in numbers:
        counted += number != FULL
        is_over |= number == GONE or counted >= threshold
        expected = after if is_over else Condition.WELL
        try:
            device.failed("write", number)
        except DeviceGone:
            assert expected is Condition.REMOVED
        assert device.condition is expected
        if expected is Condition.REMOVED:
            break
    assert changes == [after] * (is_over and after is not Condition.WELL)


def test_many_errors_are_few_records() -> None:
    said, device = records(), HardwareWatch("disk0", "storage")
    for _ in range(1000):
        device.failed("read", BAD)
    assert len(said) < 16 + 10
    assert said[-1]["count"] >= 512
    assert said[0]["first_ns"] == said[-1]["first_ns"]


def test_what_several_drivers_in_one_process_report_goes_out_under_each_ones_name() -> None:
    """As in a hypervisor that drives all devices: from another's driver the platform takes no record."""
    said: list[tuple[str, str]] = []
    for name in ("disk0", "disk1"):
        watch.deliver_to(lambda kind, device, name=name, **fields: said.append((name, device)), name)
    watch.deliver_to(lambda kind, device, **fields: said.append(("root", device)))
    for device in ("disk1", "disk0", "other"):
        HardwareWatch(device, "storage").failed("read", errno.EIO)
    assert said == [("disk1", "disk1"), ("disk0", "disk0"), ("root", "other")]
