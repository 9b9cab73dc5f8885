"""A driver behind the switch: frames both ways, and what its failures cost."""

import errno
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from partitions.net.switch import LearningSwitch
from partitions.net.tap import TapDriver
from partitions.net.uplink import DriverFailed, Uplink
from partitions.sdk.context import DriverContext
from partitions.sdk.net import NetDriver
from partitions.storage.backends import BackendError
from tests.partitions.test_net_switch import BROADCAST, OTHERS, OWN, FakePort
from tests.patience import WAIT_S, until


def context(backing_fd: int | None = None) -> DriverContext:
    return DriverContext("net0", "net", {}, None, 512, False, backing_fd, None)


@dataclass
class Adapter(NetDriver):
    """Fails as it is told to."""

    sent: list[bytes] = field(default_factory=list)
    waiting: deque[bytes] = field(default_factory=deque)  # which the test's thread adds to
    fails: list[Exception] = field(default_factory=list)
    takes: Callable[[int], int] = lambda count: count
    up: bool = True

    def __post_init__(self) -> None:
        super().__init__(context())

    def transmit(self, frames: Sequence[memoryview]) -> int:
        if self.fails:
            raise self.fails.pop()
        taken = self.takes(len(frames))
        self.sent += [bytes(frame) for frame in frames[: max(taken, 0)]]
        return taken

    def receive(self, limit: int) -> list[bytes]:
        frames = [self.waiting.popleft() for _ in range(min(limit, len(self.waiting)))]
        if frames == [b"fail"]:
            raise ZeroDivisionError("as asked")
        return frames

    @property
    def link_up(self) -> bool:
        return self.up


@contextmanager
def linked(driver: NetDriver) -> Iterator[tuple[LearningSwitch, FakePort, Uplink, list[bool]]]:
    switch, guest, news = LearningSwitch(), FakePort(OWN[0]), list[bool]()
    switch.join(guest)
    uplink = Uplink(driver, switch, news.append)
    try:
        yield switch, guest, uplink, news
    finally:
        uplink.close()


def outward(number: int = 0) -> memoryview:
    return memoryview(OTHERS[0] + OWN[0] + number.to_bytes(4, "big"))


def test_what_no_guest_has_goes_out_and_what_comes_in_goes_to_its_guest() -> None:
    driver = Adapter()
    with linked(driver) as (switch, guest, _, _):
        switch.forward(guest, [outward(1), memoryview(OWN[0] + OWN[0] + b"back")])
        assert driver.sent == [bytes(outward(1))]
        driver.waiting += [OWN[0] + OTHERS[0] + bytes([number]) * 8 for number in range(200)] + [b"short"]
        until(lambda: len(guest.got) == 200)
        assert guest.got[7][-1] == 7


def test_an_error_of_the_driver_costs_the_frames_at_hand() -> None:
    driver = Adapter(fails=[BackendError(errno.EIO, "down")])
    with linked(driver) as (switch, guest, uplink, _):
        switch.forward(guest, [outward(), outward()])
        driver.takes = lambda count: 1
        switch.forward(guest, [outward(), outward()])
        assert (uplink.errors, uplink.dropped, uplink.frames_out) == (1, 3, 1)


@pytest.mark.parametrize("taken", [-1, 3])
def test_a_driver_that_took_what_was_not_there_fails_its_caller(taken: int) -> None:
    driver = Adapter(takes=lambda count: taken)
    with linked(driver) as (switch, guest, _, _), pytest.raises(DriverFailed):
        switch.forward(guest, [outward(), outward()])


def test_a_driver_that_fails_where_nobody_sees_it_fails_the_next_caller_once() -> None:
    driver = Adapter(waiting=deque([b"fail"]))
    with linked(driver) as (switch, guest, uplink, _):
        until(lambda: uplink._failure is not None)
        with pytest.raises(DriverFailed, match="as asked"):
            switch.forward(guest, [outward()])
        switch.forward(guest, [outward()])
        driver.waiting.append(OWN[0] + OTHERS[0] + b"well")
        until(lambda: bool(guest.got))


class Unguarded(NetDriver):
    """Gives back what it is given, and is good for one call at a time; a call takes as long as a switch of threads."""

    def __init__(self) -> None:
        super().__init__(context())
        self.frames: list[bytes] = []
        self.inside = self.overlaps = 0

    def _call(self) -> None:
        self.overlaps += self.inside
        self.inside += 1
        time.sleep(0.0005)
        self.inside -= 1

    def transmit(self, frames: Sequence[memoryview]) -> int:
        self._call()
        self.frames += [frame[6:12] + frame[:6] + frame[12:] for frame in map(bytes, frames)]
        return len(frames)

    def receive(self, limit: int) -> list[bytes]:
        self._call()
        frames, self.frames = self.frames[:limit], self.frames[limit:]
        return frames


def test_a_driver_that_knows_of_no_threads_is_called_by_one_at_a_time() -> None:
    driver, count = Unguarded(), 40
    with linked(driver) as (switch, guest, _, _):
        other = FakePort(OWN[1])
        switch.join(other)

        def send(port: FakePort, address: bytes) -> None:
            for number in range(count):
                switch.forward(port, [memoryview(OTHERS[0] + address + number.to_bytes(4, "big"))])

        senders = [
            threading.Thread(target=send, args=(guest, OWN[0])),
            threading.Thread(target=send, args=(other, OWN[1])),
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(WAIT_S)

        def came(port: FakePort) -> list[int]:
            """What was sent back to it; it sees what the other one sends outwards, too."""
            return [int.from_bytes(frame[12:], "big") for frame in port.got if frame[:6] == port.mac]

        until(lambda: len(came(guest)) >= count and len(came(other)) >= count)
        assert came(guest) == came(other) == list(range(count))
        assert driver.overlaps == 0


def test_the_link_is_told_when_it_changes() -> None:
    driver = Adapter()
    with linked(driver) as (_, _, _, news):
        driver.up = False
        until(lambda: news == [False])


def test_a_tap_takes_what_fits_and_says_when_it_is_gone() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    driver = TapDriver(context(ours.detach()), 1500)
    with theirs:
        frame = memoryview(BROADCAST + OWN[0] + bytes(60))
        assert driver.transmit([frame, frame]) == 2
        assert theirs.recv(2000) == bytes(frame)
        assert driver.receive(5) == []
        theirs.send(bytes(frame))
        assert driver.receive(5) == [bytes(frame)]
        taken = driver.transmit([frame] * 5000)
        assert 0 < taken < 5000  # nobody reads
    assert driver.link_up
    with pytest.raises(BackendError):
        driver.transmit([frame])
    driver.close()
