"""Stamps: what is written is what is read, in its order; what is lost is counted; what is off costs no track."""

import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import trace
from bus.native import Channel, Router, Trace, Waiting
from bus.trace import SERVER, STAMPS_MIN, Hop, MalformedTrace, TraceReader
from tests.bus.ring_pair import ring_pair
from tests.patience import WAIT_S


@contextmanager
def traced(
    stamps: int = STAMPS_MIN, tracks: int = 2, uses_tsc: bool = True
) -> Iterator[tuple[Trace, TraceReader]]:
    fd = trace.create_trace("test", uses_tsc=uses_tsc, stamps=stamps, tracks=tracks)
    reader = TraceReader(fd, stamps=stamps, tracks=tracks)
    try:
        yield Trace(mmap.mmap(fd, os.fstat(fd).st_size)), reader
    finally:
        reader.close()


@given(count=st.integers(0, 3 * STAMPS_MIN), uses_tsc=st.booleans())
def test_the_last_stamps_are_kept_in_order_and_all_others_are_counted(count: int, uses_tsc: bool) -> None:
    with traced(uses_tsc=uses_tsc) as (ours, reader):
        for number in range(count):
            ours.stamp(Hop.WRITE, 7, number)
        found = list(reader.tracks())
        assert len(found) == (count > 0)
        for track in found:
            identities = [stamp.transaction_id for stamp in track.stamps]
            assert identities == list(range(track.lost, count))
            assert len(identities) >= min(count, STAMPS_MIN - 1)  # one may be half written at any moment
            assert {(stamp.channel, stamp.hop) for stamp in track.stamps} <= {(7, Hop.WRITE)}
            ticks = [stamp.ticks for stamp in track.stamps]
            assert ticks == sorted(ticks)
            assert track.thread == threading.get_native_id()


def test_a_reader_beside_a_writer_never_sees_a_stamp_that_was_not_made() -> None:
    """Ids count up by one: a torn or overwritten stamp would stand out."""
    with traced() as (ours, reader):
        over = threading.Event()

        def write() -> None:
            number = 0
            while not over.is_set():
                for _ in range(64):
                    ours.stamp(Hop.TAKE, number, number)
                    number += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            seen = 0
            deadline = time.monotonic() + 0.4
            while not seen or (time.monotonic() < deadline and seen < 500):
                assert time.monotonic() < deadline + WAIT_S
                for track in reader.tracks():
                    identities = [stamp.transaction_id for stamp in track.stamps]
                    assert identities == list(range(track.lost, track.lost + len(identities)))
                    assert all(stamp.channel == stamp.transaction_id for stamp in track.stamps)
                    seen += bool(identities)
        finally:
            over.set()
            writer.join()


def test_threads_without_a_track_are_counted_and_harm_nobody() -> None:
    with traced(tracks=2) as (ours, reader):
        everyone_stamps = threading.Barrier(3)

        def stamp() -> None:
            ours.stamp(Hop.CALL, 1)
            everyone_stamps.wait()
            ours.stamp(Hop.RETURN, 1)

        threads = [threading.Thread(target=stamp) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [len(track.stamps) for track in reader.tracks()] == [2, 2]
        assert reader.untracked == 2


def test_switched_off_nothing_is_kept() -> None:
    with traced() as (ours, reader):
        trace.enable(reader.fd, on=False)
        ours.stamp(Hop.CALL, 1)
        assert not ours.enabled
        assert list(reader.tracks()) == []
        trace.enable(reader.fd, on=True)
        ours.stamp(Hop.CALL, 1)
        assert [len(track.stamps) for track in reader.tracks()] == [1]


def test_names_are_kept_up_to_the_limit() -> None:
    with traced() as (ours, reader):
        kept = [
            ours.name(number, number << 32 | 5, f"channel {number}" * 9) for number in range(trace.NAMES + 2)
        ]
        assert kept == [True] * trace.NAMES + [False] * 2
        names = reader.names()
        assert [name.channel for name in names] == list(range(trace.NAMES))
        assert all(f"channel {name.channel}" * 9 == name.text or len(name.text) == 47 for name in names)


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 1), (4, 2), (12, 0), (12, 257), (16, 100), (16, 1 << 21), (16, 1 << 20)],
    ids=[
        "magic",
        "version",
        "no tracks",
        "too many tracks",
        "no power of two",
        "too long",
        "longer than it is",
    ],
)
def test_memory_that_is_no_trace_is_refused(at: int, value: int) -> None:
    with traced() as (_, reader):
        os.pwrite(reader.fd, struct.pack("<I", value), at)
        with pytest.raises(ValueError, match="not that of a trace"):
            Trace(mmap.mmap(reader.fd, os.fstat(reader.fd).st_size))


def test_whatever_a_writer_puts_into_its_memory_the_reader_survives() -> None:
    """The memory is another process's to write: counters beyond any sense, and hops that do not exist."""
    with traced() as (ours, reader):
        ours.stamp(Hop.CALL, 1)
        for at in (24, 28):  # tracks and names in use
            os.pwrite(reader.fd, struct.pack("<I", 2**32 - 1), at)
        assert len(list(reader.tracks())) == 2
        assert len(reader.names()) == trace.NAMES
        first_track = 5 * 4096
        os.pwrite(reader.fd, struct.pack("<Q", 2**64 - 1), first_track)
        with pytest.raises(MalformedTrace):
            list(reader.tracks())


@pytest.mark.parametrize("stamps", [0, 127, 129, 1 << 21])
def test_only_powers_of_two_within_the_limits_are_made(stamps: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        trace.create_trace("test", uses_tsc=True, stamps=stamps)


def test_a_hop_that_does_not_exist_is_refused() -> None:
    with traced() as (ours, _), ring_pair() as pair:
        for stamp in (lambda hop: ours.stamp(hop, 1), pair.guest.stamp):
            for hop in (0, max(Hop) + 1):
                with pytest.raises(ValueError, match="hop"):
                    stamp(hop)


def test_every_hop_of_an_exchange_is_stamped_by_the_side_that_it_belongs_to() -> None:
    with traced() as (ours, reader), ring_pair() as pair:
        rings = memoryview(pair.memory)
        half = len(rings) // 2

        def end(outgoing: int, incoming: int, channel: int) -> Channel:
            return Channel(
                rings,
                outgoing_offset=outgoing,
                outgoing_bytes=half - 4096,
                incoming_offset=incoming,
                incoming_bytes=half - 4096,
                signal_fd=-1,
                wait_fd=-1,
                waiting=Waiting("spin"),
                trace=ours,
                trace_channel=channel,
            )

        client, server = end(0, half, 3), end(half, 0, 3 | SERVER)
        assert client.is_traced
        assert not pair.guest.is_traced
        client.send(b"ping", 42, completion=True)
        packet = server.receive(0)
        assert packet is not None
        server.send_completion(packet[3], packet[2])
        assert client.receive(0) is not None
        (track,) = reader.tracks()
        assert [(stamp.hop, stamp.channel, stamp.transaction_id) for stamp in track.stamps] == [
            (Hop.WRITE, 3, 42),
            (Hop.PUBLISH, 3, 42),
            (Hop.TAKE, 3 | SERVER, 42),
            (Hop.ANSWER, 3 | SERVER, 42),
            (Hop.PUBLISH, 3 | SERVER, 42),
            (Hop.RECEIVE, 3, 42),
        ]


def test_the_router_stamps_each_kick_with_its_route() -> None:
    kick, doorbell = os.eventfd(0), os.eventfd(0)
    with traced() as (ours, reader):
        router = Router()
        try:
            router.trace(ours)
            with pytest.raises(ValueError, match="already"):
                router.trace(ours)
            router.add(9, kick, mmap.mmap(-1, 4096), 3, doorbell)
            os.eventfd_write(kick, 1)
            os.eventfd_read(doorbell)
        finally:
            router.close()
            os.close(kick)
            os.close(doorbell)
        (track,) = reader.tracks()
        assert [(stamp.hop, stamp.channel) for stamp in track.stamps] == [
            (Hop.BROKER_WAKE, trace.ROUTE | 9),
            (Hop.FLAG_SET, trace.ROUTE | 9),
        ]
