"""A network without rings, at both ends of real sockets: two clients and a wire at one switch, deaths, liars."""

import contextlib
import random
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.seam import Seam
from partitions.calls.serving import Caller
from partitions.net import message_wire as wire
from partitions.net.device import NetDevice
from partitions.net.errors import NetClosedError
from partitions.net.message_nic import MessageNic
from partitions.net.message_port import MessagePort
from partitions.net.passed_on import PassedOnNet, Wire
from partitions.net.rndis import PacketFilter
from partitions.net.server_session import Adapter
from partitions.sdk.context import DriverContext
from partitions.sdk.net import NetDriver
from tests.partitions.called import Died, Endpoint
from tests.patience import WAIT_S, until

MTU = 1500
EVERYTHING = int(PacketFilter.PROMISCUOUS)


class Mirror(NetDriver):
    """Sends back what it gets, in its own name; and may be the death of who transmits."""

    mtu = MTU
    up = True
    dies = False

    def __init__(self) -> None:
        super().__init__(DriverContext("net", "net", {}, None, 512, False, None, None))
        self.frames: list[bytes] = []
        self.sent: list[int] = []  # numbers of frames, by all its servers

    def transmit(self, frames: Sequence[memoryview]) -> int:
        self.sent += [int.from_bytes(frame[14:18], "big") for frame in frames]
        if self.dies:
            self.dies = False
            raise Died
        self.frames += [bytes(frame[6:12]) + bytes(5) + b"\2" + bytes(frame[12:]) for frame in frames]
        return len(frames)

    def receive(self, limit: int) -> list[bytes]:
        frames, self.frames = self.frames[:limit], self.frames[limit:]
        return frames

    @property
    def link_up(self) -> bool:
        return self.up


@dataclass
class World:
    """A switch, and its clients' connections."""

    driver: Mirror | None
    device: NetDevice
    endpoints: list[Endpoint] = field(default_factory=list)

    def client(self, partition: int) -> tuple[Endpoint, Endpoint]:
        def made(*, receives: bool) -> Endpoint:
            caller, record = Caller(partition, receives), memoryview(bytearray(64))
            return Endpoint(lambda: self.device.open_calls(caller, record, Seam()))

        both = made(receives=False), made(receives=True)
        self.endpoints += both
        for endpoint in both:
            endpoint.start()
        return both

    def restart(self) -> None:
        """Another process of the server's: it has heard of nobody."""
        for endpoint in self.endpoints:
            endpoint.end()
        self.device.close()  # its thread looks at the driver, too
        self.device = NetDevice("net", MTU, self.driver)
        for endpoint in self.endpoints:
            endpoint.start()


@contextmanager
def a_world(driver: Mirror | None = None) -> Iterator[World]:
    world = World(driver, NetDevice("net", MTU, driver))
    try:
        yield world
    finally:
        for endpoint in world.endpoints:
            endpoint.close()
        world.device.close()


@contextmanager
def a_nic(endpoints: tuple[Endpoint, Endpoint], receive_bytes: int = 1 << 20) -> Iterator[MessageNic]:
    nic = MessageNic(endpoints[0].connect, endpoints[1].connect, receive_bytes)
    try:
        yield nic
    finally:
        nic.close()


def frame(destination: bytes, source: bytes, number: int, size: int = 60) -> bytes:
    return destination + source + b"\x88\xb5" + number.to_bytes(4, "big") + bytes(size - 18)


def drain(nic: MessageNic, count: int) -> list[bytes]:
    frames: list[bytes] = []
    while len(frames) < count and (more := nic.receive(64, WAIT_S)):
        frames += more
    return frames


def test_frames_of_any_size_go_between_two_clients_in_order_and_none_to_a_third() -> None:
    rng = random.Random(1)
    with a_world() as world:
        ends = [world.client(partition) for partition in (1, 2, 3)]
        with a_nic(ends[0]) as one, a_nic(ends[1]) as two, a_nic(ends[2]) as three:
            assert one.mac != two.mac
            assert (one.mtu, one.link_up) == (MTU, True)
            frames = [frame(two.mac, one.mac, number, rng.randrange(18, 1514)) for number in range(600)]
            assert one.send(frames, WAIT_S) == len(frames)
            one.flush(WAIT_S)
            assert drain(two, len(frames)) == frames
            assert three.receive(1, 0) == []
            one.send([frame(b"\xff" * 6, one.mac, 0)], WAIT_S)
            assert [len(drain(nic, 1)) for nic in (two, three)] == [1, 1]
            one.send([frame(two.mac, three.mac, 0)], WAIT_S)  # in another's name
            assert two.receive(1, 0.02) == []
            with pytest.raises(ValueError, match="a frame of 3 bytes"):
                one.send([frames[0], b"bad"], WAIT_S)
            assert drain(two, 1) == frames[:1]


def test_a_client_that_does_not_read_loses_what_it_has_no_room_for_and_stops_nobody() -> None:
    """As many frames wait as a receive buffer of that size has pieces; the others are dropped and counted."""
    adapter = Adapter(b"\2" * 6, MTU)
    port = MessagePort(adapter)
    port.open(wire.Open(MTU, EVERYTHING, 100 * 1792))
    views = [memoryview(frame(b"\2" * 6, b"\4" * 6, number)) for number in range(250)]
    for _ in range(4):
        port.deliver(views, patient=True)  # the first one waits, once
    assert port.dropped == 4 * 250 - 100
    taken: list[bytes] = []
    while (received := port.take()) is not None:
        taken += map(bytes, received.frames)
    assert taken == list(map(bytes, views[:100]))
    port.deliver([memoryview(bytes(MTU + 19))], patient=True)
    assert (port.take(), port.dropped) == (None, 4 * 250 - 99)
    port.close()
    port.deliver(views[:1], patient=True)
    assert (port.take(), port.is_open) == (None, False)


def test_a_reader_is_waited_for_and_loses_nothing() -> None:
    with a_world() as world, a_nic(world.client(1)) as one, a_nic(world.client(2), 64 << 10) as two:
        frames = [frame(two.mac, one.mac, number, 1500) for number in range(500)]
        sender = threading.Thread(target=one.send, args=(frames, WAIT_S))
        sender.start()
        got: list[bytes] = []

        def is_through() -> bool:
            got.extend(two.receive(64, 0.1))
            return len(got) + world.device._message_ports[2].dropped >= len(frames)

        until(is_through)
        sender.join(WAIT_S)
        assert not sender.is_alive()
        numbers = [int.from_bytes(one[14:18], "big") for one in got]
        assert numbers == sorted(set(numbers))
        assert two.receive(1, 0) == []
        assert len(got) + world.device._message_ports[2].dropped == len(frames)


def test_over_deaths_of_the_server_frames_are_lost_and_none_comes_twice() -> None:
    driver = Mirror()
    with a_world(driver) as world, a_nic(world.client(1)) as nic:
        mac, seen, number = nic.mac, list[int](), 0
        for _ in range(3):
            driver.dies = True
            for _ in range(3):
                number += 1
                nic.send([frame(b"\2" * 6, mac, number)], 0.01)  # the first is its death: nobody replies
            world.restart()
            driver.frames.clear()
            last = number
            while last not in seen:
                number += 1
                last = number
                nic.send([frame(b"\2" * 6, mac, number)], WAIT_S)
                seen += [int.from_bytes(one[14:18], "big") for one in nic.receive(64, 0.5)]
        assert nic.mac == mac
        assert len(seen) == len(set(seen)) < number
        assert len(driver.sent) == len(set(driver.sent))
        assert nic.statistics()["malformed"] == 0


def test_a_link_that_goes_down_and_up_is_told_of_and_a_server_that_is_gone_for_good_too() -> None:
    driver = Mirror()
    with a_world(driver) as world:
        ends = world.client(1)
        with a_nic(ends) as nic:
            for up in (False, True):
                driver.up = up
                until(lambda up=up: nic.receive(1, 0.01) == [] and nic.link_up == up)  # type: ignore[misc]
            assert nic.statistics()["link_changes"] == 2
            for endpoint in ends:
                endpoint.close()
            with pytest.raises(NetClosedError):
                nic.receive(1, WAIT_S)
            with pytest.raises(NetClosedError):
                nic.send([frame(nic.mac, nic.mac, 1)], WAIT_S)
        with pytest.raises(NetClosedError):
            MessageNic(ends[0].connect, ends[1].connect, 1 << 20)
        with pytest.raises(ConnectionError):
            PassedOnNet(ends[0].connect, ends[1].connect)


@dataclass(eq=False)
class GuestPort:
    """What a wire needs of the port of a monitor's guest."""

    packet_filter: int = EVERYTHING
    got: list[bytes] = field(default_factory=list)

    def deliver(self, frames: Sequence[memoryview], *, patient: bool) -> None:
        self.got += map(bytes, frames)


def test_a_monitors_wire_is_one_port_at_the_hosts_switch_as_long_as_its_guest_is_there() -> None:
    with a_world() as world:
        ends = world.client(9)
        way, port = Wire(ends[0].connect, ends[1].connect), GuestPort(int(PacketFilter.DIRECTED))
        try:
            with a_nic(world.client(1)) as nic:
                there, here = way.opened.mac, nic.mac
                assert not world.device._message_ports[9].accepts(there)
                for first in (10, 20):  # the guest may leave, and be back
                    way.join(port)  # type: ignore[arg-type]
                    sent = [frame(here, there, number, 1514) for number in range(300)]
                    way.forward(port, [memoryview(one) for one in sent])  # type: ignore[arg-type]
                    assert drain(nic, 300) == sent
                    sent_to_it = [frame(b"\xff" * 6, here, first), frame(there, here, first + 1)]
                    nic.send(sent_to_it, WAIT_S)
                    until(lambda: sent_to_it[1] in port.got)  # noqa: B023
                    port.packet_filter = EVERYTHING
                    way.join(port)  # type: ignore[arg-type]
                    nic.send([frame(b"\xff" * 6, here, first + 2)], WAIT_S)
                    until(lambda: len(port.got) >= 2)
                    assert port.got == [sent_to_it[1], frame(b"\xff" * 6, here, first + 2)]
                    world.restart()
                    way.forward(port, [memoryview(sent[0])])  # type: ignore[arg-type]  # lost: it was another's
                    port.packet_filter = int(PacketFilter.DIRECTED)
                    port.got.clear()
                    way.leave(port)  # type: ignore[arg-type]
                    until(lambda: not world.device._message_ports[9].is_open)
                    assert nic.receive(1, 0.01) in ([], sent[:1])
                    nic.send([frame(there, here, first + 3)], WAIT_S)  # the new server knows it from here on
                    nic.flush(WAIT_S)
        finally:
            way.close()


@settings(max_examples=40)
@given(st.binary(max_size=100))
def test_nonsense_is_a_typed_error_on_both_sides(data: bytes) -> None:
    for decode in (wire.decode_call, wire.decode_reply):
        with contextlib.suppress(wire.MalformedCall):
            decode(memoryview(data))


FRAMES = st.lists(st.binary(max_size=3000), max_size=wire.FRAMES_MAX // 8)


@settings(max_examples=40)
@given(FRAMES, st.booleans(), st.integers(0, 2**32 - 1), st.binary(min_size=6, max_size=6), st.randoms())
def test_what_is_said_is_what_is_heard_and_nothing_else(
    frames: list[bytes], up: bool, number: int, mac: bytes, rng: random.Random
) -> None:
    calls = wire.Open(number, number, number), wire.Transmit(frames), wire.Receive()
    replies = (
        wire.Opened(mac, up, number % MTU + 1),
        wire.Transmitted(),
        wire.Received(frames, up),
        wire.Refused(rng.choice(list(wire.Refusal))),
    )
    for decode, others, said in ((wire.decode_call, replies, calls), (wire.decode_reply, calls, replies)):
        for message in said:
            encoded = message.encode()
            assert decode(memoryview(encoded)) == message
            cut = encoded[: rng.randrange(len(encoded))]
            for bad in (cut, encoded + b"x"):
                with pytest.raises(wire.MalformedCall):
                    decode(memoryview(bad))
        for message in others:
            with pytest.raises(wire.MalformedCall):
                decode(memoryview(message.encode()))


@settings(max_examples=40)
@given(st.lists(st.integers(0, wire.FRAME_BYTES_MAX), min_size=1, max_size=300))
def test_as_many_frames_are_put_into_a_message_as_it_can_have(sizes: list[int]) -> None:
    frames = [memoryview(bytes(wire.FRAME_BYTES_MAX))[:size] for size in sizes]
    count = wire.how_many_fit(frames, 0)
    assert 1 <= count <= wire.FRAMES_MAX
    assert len(wire.Transmit(frames[:count]).encode()) <= wire.MESSAGE_BYTES_MAX
    full = count in (len(frames), wire.FRAMES_MAX)
    assert full or sum(sizes[: count + 1]) > wire.FRAME_DATA_BYTES_MAX


def test_a_client_that_lies_or_does_not_wait_loses_its_socket_and_nothing_else() -> None:
    lies = [b"", b"x", bytes(8), wire.Transmitted().encode(), bytes(wire.MESSAGE_BYTES_MAX + 1)]
    with a_world() as world:
        ends = world.client(1)
        for endpoint, other in zip(ends, (wire.Receive().encode(), wire.Transmit([]).encode()), strict=True):
            for lie in (*lies, other):
                with socket.socket(fileno=endpoint.connect()) as liar:
                    liar.settimeout(WAIT_S)
                    liar.send(lie)
                    assert liar.recv(100) == b""
        with socket.socket(fileno=ends[0].connect()) as early:  # frames before it has opened
            early.settimeout(WAIT_S)
            early.send(wire.Transmit([bytes(60)]).encode())
            assert early.recv(100) == wire.Refused(wire.Refusal.NOT_OPEN).encode()
            early.send(wire.Open(MTU, EVERYTHING, 1 << 20).encode())
            early.recv(100)
            early.send(wire.Transmit([bytes(60), bytes(13), bytes(60)]).encode())
            assert early.recv(100) == wire.Refused(wire.Refusal.INVALID_FRAME).encode()
        with a_nic(ends) as nic, a_nic(world.client(2)) as other_nic:
            nic.send([frame(other_nic.mac, nic.mac, 1)], WAIT_S)
            assert len(drain(other_nic, 1)) == 1
        assert all(endpoint.failures == [] for endpoint in world.endpoints)
