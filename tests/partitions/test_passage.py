"""Sockets that are handed in to a driver, and captures that begin so: whoever dies or talks nonsense meanwhile."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from partitions.drivers.passage import HandsIn, PassageBlocked, PassageEntry, PassageExit, TakesSockets
from partitions.net.capture_desk import CaptureDesk
from partitions.net.device import NetDevice
from partitions.net.switch import CAPTURES_MAX
from runtime import codec
from runtime.abi import HvStatus, HypercallCode, HypercallError
from runtime.hypercalls.caller import HypercallPort

PATIENCE_S = 30.0
DRIVER = 7


@dataclass
class Bell:
    fd: int


class Port:
    """What the hypervisor does of one connection and its port: see runtime.hypervisor.endpoints."""

    def __init__(self) -> None:
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._waiting: int | None = None
        self._lock = threading.Lock()

    @property
    def call(self) -> HypercallPort:
        return cast(HypercallPort, self)

    def claim_port_doorbell(self, port: int) -> Bell:
        return Bell(os.dup(self._bell))

    def claim_connection_endpoint(self, connection: int) -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with self._lock:
            self._drop()
            self._waiting = theirs.detach()
        os.eventfd_write(self._bell, 1)
        return ours.detach()

    def claim_port_endpoint(self, port: int) -> int:
        with self._lock:
            if (waiting := self._waiting) is None:
                raise HypercallError(HypercallCode.CLAIM_ENDPOINT, HvStatus.NO_DATA)
            self._waiting = None
            return waiting

    def _drop(self) -> None:
        if self._waiting is not None:
            os.close(self._waiting)
            self._waiting = None

    def close(self) -> None:
        self._drop()
        os.close(self._bell)


@pytest.fixture
def port() -> Iterator[Port]:
    made = Port()
    yield made
    made.close()


class Taken:
    """What a device is handed."""

    def __init__(self) -> None:
        self._found = threading.Condition()
        self.words: list[dict[str, Any]] = []

    def take(self, words: Any, sock: socket.socket) -> None:
        with sock, self._found:
            sock.send(b"taken")
            self.words.append(words)
            self._found.notify_all()


def hand_in(entry: PassageEntry, number: int) -> bytes:
    """What the other end of the socket gets to hear; b"": nobody took it."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            entry.hand_in({"number": number}, theirs.fileno())
        ours.settimeout(PATIENCE_S)
        return ours.recv(100)


def test_sockets_arrive_with_their_words_whichever_process_is_at_either_end(port: Port) -> None:
    """A driver that is not there yet, another driver, another root."""
    taken = Taken()
    first_root, second_root = PassageEntry(port.call, DRIVER), PassageEntry(port.call, DRIVER)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            first_root.hand_in({"number": 0}, theirs.fileno())  # it waits
        driver = PassageExit(port.call, taken.take)
        ours.settimeout(PATIENCE_S)
        assert ours.recv(100) == b"taken"
    assert hand_in(first_root, 1) == b"taken"
    driver.close()
    driver = PassageExit(port.call, taken.take)
    assert hand_in(first_root, 2) == b"taken"
    first_root.close()
    assert hand_in(second_root, 3) == b"taken"
    driver.close()
    second_root.close()
    assert taken.words == [{"number": number} for number in range(4)]


def test_nonsense_ends_that_way_in_and_no_other(port: Port) -> None:
    """What came with it is closed."""
    taken = Taken()
    driver = PassageExit(port.call, taken.take)
    for packet, descriptors in ((b"\xc1", 0), (codec.encode({}), 0), (codec.encode([]), 1), (b"\xc1", 1)):
        ours, theirs = socket.socketpair()
        with socket.socket(fileno=port.claim_connection_endpoint(1)) as raw, ours:
            with theirs:
                codec.send_packet(raw, packet, [theirs.fileno()] * descriptors)
            raw.settimeout(PATIENCE_S)
            ours.settimeout(PATIENCE_S)
            assert raw.recv(1) == b""
            assert ours.recv(1) == b""
    entry = PassageEntry(port.call, DRIVER)
    assert hand_in(entry, 5) == b"taken"
    driver.close()
    entry.close()


def test_a_driver_that_takes_nothing_blocks_nobody(port: Port) -> None:
    entry = PassageEntry(port.call, DRIVER)

    def hand_in_for_ever(fd: int) -> None:
        while True:
            entry.hand_in({}, fd)

    with socket.socket() as sock, pytest.raises(PassageBlocked):
        hand_in_for_ever(sock.fileno())
    entry.close()


# -- what a network does with one ---------------------------------------------------------------------------------


class Elsewhere:
    """A network whose switch is in another process; that is here, too."""

    def __init__(self, network: NetDevice) -> None:
        self.interface = network.interface
        self._network = network

    def hand_in(self, words: Any, fd: int) -> None:
        self._network.take_socket(words, socket.socket(fileno=os.dup(fd)))


@contextlib.contextmanager
def networks() -> Iterator[tuple[NetDevice, CaptureDesk]]:
    """One here, and one elsewhere; `left` has both, `right` has none and does not run."""
    here, there = NetDevice("here", 1500), NetDevice("there", 1500)
    assert isinstance(here, TakesSockets)
    elsewhere = Elsewhere(there)
    assert isinstance(elsewhere, HandsIn)
    attached = {"left": ("here", "there"), "right": ()}
    yield here, CaptureDesk({"here": here, "there": elsewhere}, attached, {"left": 3}.__getitem__)
    here.close()
    there.close()


def ask(desk: CaptureDesk, **words: Any) -> tuple[socket.socket, dict[str, Any]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE_S)
    desk.take({"snap_bytes": 100, **words}, theirs)
    answer: dict[str, Any] = json.loads(ours.recv(4096))
    return ours, answer


@pytest.mark.parametrize("network", ["here", "there"])
def test_a_capture_is_answered_by_whoever_has_the_switch(network: str) -> None:
    wishes: list[tuple[dict[str, Any], str | None]] = [
        ({"name": network}, None),
        ({"name": network, "port": "left"}, None),
        ({"name": "left", "port": network}, None),
        ({"name": network, "port": "outside"}, "NOT_FOUND"),
        ({"name": network, "port": "right"}, "NOT_FOUND"),
        ({"name": "left"}, "REFUSED"),
        ({"name": "right"}, "REFUSED"),
        ({"name": "nowhere"}, "NOT_FOUND"),
        ({"name": network, "snap_bytes": 0}, "BAD_REQUEST"),
        ({"name": 5}, "BAD_REQUEST"),
    ]
    with networks() as (_, desk):
        for words, status in wishes:
            sock, answer = ask(desk, **words)
            with sock:
                assert (answer["ok"], answer.get("status")) == (status is None, status)
                assert status is not None or answer["network"] == network


def test_captures_end_with_the_network_and_there_are_not_more_than_so_many() -> None:
    with contextlib.ExitStack() as held, networks() as (_, desk):
        for _ in range(CAPTURES_MAX):
            sock, answer = ask(desk, name="here")
            held.enter_context(sock)
            assert answer["ok"]
        more, answer = ask(desk, name="here")
        more.close()
        assert answer["status"] == "BUSY"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == bytes(8)  # nothing was dropped; and then it is over
        assert sock.recv(100) == b""
        last, answer = ask(desk, name="here")
        held.enter_context(last)
        assert answer["ok"]
        desk._devices["here"].close()  # type: ignore[attr-defined]
        assert last.recv(100) == bytes(8)
        assert last.recv(100) == b""


def test_no_descriptor_is_left_of_what_was_handed_in(port: Port) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    taken = Taken()
    driver, entry = PassageExit(port.call, taken.take), PassageEntry(port.call, DRIVER)
    for number in range(20):
        assert hand_in(entry, number) == b"taken"
    driver.close()
    entry.close()
    assert count() <= before  # of tests before this one something may just have gone
