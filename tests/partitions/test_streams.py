"""Stream sockets: the relay at the two ends of real rings, who is connected with whom, liars on both sides."""

import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from bus.channel_actions import ConnectStream
from bus.channel_messages import OfferFlags
from bus.guids import vsock_service
from bus.memory import PAGE_BYTES
from bus.native import Channel, RingCorrupt, RingError
from bus.packets import MAX_PIPE_BYTES, PacketError, PipeType, encode_pipe
from partitions.machine_plan import AttachmentPlan
from partitions.storage.device import OfferedDevice
from partitions.streams import desk as desk_module
from partitions.streams.desk import CONNECTING_MAX, STREAMS_MAX, StreamDesk, end_remains
from partitions.streams.device import StreamDevice, remains
from partitions.streams.guest import Stream, StreamReset, StreamTimeout
from partitions.streams.relay import NoStream, StreamEnd, StreamRelay, pair
from partitions.streams.wire import END, decode_piece, name_of, offer_of, parse_service, silo_of
from runtime.abi import Route
from tests.partitions.storage_pair import JOIN_S, host_end

WAIT_S = 10.0


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
    guest = Channel(
        memory,
        outgoing_offset=0,
        outgoing_bytes=ring_bytes,
        incoming_offset=PAGE_BYTES + ring_bytes,
        incoming_bytes=ring_bytes,
        signal_fd=bells[0],
        wait_fd=bells[1],
        reset=True,
    )
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
    with joined() as one:
        with pytest.raises(StreamTimeout):
            one.stream.send_all(bytes(8 << 20), 0.3)  # more than ring and sockets take
        total = one.stream.bytes_sent
        assert one.other.recv(1)
        reader: list[bytes] = []
        thread = threading.Thread(target=lambda: reader.append(read_all(one.other)))
        thread.start()
        one.stream.send_eof(WAIT_S)
        thread.join(WAIT_S)
        assert len(reader[0]) + 1 == total


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


# -- the desk


@dataclass
class Bus:
    """A guest as the desk sees it; opens what `opens` says."""

    name: str
    opens: Callable[[StreamDevice], bool] = lambda device: True
    offered: dict[str, tuple[UUID, StreamDevice]] = field(default_factory=dict)
    refused: list[ConnectStream] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    relays: list[StreamRelay | NoStream] = field(default_factory=list)  # that nobody runs

    def offer(self, instance: UUID, device: OfferedDevice, plan: AttachmentPlan) -> None:
        assert isinstance(device, StreamDevice)
        self.offered[device.name] = instance, device
        if self.opens(device):
            self.relays.append(device.open_for(None, None, None, None, None))  # type: ignore[arg-type]

    def remove(self, device: str) -> None:
        self.removed.append(device)

    def refuse_stream(self, request: ConnectStream) -> None:
        self.refused.append(request)


def run_desk(main: Callable[[StreamDesk, Bus, Bus], Any], dials: bool = True) -> None:
    """`main` with a desk and two guests, on a clock that jumps."""
    sockets: list[socket.socket] = []

    async def dial(guest: str, service: str) -> socket.socket | None:
        if not dials:
            return None
        ours, theirs = socket.socketpair()
        sockets.append(theirs)
        return ours

    async def body() -> None:
        first, second = Bus("first"), Bus("second")
        async with trio.open_nursery() as nursery:
            desk = StreamDesk(
                nursery, lambda: [first, second], dial, lambda kind, **more: None, Route.DIRECT,
                {"first": True, "second": True},
            )  # fmt: skip
            await main(desk, first, second)
            nursery.cancel_scope.cancel()
        for bus in (first, second):
            for _, device in bus.offered.values():
                device.close()
            for relay in bus.relays:
                assert isinstance(relay, StreamRelay)
                relay._end.close(finished=True)
        for sock in sockets:
            sock.close()

    trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0.02))


def request(silo: str | None = None, port: int = 5000) -> ConnectStream:
    return ConnectStream(uuid4(), vsock_service(port), None if silo is None else silo_of(silo))


def test_a_guest_is_connected_with_the_host_and_with_another_guest_that_opens() -> None:
    async def main(desk: StreamDesk, first: Bus, second: Bus) -> None:
        to_host, to_second = request(), request("second")
        desk.asked(first, to_host)
        await trio.sleep(1)
        ((instance, device),) = first.offered.values()
        assert (instance, device.interface, device.accept) == (to_host.endpoint, to_host.service, False)
        desk.asked(first, to_second)
        await trio.sleep(1)
        ((_, listened),) = second.offered.values()
        assert (listened.interface, listened.accept) == (to_second.service, True)
        assert [one for one, _ in first.offered.values()] == [to_host.endpoint, to_second.endpoint]
        assert first.refused == second.refused == []

    run_desk(main)


@pytest.mark.parametrize("why", ["nobody on the host", "no such guest", "it does not open"])
def test_a_connection_that_nobody_takes_is_refused_and_leaves_nothing(why: str) -> None:
    async def main(desk: StreamDesk, first: Bus, second: Bus) -> None:
        second.opens = lambda device: False
        asked = {"nobody on the host": request(), "no such guest": request("third")}.get(
            why, request("second")
        )
        desk.asked(first, asked)
        await trio.sleep(desk_module.ACCEPT_S_MAX + 1)
        assert first.refused == [asked]
        assert not first.offered
        assert list(second.offered) == second.removed

    run_desk(main, dials=False)


def test_connections_of_a_guest_are_bounded_and_another_guest_does_not_notice() -> None:
    async def main(desk: StreamDesk, first: Bus, second: Bus) -> None:
        for _ in range(STREAMS_MAX + 5):
            desk.asked(first, request())
            await trio.testing.wait_all_tasks_blocked(0.001)
        assert len(first.offered) == STREAMS_MAX
        assert len(first.refused) == 5
        for _ in range(CONNECTING_MAX + 3):  # at once
            desk.asked(second, request())
        assert len(second.refused) == 3

    run_desk(main)


def test_what_the_guest_asked_for_and_does_not_open_is_taken_away() -> None:
    async def main(desk: StreamDesk, first: Bus, second: Bus) -> None:
        first.opens = lambda device: False
        desk.asked(first, request())
        await trio.sleep(desk_module.OPEN_S_MAX + 1)
        assert first.removed == list(first.offered)

    run_desk(main)


@given(st.binary(max_size=90))
def test_whatever_a_program_of_the_host_says_it_is_connected_or_its_socket_is_closed(words: bytes) -> None:
    async def main(desk: StreamDesk, first: Bus, second: Bus) -> None:
        ours, theirs = socket.socketpair()
        theirs.sendall(words)
        theirs.shutdown(socket.SHUT_WR)
        with trio.fail_after(60):
            await desk.serve_host("first", ours)
        if not first.offered:
            assert ours.fileno() < 0
        theirs.close()

    run_desk(main)


def test_a_program_of_the_host_reaches_a_guest_by_port_or_guid() -> None:
    async def main(desk: StreamDesk, first: Bus, second: Bus) -> None:
        for words, service in (
            (b"CONNECT 5000\n", vsock_service(5000)),
            (b"CONNECT %s\n" % str(UUID(int=7)).encode(), UUID(int=7)),
        ):
            ours, theirs = socket.socketpair()
            theirs.sendall(words + b"not the desk's")
            await desk.serve_host("first", ours)
            device = list(first.offered.values())[-1][1]
            assert (device.interface, device.accept) == (service, True)
            theirs.close()

    run_desk(main)


def test_a_predecessors_streams_are_known_by_their_names_and_taken_away() -> None:
    guests = [
        {
            "offers": [[1, "disk0", b"", []], [2, "stream:7", b"", []]],
            "withheld": [["stream:9", b"", [], "", 1]],
        }
    ]
    found = remains(guests)
    assert set(found) == {"stream:7", "stream:9"}
    bus = Bus("first")
    end_remains([bus], found)
    assert set(bus.removed) == set(found)


@given(st.integers(0, 2**32 - 1))
def test_a_service_has_one_name(port: int) -> None:
    assert parse_service(name_of(vsock_service(port))) == vsock_service(port)
    assert name_of(UUID(int=7)) == str(UUID(int=7))


def test_an_offer_says_that_it_is_a_byte_pipe_of_hv_sock_and_who_has_to_accept() -> None:
    for accept in (False, True):
        told = offer_of(accept=accept)
        assert told["flags"] == OfferFlags(0x2011)
        assert told["user_data"][:10] == struct.pack("<IBBI", 0, accept, 0, 1)
