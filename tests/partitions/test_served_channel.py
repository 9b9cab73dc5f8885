"""What counts as stuck: the root ends itself for it, so no guest may be able to make it look so."""

import threading
import time
from collections.abc import Callable

import pytest

from bus.native import RingFull
from partitions.served_channel import ServedChannel
from partitions.storage.backends import MemoryBackend
from tests.partitions.storage_pair import Pair, connected

PATIENCE_S = 20.0
REQUEST = bytes(64)  # answered with an error, which is an answer


def comes_true(condition: Callable[[], bool]) -> bool:
    ends = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < ends:
        time.sleep(0.005)
    return condition()


def watched(pair: Pair) -> ServedChannel:
    """The pair's host end, as the root's watchdog knows it."""
    served = ServedChannel.__new__(ServedChannel)
    object.__setattr__(served, "channel", pair.host)
    served._seen = (0, time.monotonic())
    served._service = pair.vsp
    return served


def fill(pair: Pair) -> None:
    """Until both rings are full: the server has no room for answers, and more requests are there."""
    ends = time.monotonic() + PATIENCE_S
    since = time.monotonic()
    while time.monotonic() < ends and time.monotonic() - since < 0.3:
        try:
            pair.guest.send(REQUEST, 1, True)
        except RingFull:
            time.sleep(0.001)
        else:
            since = time.monotonic()


def test_a_guest_that_takes_no_answers_in_does_not_make_its_server_look_stuck() -> None:
    with MemoryBackend(1 << 20) as backend, connected(backend, ring_pages=1) as pair:
        served = watched(pair)
        fill(pair)
        assert comes_true(lambda: pair.vsp.waits_for_guest)
        assert pair.host.has_work
        assert not served.is_stuck(0)
        time.sleep(0.05)
        assert not served.is_stuck(20)
        pair.guest.receive_batch(1000, 0)
        pair.guest.release()
        assert comes_true(lambda: not pair.vsp.waits_for_guest)


def test_a_server_whose_device_is_held_by_nobody_who_lets_go_is_stuck() -> None:
    with MemoryBackend(1 << 20) as backend, connected(backend, ring_pages=1) as pair:
        served = watched(pair)
        with pair.vsp._lock:
            pair.guest.send(REQUEST, 1, True)
            assert comes_true(lambda: served.is_stuck(20))
            assert comes_true(lambda: served.is_stuck(20))
        assert comes_true(lambda: not served.is_stuck(20))


def test_a_service_that_fails_takes_its_own_channel_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    """Not the process, and not in silence: a ring whose thread is gone would look stuck, and end the root."""
    with MemoryBackend(1 << 20) as backend, connected(backend, ring_pages=1) as pair:
        served = watched(pair)
        served._stop, served._thread = threading.Event(), None
        served._service = FailingService()
        reasons: list[str] = []
        served.start("failing", reasons.append)
        assert comes_true(lambda: reasons != [])
        assert reasons == ["the server failed: ZeroDivisionError: a defect"]
        assert "ZeroDivisionError" in capsys.readouterr().err


class FailingService:
    waits_for_guest = False

    def replay(self) -> None: ...

    def serve(self, stop: threading.Event) -> None:
        raise ZeroDivisionError("a defect")

    def statistics(self) -> dict[str, int]:
        return {}
