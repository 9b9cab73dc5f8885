"""Network adapters and their servers at the two ends of real rings: frames, deaths, doorbells."""

import os
import random
import select
import threading

import pytest

from bus.native import PAGE_BYTES
from bus.seam import Seam
from partitions.net import port
from partitions.net.device import NetDevice
from partitions.net.server_session import PACKETS_MAX, RESERVED_PIECES
from partitions.net.switch import LearningSwitch
from partitions.stack.channel_client import ClientDevice
from partitions.stack.channel_ports import Doorbells
from partitions.stack.served_channel import RingPlacement, ServedChannel
from runtime.abi import Route
from tests.bus.ring_pair import ring_pair
from tests.partitions.net_pair import RECORD_BYTES, drain, frame, net_pair
from tests.patience import WAIT_S, until


@pytest.mark.parametrize("scattered", [False, True], ids=["whole buffers", "scattered pages"])
@pytest.mark.parametrize("mtu", [1500, 65521])
def test_frames_of_all_sizes_arrive_as_they_were_sent_in_order(mtu: int, scattered: bool) -> None:
    switch, rng = LearningSwitch(), random.Random(mtu)
    with net_pair(switch, 1, mtu=mtu, scattered=scattered) as a, net_pair(switch, 2, mtu=mtu) as b:
        sender, receiver = a.nic(), b.nic()
        sizes = [0, 1, mtu - 4, *(rng.randrange(mtu - 4) for _ in range(60))]
        frames = [frame(receiver.mac, sender.mac, number, size) for number, size in enumerate(sizes)]
        sent, found = 0, list[bytes]()
        while sent < len(frames):  # fewer at a time than fit into what was lent
            sent += sender.send(frames[sent : sent + 8], WAIT_S)
            found += drain(receiver, sent - len(found))
        assert found == frames
        sender.flush(WAIT_S)
        assert sender.statistics()["errors"] == receiver.statistics()["malformed"] == 0
        with pytest.raises(ValueError, match="a frame of"):
            sender.send([bytes(mtu + 15)])


def test_a_broadcast_reaches_all_others_and_a_stranger_is_not_impersonated() -> None:
    switch = LearningSwitch()
    with net_pair(switch, 1) as a, net_pair(switch, 2) as b, net_pair(switch, 3) as c:
        first, second, third = a.nic(), b.nic(), c.nic(promiscuous=True)
        everyone = frame(b"\xff" * 6, first.mac, 1)
        first.send([everyone])
        assert drain(second, 1) == drain(third, 1) == [everyone]
        first.send([frame(third.mac, second.mac, 2)])  # in the second one's name
        stranger = frame(b"\2\0\0\0\0\7", first.mac, 3)  # that nobody knows: to who listens to all
        first.send([stranger, frame(second.mac, first.mac, 4)])
        assert drain(third, 1) == [stranger]
        assert drain(second, 1) == [frame(second.mac, first.mac, 4)]
        assert switch.statistics()["spoofed"] == 1


def test_who_does_not_read_loses_its_own_frames_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender waits for it once; what it sends to others arrives."""
    monkeypatch.setattr(port, "PATIENCE_S", 0.001)
    switch = LearningSwitch()
    with (
        net_pair(switch, 1) as a,
        net_pair(switch, 2, receive_bytes=1 << 20, ring_pages=1) as b,  # of which the ring is full first
        net_pair(switch, 3) as c,
    ):
        sender, deaf, reader = a.nic(), b.nic(), c.nic()
        for number in range(20):
            sender.send([frame(deaf.mac, sender.mac, number)] * 50, WAIT_S)
            sender.send([frame(reader.mac, sender.mac, number)], WAIT_S)
            assert drain(reader, 1) == [frame(reader.mac, sender.mac, number)]
        sender.flush(WAIT_S)
        assert b.vsp is not None
        dropped = b.vsp.statistics()["dropped"]
        got = drain(deaf, 1000, 0.05)
        assert len(got) + dropped == 1000
        assert 0 < len(got) < 550
        assert set(got) <= {frame(deaf.mac, sender.mac, number) for number in range(20)}
        sender.send([frame(deaf.mac, sender.mac, 99)])  # and now it reads again
        assert drain(deaf, 1) == [frame(deaf.mac, sender.mac, 99)]
        shape, theirs = b.vsp.session.receive, b.vsp.port
        assert shape is not None
        until(lambda: len(theirs._free) == shape.pieces - RESERVED_PIECES)


@pytest.mark.parametrize("seed", range(3))
def test_over_deaths_of_servers_frames_are_lost_never_repeated_or_changed(seed: int) -> None:
    rng, switch = random.Random(seed), LearningSwitch()
    with net_pair(switch, 1) as a, net_pair(switch, 2) as b:
        sender, receiver = a.nic(), b.nic()
        sent, found = list[bytes](), list[bytes]()
        for number in range(12):
            batch = [frame(receiver.mac, sender.mac, 1000 * number + index) for index in range(40)]
            sent += batch
            sender.send(batch, WAIT_S)
            found += receiver.receive(512, 0)
            for pair in rng.sample([a, b], rng.randrange(3)):
                pair.end()
                pair.start()
        last = frame(receiver.mac, sender.mac, 10**6)
        while last not in found:  # once all is in order again nothing is lost
            sender.send([last], WAIT_S)
            found += receiver.receive(512, 0.02)
        positions = [sent.index(one) for one in found if one != last]
        assert positions == sorted(set(positions))
        sender.flush(WAIT_S)
        assert sender.link_up
        assert b.vsp is not None

        def is_free() -> bool:
            receiver.receive(512, 0)  # of the last one there may be more on their way
            return b.vsp is not None and not b.vsp.port._out

        until(is_free)  # each piece is free again


class Died(Exception):
    """As after SIGKILL: nothing more of it happens."""


def test_what_a_dead_server_had_in_hand_is_completed_and_not_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It died after forwarding, before its completions: its successor finds the packets in the ring once more."""
    switch = LearningSwitch()
    with net_pair(switch, 1) as a, net_pair(switch, 2) as b:
        sender, receiver = a.nic(), b.nic()
        a.end()
        frames = [frame(receiver.mac, sender.mac, number) for number in range(30)]
        sender.send(frames)
        dying = a.attach()
        dying.replay()

        def die(*_: object) -> bool:
            raise Died

        monkeypatch.setattr(dying, "_publish", die)
        with pytest.raises(Died):
            dying.serve(threading.Event())
        a.end()
        a.start()
        sender.flush(WAIT_S)
        assert sender.statistics()["errors"] == 0
        after = frame(receiver.mac, sender.mac, 99)
        sender.send([after])
        assert drain(receiver, 31) == [*frames, after]


# -- liars


def test_a_section_full_of_small_frames_costs_one_packet() -> None:
    switch = LearningSwitch()
    with net_pair(switch, 1) as a, net_pair(switch, 2) as b:
        sender, receiver = a.nic(), b.nic()
        assert a.vsp is not None
        before = a.vsp.requests
        frames = [frame(receiver.mac, sender.mac, number, 8) for number in range(PACKETS_MAX)]
        sender.send(frames)
        assert drain(receiver, PACKETS_MAX) == frames
        assert a.vsp.requests == before + 1


def test_the_guest_hears_of_its_link() -> None:
    with net_pair(LearningSwitch(), 1) as pair:
        nic = pair.nic()
        assert nic.link_up
        assert pair.vsp is not None
        for up in (False, True):
            pair.vsp.link_changed(up=up)
            until(lambda: not nic.receive(1, 0.01) and nic.link_up == up)  # noqa: B023
        assert nic.statistics()["link_changes"] == 2


class Dying:
    """Takes all there is, publishes something, and is no more."""

    waits_for_guest = False

    def __init__(self, served: ServedChannel, seen: list[list[int]]) -> None:
        self._channel, self._seen = served.channel, seen

    def replay(self) -> None:
        self._seen.append([packet[2] for packet in self._channel.receive_batch(8, 0)])
        self._channel.send_completion(b"", 1)

    def serve(self, stop: threading.Event) -> None:
        raise AssertionError("it is never started")

    def statistics(self) -> dict[str, int]:
        return {}


@pytest.mark.parametrize(("journalled", "again"), [(False, [1, 2, 3]), (True, [])])
def test_where_no_answer_stands_for_a_request_a_successor_finds_all_that_was_not_released(
    journalled: bool, again: list[int]
) -> None:
    """So a network's packets are: what was published behind them, by whomever, says nothing of them."""
    seen: list[list[int]] = []
    with ring_pair() as pair:
        record = memoryview(bytearray(RECORD_BYTES))
        for identity in (1, 2, 3):
            pair.guest.send(bytes(8), identity, True)
        for _ in range(2):
            served = ServedChannel(
                Doorbells(1, Route.DIRECT, os.dup(pair.host_doorbell), os.dup(pair.guest_doorbell)),
                RingPlacement(memoryview(pair.memory), 1 + pair.to_host.size_bytes // PAGE_BYTES),
                "block",
                memoryview(bytearray(PAGE_BYTES)),
                record,
                Seam(),
                lambda served: Dying(served, seen),
                journalled=journalled,
            )
            assert served.replay()
            assert served.stop()
            served.release()
    assert seen == [[1, 2, 3], again]
    assert isinstance(NetDevice("net0", 1500), ClientDevice)


@pytest.mark.parametrize("sleeps", [True, False])
def test_a_doorbell_that_its_guest_made_block_stops_nobody_who_sends_to_it(sleeps: bool) -> None:
    """And one that is in order is rung where its guest sleeps, and only there."""
    seen: list[list[int]] = []
    with ring_pair() as pair:
        served = ServedChannel(
            Doorbells(1, Route.DIRECT, os.dup(pair.host_doorbell), os.dup(pair.guest_doorbell)),
            RingPlacement(memoryview(pair.memory), 1 + pair.to_host.size_bytes // PAGE_BYTES),
            "block",
            memoryview(bytearray(PAGE_BYTES)),
            memoryview(bytearray(RECORD_BYTES)),
            Seam(),
            lambda served: Dying(served, seen),
            shared=True,
        )
        if sleeps:
            assert pair.guest.arm()
        os.set_blocking(pair.guest_doorbell, True)
        os.eventfd_write(pair.guest_doorbell, 2**64 - 2)

        def send() -> None:
            served.channel.send_completion(b"", 1)
            served.ring()

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        sender.join(WAIT_S)
        assert not sender.is_alive()
        os.eventfd_read(pair.guest_doorbell)
        os.set_blocking(pair.guest_doorbell, False)
        served.ring()
        assert bool(select.select([pair.guest_doorbell], [], [], 0)[0]) == sleeps
        assert served.stop()
        served.release()
