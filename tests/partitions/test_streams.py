"""Stream sockets: the relay at the two ends of real rings, liars on both sides, and what a stream is on the wire."""

import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.byte_pipe import decode_piece
from bus.channel_messages import OfferFlags
from bus.guids import vsock_service
from bus.memory import PAGE_BYTES
from bus.native import Channel, RingCorrupt, RingError
from bus.packets import MAX_PIPE_BYTES, PacketError, PipeType, encode_pipe
from partitions.streams.guest import Stream, StreamReset, StreamTimeout
from partitions.streams.relay import StreamEnd, StreamRelay, pair
from partitions.streams.wire import END, name_of, offer_of, parse_service
from tests.partitions.storage_pair import JOIN_S, guest_end, host_end

WAIT_S = 30.0


@dataclass
class OpenedChannel:
    """What a Stream needs of a GuestChannel."""

    channel: Channel

    def close(self) -> None:
        self.channel.close()


@dataclass
class Joined:
    """A guest's stream, a relay in a thread, and the socket's other end."""

    guest: Channel
    stream: Stream
    end: StreamEnd
    other: socket.socket
    over: threading.Event = field(default_factory=threading.Event)
    failures: list[BaseException] = field(default_factory=list)


@contextmanager
def joined(ring_pages: int = 4, end: StreamEnd | None = None) -> Iterator[Joined]:
    ring_bytes = ring_pages * PAGE_BYTES
    memory = mmap.mmap(-1, 2 * (PAGE_BYTES + ring_bytes))
    bells = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    guest = guest_end(memory, ring_bytes, *bells)
    host = host_end(memory, ring_bytes, *bells, "block")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    theirs.settimeout(WAIT_S)
    if end is not None:
        ours.close()
    stream = Stream(OpenedChannel(guest), ring_bytes)  # type: ignore[arg-type]
    found = Joined(guest, stream, end or StreamEnd(ours), theirs)
    stop, relay = threading.Event(), StreamRelay(host, found.end, found.over.set)

    def serve() -> None:
        try:
            relay.serve(stop)
        except RingError as error:
            found.failures.append(error)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        host.close()
        thread.join(JOIN_S)
        assert not thread.is_alive()
        guest.close()
        theirs.close()
        for bell in bells:
            os.close(bell)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65_536):
        data += piece
    return data


@pytest.mark.parametrize("ring_pages", [3, 5, 16])
def test_bytes_go_both_ways_in_order_and_each_direction_ends_by_itself(ring_pages: int) -> None:
    there, back = os.urandom(300_000), os.urandom(200_000)
    with joined(ring_pages) as one:

        def say() -> None:
            one.other.sendall(back)
            one.other.shutdown(socket.SHUT_WR)

        def send() -> None:
            one.stream.send_all(there, WAIT_S)
            one.stream.send_eof()

        said = threading.Thread(target=say)
        heard: list[bytes] = []
        reader = threading.Thread(target=lambda: heard.append(read_all(one.other)))
        said.start()
        reader.start()
        got = b""
        sender = threading.Thread(target=send)
        sender.start()
        while data := one.stream.receive_some(5000, WAIT_S):
            got += data
        for thread in (sender, said, reader):
            thread.join(WAIT_S)
        assert got == back
        assert heard == [there]
        assert one.failures == []


def test_an_end_of_one_direction_leaves_the_other_open() -> None:
    with joined() as one:
        one.stream.send_eof()
        assert one.other.recv(10) == b""
        one.other.sendall(b"still here")
        assert one.stream.receive_some(100, WAIT_S) == b"still here"
        with pytest.raises(StreamTimeout):
            one.stream.receive_some(100, 0.01)


def test_close_hands_over_what_was_sent() -> None:
    with joined() as one:
        one.stream.send_all(b"x" * 10_000, WAIT_S)
        one.stream.close()
        assert read_all(one.other) == b"x" * 10_000


def test_who_does_not_read_makes_the_guest_wait_and_loses_nothing() -> None:
    sent = os.urandom(8 << 20)
    with joined() as one:
        one.end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least: it takes parts
        with pytest.raises(StreamTimeout):
            one.stream.send_all(sent, 0.3)  # more than ring and sockets take
        total = one.stream.bytes_sent
        first = one.other.recv(1)
        reader: list[bytes] = []
        thread = threading.Thread(target=lambda: reader.append(read_all(one.other)))
        thread.start()
        one.stream.send_eof(WAIT_S)
        thread.join(WAIT_S)
        assert first + reader[0] == sent[:total]


def test_a_guest_that_does_not_read_makes_the_other_side_wait_and_still_sends() -> None:
    said = os.urandom(2 << 20)
    with joined(ring_pages=16) as one:
        sender = threading.Thread(target=lambda: one.other.sendall(said))
        sender.start()
        for number in range(20):  # its ring is full soon
            one.stream.send_all(b"%6d" % number, WAIT_S)
            assert one.other.recv(6, socket.MSG_WAITALL) == b"%6d" % number
        got = b""
        while len(got) < len(said):
            got += one.stream.receive_some(100_000, WAIT_S)
        sender.join(WAIT_S)
        assert got == said


def test_a_side_that_goes_away_in_the_middle_is_a_reset_for_the_other_guest_and_an_end_if_it_had_finished() -> (
    None
):
    for finishes in (False, True):
        first, second = pair()
        with joined(end=first) as one:
            if finishes:
                one.stream.close()  # returns once the relay has taken the end
        assert second.was_left is not finishes
        second.close(finished=True)


def send_behind_the_end(channel: Channel) -> None:
    channel.send(END)
    channel.send(encode_pipe(b"x"))


LIES: dict[str, Callable[[Channel], None]] = {
    "no pipe header": lambda channel: channel.send(b""),
    "more bytes than there are": lambda channel: channel.send(struct.pack("<II", 1, 100) + bytes(8)),
    "more than a packet may have": lambda channel: channel.send(struct.pack("<II", 1, MAX_PIPE_BYTES + 1)),
    "another type": lambda channel: channel.send(encode_pipe(b"x", PipeType.SET_UP_GPA_DIRECT)),
    "a completion": lambda channel: channel.send_completion(encode_pipe(b"x"), 1),
    "bytes behind the end": lambda channel: send_behind_the_end(channel),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_guest_that_says_what_no_stream_says_loses_its_channel_alone(lie: str) -> None:
    with joined() as one:
        LIES[lie](one.guest)
        assert one.over.wait(WAIT_S)
    assert [type(failure) for failure in one.failures] == [RingCorrupt]


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_any_packets_of_a_host_are_bytes_or_a_reset(payloads: list[bytes]) -> None:
    memory = mmap.mmap(-1, 4 * PAGE_BYTES)
    guest = Channel(
        memory, outgoing_offset=0, outgoing_bytes=PAGE_BYTES, incoming_offset=2 * PAGE_BYTES,
        incoming_bytes=PAGE_BYTES, signal_fd=-1, wait_fd=-1, reset=True,
    )  # fmt: skip
    host = Channel(
        memory, outgoing_offset=2 * PAGE_BYTES, outgoing_bytes=PAGE_BYTES, incoming_offset=0,
        incoming_bytes=PAGE_BYTES, signal_fd=-1, wait_fd=-1,
    )  # fmt: skip
    wanted = b""
    for payload in payloads:
        host.send(payload)
    stream = Stream(OpenedChannel(guest))  # type: ignore[arg-type]
    try:
        for payload in payloads:
            wanted += decode_piece(payload.ljust(-(-len(payload) // 8) * 8, b"\0"))
    except PacketError:
        pass
    got = b""
    try:
        while data := stream.receive_some(1000, 0):
            got += data
    except (StreamReset, StreamTimeout):
        pass
    assert wanted.startswith(got)
    guest.close()
    host.close()


@given(st.integers(0, 2**32 - 1))
def test_a_service_has_one_name(port: int) -> None:
    assert parse_service(name_of(vsock_service(port))) == vsock_service(port)
    assert name_of(UUID(int=7)) == str(UUID(int=7))


def test_an_offer_says_that_it_is_a_byte_pipe_of_hv_sock_and_who_has_to_accept() -> None:
    for accept in (False, True):
        told = offer_of(accept=accept)
        assert told["flags"] == OfferFlags(0x2011)
        assert told["user_data"][:10] == struct.pack("<IBBI", 0, accept, 0, 1)
