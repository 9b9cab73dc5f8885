"""Network adapters whose other end lies: hostile guests before a real server, hostile servers before a real guest."""

import contextlib
import os
import random
import struct
import time

import pytest

from bus.native import RingCorrupt, RingFull
from bus.packets import PacketType
from partitions.net import nvsp, port, rndis
from partitions.net.errors import NetError
from partitions.net.frames import packet_header
from partitions.net.switch import LearningSwitch
from tests.partitions.net_pair import NetPair, drain, frame, net_pair
from tests.patience import WAIT_S, until


def data_message(section: int, size: int, channel: int = 0) -> bytes:
    return nvsp.SendRndisPacket(channel, section, size).encode()


@pytest.mark.parametrize("seed", range(6))
def test_a_guest_that_lies_gets_typed_answers_and_hurts_nobody(seed: int) -> None:
    """Lengths, ids, section numbers, states, buffers that it never lent; and between two lies its neighbours talk."""
    rng, switch = random.Random(seed), LearningSwitch()
    with net_pair(switch, 1) as a, net_pair(switch, 2) as b, net_pair(switch, 3) as c:
        first, second = a.nic(), b.nic()
        if seed % 2:
            c.nic()
        for number in range(60):
            _lie(rng, c)
            if number % 10 == 0:
                there = frame(second.mac, first.mac, number)
                first.send([there], WAIT_S)
                while there not in (some := drain(second, 1)):
                    assert some  # the liar's own frames may come between
        assert c.vsp is not None
        vsp = c.vsp
        until(lambda: vsp.errors > 0)
        assert not c.failures or isinstance(c.failures[0], port.GuestDoesNotRead)
        assert not a.failures
        assert not b.failures
        first.flush(WAIT_S)
        assert first.statistics()["malformed"] == second.statistics()["malformed"] == 0


def _lie(rng: random.Random, pair: NetPair) -> None:
    if pair.failures:
        return

    def number() -> int:
        return rng.choice(
            [0, 1, 2, 5, 41, 42, 6144, 0xCAFE, 0xE1E11, 0xE1E12, 2**31, 2**32 - 1, rng.getrandbits(32)]
        )

    guest, identity = pair.guest, rng.getrandbits(64)
    pair.send[:4096] = rng.randbytes(4096)
    if rng.random() < 0.7:  # a section that looks nearly right
        head = struct.pack("<11I", 1, *(rng.choice([0, 36, 44, 60, 104, 1500, 2**32 - 1]) for _ in range(10)))
        pair.send[: len(head)] = head
    try:
        match rng.randrange(8):
            case 0:
                kind = rng.choice([*nvsp.GUEST_MESSAGES, 3, 128, 99999])
                guest.send(struct.pack("<10I", kind, *(number() for _ in range(9))), identity, True)
            case 1:
                guest.send(rng.randbytes(rng.choice([0, 8, 16, 40, 400])), identity, rng.random() < 0.5)
            case 2:
                guest.send(data_message(number(), number()), identity, True)
            case 3:
                message = rng.choice(
                    [rndis.Query(1, number()), rndis.Set(2, number(), b"\x0d\0\0\0"), rndis.Halt(3)]
                )
                data = bytearray(message.encode())
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                pair.send[: len(data)] = data
                guest.send(data_message(0, len(data), 1), identity, True)
            case 4:
                guest.send_completion(
                    nvsp.RndisPacketComplete(number()).encode(), rng.choice([0, 2, 1 << 32, identity])
                )
            case 5:
                pages = b"".join(number().to_bytes(8, "little") for _ in range(2))
                guest.send_gpa_direct(data_message(nvsp.NO_SECTION, 0), 100, 4096, pages, identity)
            case 6:
                guest.send_transfer_pages(
                    data_message(0, 0), 0xCAFE, struct.pack("<II", number(), number()), identity
                )
            case 7:
                init = rng.choice([0x60001, 0x2, 0x50000, number()])
                guest.send(nvsp.Init(init, init).encode(), identity, True)
    except (ValueError, RingFull):
        pass
    guest.receive_batch(64, 0)
    guest.release()


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (
            data_message(0, 60 * 104),
            nvsp.Status.INVALID_RNDIS,
        ),  # past its section, though all of it are frames
        (data_message(42, 60), nvsp.Status.INVALID_RNDIS),  # of 42
        (data_message(0, 104, 2), nvsp.Status.INVALID_RNDIS),  # neither data nor control
        (data_message(0, 104, 1), nvsp.Status.INVALID_RNDIS),  # a control message that is none
        (nvsp.RevokeSendBuffer(1).encode(), nvsp.Status.FAILURE),
        (nvsp.NdisConfig(1014, 0).encode(), nvsp.Status.FAILURE),
        (bytes(40), nvsp.Status.FAILURE),
        (nvsp.SwitchDataPath(1).encode(), nvsp.Status.FAILURE),
        (data_message(0, 104), nvsp.Status.SUCCESS),
    ],
)
def test_each_mistake_has_its_status(message: bytes, status: nvsp.Status) -> None:
    with net_pair(LearningSwitch(), 1) as pair:
        nic = pair.nic()
        pair.send[: 60 * 104] = (packet_header(60) + frame(b"\xff" * 6, nic.mac, 0, 42)) * 60
        pair.guest.send(message, 1 << 50, True)
        while True:
            (answer,) = pair.guest.receive_batch(1, int(WAIT_S * 1e9))
            pair.guest.release()  # who sleeps behind what it has not released is not woken
            if answer[2] == 1 << 50:
                break  # before it may come what completes the adapter's last request: that was answered by a message
        assert answer[0] == PacketType.COMPLETION
        assert struct.unpack_from("<II", answer[4]) == (nvsp.Type.RNDIS_PACKET_COMPLETE, status)
        assert not pair.failures


def test_a_guest_that_breaks_its_ring_ends_its_own_channel_only() -> None:
    switch = LearningSwitch()
    with net_pair(switch, 1) as a, net_pair(switch, 2) as b, net_pair(switch, 3) as c:
        first, second = a.nic(), b.nic()
        third = c.nic()
        memory = memoryview(c.memory)
        memory[4096 + c.ring_bytes + 4 : 4096 + c.ring_bytes + 8] = (
            b"\x07\0\0\0"  # where it has read to: nowhere
        )
        memory[:4] = b"\x03\0\0\0"
        os.eventfd_write(c.bells[0], 1)
        first.send(
            [
                frame(third.mac, first.mac, 1),
                frame(b"\xff" * 6, first.mac, 2),
                frame(second.mac, first.mac, 3),
            ]
        )
        assert drain(second, 2) == [frame(b"\xff" * 6, first.mac, 2), frame(second.mac, first.mac, 3)]
        until(lambda: bool(c.failures))
        assert isinstance(c.failures[0], RingCorrupt)
        assert not a.failures


def test_a_guest_that_asks_on_and_reads_no_answer_loses_its_channel() -> None:
    with net_pair(LearningSwitch(), 1) as pair:
        pair.nic()
        data = rndis.KeepAlive(1).encode()
        pair.send[: len(data)] = data
        for identity in range(2000):
            if pair.failures:
                break
            with contextlib.suppress(RingFull):  # its server may be slow to take them
                pair.guest.send(data_message(0, len(data), 1), 1 << 40 | identity)
            if identity % 16 == 0:
                time.sleep(0.002)
        until(lambda: bool(pair.failures))
        assert isinstance(pair.failures[0], port.GuestDoesNotRead)


@pytest.mark.parametrize("seed", range(6))
def test_a_server_that_lies_is_an_error_or_noise_to_its_guest(seed: int) -> None:
    """Pieces outside the buffer, lengths, ids, answers nobody asked for; the guest reads its own memory alone."""
    rng = random.Random(seed)
    with net_pair(LearningSwitch(), 1) as pair:
        nic = pair.nic()
        pair.end()
        liar = pair.attach()._channel
        size = len(pair.receive)

        def number() -> int:
            return rng.choice([0, 1, 36, 44, 60, 1792, size - 1, size, 2**31, 2**32 - 1, rng.getrandbits(32)])

        for _ in range(80):
            pair.receive[:4096] = rng.randbytes(4096)
            for at in range(0, 2048, 64):
                if rng.random() < 0.5:
                    struct.pack_into(
                        "<IIII",
                        pair.receive,
                        at,
                        rng.choice([1, 1, 1, 7, 0x80000004]),
                        *(number() for _ in range(3)),
                    )
            message = nvsp.SendRndisPacket(rng.choice([0, 0, 1, 2]), number(), number()).encode()
            match rng.randrange(5):
                case 0 | 1:
                    ranges = struct.pack(
                        "<8I",
                        *(
                            number() if index % 2 else rng.choice([44, 60, 104, number()])
                            for index in range(8)
                        ),
                    )
                    liar.send_transfer_pages(
                        message, rng.choice([0xCAFE, 0xCAFE, 1]), ranges, rng.getrandbits(64)
                    )
                case 2:
                    liar.send_completion(
                        rng.randbytes(rng.choice([0, 4, 8, 40])), rng.choice([0, 1, 12, rng.getrandbits(64)])
                    )
                case 3:
                    liar.send(
                        rng.randbytes(rng.choice([8, 40, 400])), rng.getrandbits(64), rng.random() < 0.5
                    )
                case 4:
                    raw = struct.pack("<HBxI", 0xCAFE, 0, rng.choice([1, 500, 2**32 - 1])) + bytes(8)
                    liar.send_raw(7, 1, raw, message, rng.getrandbits(64))
            try:
                found = nic.receive(512, 0)
            except NetError:
                break
            assert all(len(one) <= size for one in found)
            liar.receive_batch(64, 0)
            liar.release()
        counters = nic.statistics()
        assert counters["malformed"] + counters["unknown_ids"] > 0
