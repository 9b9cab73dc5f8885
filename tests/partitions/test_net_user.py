"""Frames to and from a network in user space: any cut of the bytes, and an end that may come at any time."""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.net.first_contact import ASK_AGAIN_S, HELD_FRAMES_MAX, FirstContact
from partitions.net.user import UNSENT_BYTES_MAX, BrokenFraming, FrameReader, UserDriver
from partitions.sdk.context import DriverContext
from partitions.storage.backends import BackendError
from runtime.config.forwards import Forward


@contextmanager
def driver() -> Iterator[tuple[UserDriver, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    one = UserDriver(DriverContext("net0", "net", {}, None, 512, False, ours.detach(), None), 1500)
    with theirs:
        yield one, theirs
        one.close()


def framed(frame: bytes) -> bytes:
    return struct.pack(">I", len(frame)) + frame


frames_st = st.lists(st.binary(min_size=14, max_size=100), max_size=12)


@given(frames_st, st.lists(st.integers(1, 60)), st.integers(1, 5))
def test_frames_come_out_whole_wherever_the_bytes_are_cut(
    frames: list[bytes], cuts: list[int], limit: int
) -> None:
    data, reader, found = b"".join(map(framed, frames)), FrameReader(), list[bytes]()
    for cut in [*cuts, len(data)]:
        reader.feed(data[:cut])
        data = data[cut:]
        while taken := reader.take(limit):
            assert len(taken) <= limit
            found += taken
    assert found == frames


@given(st.integers(0, 2**32 - 1).filter(lambda length: not 14 <= length <= 65_535), st.binary())
def test_a_length_that_no_frame_has_is_the_end(length: int, rest: bytes) -> None:
    reader = FrameReader()
    reader.feed(framed(bytes(60)) + struct.pack(">I", length) + rest)
    assert reader.take(1) == [bytes(60)]
    with pytest.raises(BrokenFraming):
        reader.take(1)


@given(frames_st.filter(bool), st.integers(1, 15), st.binary())
def test_whole_frames_in_front_of_nonsense_come_out_and_then_it_is_the_end(
    frames: list[bytes], limit: int, rest: bytes
) -> None:
    reader, found = FrameReader(), list[bytes]()
    reader.feed(b"".join(map(framed, frames)) + bytes(4) + rest)
    while len(found) < len(frames):
        found += reader.take(limit)
    assert found == frames
    for _ in range(2):
        with pytest.raises(BrokenFraming):
            reader.take(limit)


def test_frames_go_both_ways_and_what_is_not_taken_is_dropped_at_a_bound() -> None:
    with driver() as (one, other):
        other.setblocking(False)
        assert one.transmit([memoryview(b"a" * 60), memoryview(b"b" * 70)]) == 2
        assert other.recv(1000) == framed(b"a" * 60) + framed(b"b" * 70)
        other.send(framed(b"c" * 80) + framed(b"d" * 90))
        assert one.receive(1) + one.receive(5) == [b"c" * 80, b"d" * 90]
        assert one.receive(5) == []
        taken = sum(one.transmit([memoryview(bytes(60_000))]) for _ in range(64))
        room = os.sysconf("SC_PAGE_SIZE") * 256  # more than any socket has by itself
        assert 0 < taken < 64
        assert taken * 60_000 <= UNSENT_BYTES_MAX + 60_000 + room
        got = b""
        reader = FrameReader()
        while True:
            try:
                got = other.recv(1 << 20)
            except BlockingIOError:
                one.receive(1)  # who takes frames in also hands over what waits
                try:
                    got = other.recv(1 << 20)
                except BlockingIOError:
                    break
            reader.feed(got)
        assert len(reader.take(100)) == taken


def test_the_link_is_down_once_the_other_end_is_gone_or_talks_nonsense() -> None:
    with driver() as (one, other):
        other.close()
        assert one.receive(5) == []
        assert one.link_up is False
        with pytest.raises(BackendError):
            one.transmit([memoryview(bytes(60))])
    with driver() as (one, other):
        other.send(framed(b"e" * 60) + bytes(4))
        assert one.receive(5) == [b"e" * 60]
        with pytest.raises(BackendError):
            one.receive(5)
        assert not one.link_up


ZERO, EVERYBODY, PASST, GUEST = bytes(6), b"\xff" * 6, b"\x02\xfc\0\0\0\1", b"\0\x15\x5d\0\0\2"
OUTER, INNER = bytes((10, 0, 2, 2)), bytes((10, 0, 2, 15))


def ip_frame(target: bytes, number: int, address: bytes = INNER) -> bytes:
    return target + PASST + b"\x08\0" + bytes(12) + OUTER + address + bytes([number]) * 20


@given(
    st.lists(st.sampled_from([ZERO, EVERYBODY]), min_size=1, max_size=HELD_FRAMES_MAX),
    st.integers(0, 20),
)
def test_who_has_not_spoken_is_asked_for_its_address_and_then_has_each_frame_once_in_its_order(
    targets: list[bytes], cut: int
) -> None:
    now_s = 1.0
    contact = FirstContact(lambda: now_s)
    frames = [ip_frame(target, number) for number, target in enumerate(targets)]
    asked = contact.pass_on(frames[:1]) + contact.pass_on(frames[1 : 1 + cut])
    question = b"\x08\x06\0\1\x08\0\6\4\0\1" + PASST + OUTER + ZERO + INNER
    assert asked == [EVERYBODY + PASST + question]  # once
    now_s += ASK_AGAIN_S
    assert contact.pass_on([]) == asked  # and again, by the clock
    contact.guest_said([memoryview(PASST + GUEST + b"\x08\x06" + bytes(28))])
    assert contact.pass_on(frames[1 + cut :]) == [GUEST + frame[6:] for frame in frames]
    now_s += ASK_AGAIN_S
    assert contact.pass_on([]) == []


@pytest.mark.parametrize(
    "frame",
    [
        ip_frame(GUEST, 1),
        ip_frame(EVERYBODY, 1, b"\xff" * 4),
        ip_frame(EVERYBODY, 1, bytes((224, 0, 0, 1))),
        EVERYBODY + PASST + b"\x08\x06" + bytes(28),
        ZERO + PASST,
    ],
)
def test_what_is_for_somebody_or_everybody_goes_as_it_is(frame: bytes) -> None:
    assert FirstContact().pass_on([frame]) == [frame]


def test_frames_that_nobody_asks_for_are_bounded() -> None:
    contact = FirstContact()
    contact.pass_on([ip_frame(ZERO, number % 256) for number in range(3 * HELD_FRAMES_MAX)])
    contact.guest_said([memoryview(PASST + GUEST + bytes(2))])
    assert len(contact.pass_on([])) == HELD_FRAMES_MAX


@given(st.text(max_size=40))
def test_any_words_are_a_forward_or_a_value_error(text: str) -> None:
    try:
        forward = Forward.parse(text)
    except ValueError:
        return
    assert forward.protocol in ("tcp", "udp")


def test_a_forward_says_who_reaches_what() -> None:
    assert Forward.parse("tcp:127.0.0.1:8080:80") == Forward("tcp", "127.0.0.1", 8080, 80)
    for wrong in (
        "sctp:127.0.0.1:1:1",
        "tcp:127.0.0.1:0:1",
        "tcp:127.0.0.1:1:65536",
        "tcp:localhost:1:1",
        "80",
    ):
        with pytest.raises(ValueError, match=r"."):
            Forward.parse(wrong)


def test_another_socket_that_comes_is_used_from_there_on_and_half_a_frame_forgotten() -> None:
    """Under the same number: it is what the uplink waits for."""
    with driver() as (one, other):
        number = one.descriptor
        other.sendall(framed(bytes(60))[:30])
        assert one.receive(8) == []
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            socket.send_fds(other, [b"\0"], [ours.fileno()])
            ours.close()
            assert one.receive(8) == []
            assert other.recv(1) == b""
            theirs.sendall(framed(b"x" * 60))
            assert one.receive(8) == [b"x" * 60]
            assert one.transmit([memoryview(b"y" * 60)]) == 1
            assert theirs.recv(100) == framed(b"y" * 60)
            assert (one.descriptor, one.link_up) == (number, True)
