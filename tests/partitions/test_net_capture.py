"""Captures: the records are those that passed, in pcap's own form, and what there was no room for is counted."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.net.capture import EVERY_PORT, Capture
from partitions.net.switch import CAPTURES_MAX, TooManyCaptures
from runtime.machine.capture_client import BrokenRecords, records_of
from runtime.machine.capture_wire import PACKET_BYTES_MAX, PACKET_HEAD, RECORD_HEAD, file_head
from tests.partitions.test_net_switch import BROADCAST, OWN, make


@contextmanager
def captured(
    snap_bytes: int = 65_535, port: bytes | None = EVERY_PORT
) -> Iterator[tuple[Capture, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.setblocking(False)
        yield Capture(ours, snap_bytes, port), theirs


def take(sock: socket.socket) -> tuple[list[tuple[int, bytes]], int]:
    """(length of the frame, what was kept of it) of each record that is there; what the last packet says is lost."""
    found: list[tuple[int, bytes]] = []
    dropped = 0
    while True:
        try:
            packet = sock.recv(PACKET_BYTES_MAX)
        except BlockingIOError:
            return found, dropped
        (dropped,) = PACKET_HEAD.unpack_from(packet)
        for end, kept in records_of(packet):
            (whole,) = struct.unpack_from("<I", packet, end - kept - 4)
            found.append((whole, packet[end - kept : end]))


frames_st = st.lists(st.binary(min_size=14, max_size=400), min_size=1, max_size=60)


@given(frames_st, st.integers(1, 500))
def test_each_frame_is_there_once_in_its_order_up_to_the_snap_length(frames: list[bytes], snap: int) -> None:
    with captured(snap) as (capture, sock):
        capture.saw([memoryview(frame) for frame in frames])
        assert take(sock) == ([(len(frame), frame[:snap]) for frame in frames], 0)
        assert (capture.frames, capture.dropped) == (len(frames), 0)


def test_a_file_head_is_that_of_pcap_with_nanoseconds() -> None:
    assert struct.unpack("<IHHiIII", file_head(96)) == (0xA1B23C4D, 2, 4, 0, 0, 96, 1)


def test_what_the_socket_has_no_room_for_is_counted_and_nobody_waits() -> None:
    with captured() as (capture, sock):
        total = 0
        while not capture.dropped:
            capture.saw([memoryview(bytes(60_000))])
            total += 1
        found, said = take(sock)
        assert len(found) + capture.dropped == total == capture.frames + capture.dropped
        assert said < capture.dropped  # the packets that fitted could not know; the last word does
        assert PACKET_HEAD.unpack(capture.farewell()) == (capture.dropped,)


def test_who_has_gone_away_is_noticed() -> None:
    with captured() as (capture, sock):
        sock.close()
        capture.saw([memoryview(bytes(60))])
        assert capture.ended


def test_a_port_is_watched_in_both_directions_and_a_network_once_for_each_frame() -> None:
    switch, _ = make()
    ports = switch.ports
    with (
        captured() as (every, all_sock),
        captured(port=OWN[1]) as (one, one_sock),
        captured(port=None) as (out, out_sock),
    ):
        for capture in (every, one, out):
            switch.watch(capture)
        first = OWN[1] + OWN[0] + b"\x88\xb5first"
        second = OWN[2] + OWN[1] + b"\x88\xb5second"
        third = BROADCAST + OWN[0] + b"\x88\xb5third"
        other = OWN[2] + OWN[0] + b"\x88\xb5other"
        for index, frame in ((0, first), (1, second), (0, third), (0, other)):
            switch.forward(ports[index], [memoryview(frame)])
        assert [frame for _, frame in take(all_sock)[0]] == [first, second, third, other]
        assert [frame for _, frame in take(one_sock)[0]] == [first, second, third]
        assert take(out_sock)[0] == []
        for capture in (every, one, out):
            switch.unwatch(capture)
        switch.forward(ports[0], [memoryview(first)])
        assert take(all_sock)[0] == take(one_sock)[0] == []


def test_captures_of_a_switch_are_bounded() -> None:
    switch, _ = make()
    with captured() as (capture, _):
        for _ in range(CAPTURES_MAX):
            switch.watch(capture)
        with pytest.raises(TooManyCaptures):
            switch.watch(capture)


@given(
    st.binary(max_size=120),
    st.lists(st.tuples(*[st.integers(0, 2**32 - 1) | st.integers(0, 50)] * 4), max_size=4),
)
def test_any_packet_is_records_inside_it_or_a_typed_error(
    rest: bytes, heads: list[tuple[int, int, int, int]]
) -> None:
    packet = bytes(8) + b"".join(RECORD_HEAD.pack(*head) + rest[:20] for head in heads) + rest
    at = 8
    try:
        for end, kept in records_of(packet):
            assert at + RECORD_HEAD.size + kept == end <= len(packet)
            at = end
    except BrokenRecords:
        return
    assert at == len(packet)
