"""What counts as stuck: the root ends itself for it, so no guest may be able to make it look so."""

import contextlib
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from bus.native import PAGE_BYTES, RingFull
from bus.packets import PacketType
from bus.seam import Seam
from partitions.stack.channel_ports import Doorbells
from partitions.stack.served_channel import RingPlacement, ServedChannel, WorkerEnd
from partitions.storage.backends import MemoryBackend
from runtime.abi import Route
from tests.bus.ring_pair import WRITE_INDEX, RingPair, ring_pair
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
    served.resting = False
    return served


def fill(pair: Pair) -> None:
    """Until both rings are full: the server has no room for answers, and more requests are there."""

    def is_full() -> bool:
        while True:
            try:
                pair.guest.send(REQUEST, 1, True)
            except RingFull:
                return pair.vsp.waits_for_guest

    assert comes_true(is_full)


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


class FailingService:
    """Takes a request, notes it, answers it; but fails where `fails` says so, before the answer."""

    waits_for_guest = False

    def __init__(self, served: ServedChannel, executed: list[bytes], fails: Callable[[], bool]) -> None:
        self._channel, self._executed, self._fails = served.channel, executed, fails

    def replay(self) -> None:
        self._serve(0)

    def serve(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._serve(10_000_000)

    def _serve(self, patience_ns: int) -> None:
        for _, _, identity, _, payload in self._channel.receive_batch(1, patience_ns):
            self._executed.append(payload)
            if self._fails():
                raise ZeroDivisionError("a defect")
            self._channel.send_completion(payload, identity)
            self._channel.release()

    def statistics(self) -> dict[str, int]:
        return {}


@contextlib.contextmanager
def worker(
    pair: RingPair, fails: Callable[[], bool], service: "type[FailingService]" = FailingService
) -> Iterator[tuple[ServedChannel, list[bytes], list[WorkerEnd]]]:
    executed: list[bytes] = []
    ends: list[WorkerEnd] = []
    served = ServedChannel(
        Doorbells(1, Route.DIRECT, os.dup(pair.host_doorbell), os.dup(pair.guest_doorbell)),
        RingPlacement(memoryview(pair.memory), 1 + pair.to_host.size_bytes // PAGE_BYTES),
        "block",
        memoryview(bytearray(PAGE_BYTES)),
        memoryview(bytearray(64)),
        Seam(),
        lambda served: service(served, executed, fails),
    )
    served.start("worker", ends.append)
    try:
        yield served, executed, ends
    finally:
        assert served.stop(PATIENCE_S)
        served.release()


def test_a_service_that_fails_is_started_again_and_executes_again_what_it_had_not_answered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On the same channel, in ring order, and nothing else twice; the guest only waits."""
    failing = iter([False, True, True, False, False, True, False, False])
    with ring_pair() as pair, worker(pair, lambda: next(failing)) as (served, executed, ends):
        answered: list[int] = []
        for number in range(5):
            pair.guest.send(bytes([number]) * 8, number, True)
        while len(answered) < 5:
            answered += [packet[2] for packet in pair.guest.receive_batch(8, int(PATIENCE_S * 1e9))]
            pair.guest.release()
        assert answered == [0, 1, 2, 3, 4]
        assert [payload[0] for payload in executed] == [0, 1, 1, 1, 2, 3, 3, 4]
        assert ends == []
        assert served.back_off.failures == 3
        assert capsys.readouterr().err.count("ZeroDivisionError: a defect") == 3, "not in silence"


def test_a_service_that_never_gets_better_is_given_up_and_says_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ring_pair() as pair, worker(pair, lambda: True) as (served, executed, ends):
        pair.guest.send(bytes(8), 1, True)
        assert comes_true(lambda: ends != [])
        assert ends == [WorkerEnd(True, "the service failed: ZeroDivisionError: a defect")]
        assert len(executed) == served.back_off.policy.failures_max
        assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_worker_that_rests_between_two_tries_does_not_look_stuck() -> None:
    with ring_pair() as pair, worker(pair, lambda: True) as (served, _, ends):
        pair.guest.send(bytes(8), 1, True)
        while not ends:
            before = served.back_off.failures, served.resting
            is_stuck = served.is_stuck(0)
            if before == (served.back_off.failures, served.resting):  # as long as that took
                assert not (is_stuck and before[1])


def test_a_guest_that_breaks_its_ring_loses_its_worker_by_its_own_fault() -> None:
    with ring_pair() as pair, worker(pair, lambda: False) as (_, _, ends):
        pair.to_host.set_field(WRITE_INDEX, 12345)
        pair.guest.kick()
        assert comes_true(lambda: ends != [])
        assert not ends[0].failed


def test_while_a_request_may_be_executed_again_nobody_else_is_let_at_its_device() -> None:
    """Somebody could see, or overwrite, what it did: then doing it again would be out of order."""
    with MemoryBackend(1 << 20) as backend, connected(backend, ring_pages=4) as pair:
        vsp, lock = pair.vsp, pair.vsp._lock
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vsp, "_answer", lambda *_: 1 // 0)
            packet = (int(PacketType.INBAND), 0, 1, b"", REQUEST)
            with pytest.raises(ZeroDivisionError):
                vsp._serve(packet)
        entered = threading.Event()

        def neighbour() -> None:
            with lock:
                entered.set()

        thread = threading.Thread(target=neighbour)
        thread.start()
        assert not entered.wait(0.1)
        vsp.let_go()
        assert entered.wait(PATIENCE_S)
        thread.join()


def test_a_channel_that_was_released_keeps_nothing_of_its_service() -> None:
    """A service that knows its channel's `ring`, as those of shared channels do: nobody waits for the collector."""
    kept: list[weakref.ref[FailingService]] = []

    class Ringing(FailingService):
        def __init__(self, served: ServedChannel, executed: list[bytes], fails: Callable[[], bool]) -> None:
            super().__init__(served, executed, fails)
            self.ring = served.ring
            kept.append(weakref.ref(self))

    gc.disable()
    try:
        with ring_pair() as pair, worker(pair, lambda: False, Ringing) as (served, _, _):
            pair.guest.send(b"before the end")
            assert comes_true(lambda: bool(kept))
        assert served is not None  # it is ours still, stopped and released
        assert kept[0]() is None
    finally:
        gc.enable()
