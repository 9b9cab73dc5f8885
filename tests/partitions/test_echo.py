"""The echo device, against a guest that may send anything."""

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.memory import PAGE_BYTES
from bus.native import Channel, GpaMap, RingCorrupt
from partitions.echo.client import Echo
from partitions.echo.vsp import ECHO_KEY, EchoVsp
from runtime.measure.exchanges import Client
from tests.bus.ring_pair import COMPLETION, GPA_DIRECT, IN_BAND, ring_pair

DATA_GPFN = 0x2000
DATA_PAGES = 18
PATIENCE_NS = 20_000_000_000
FLAG_COMPLETION = 1


class Server:
    """A VSP that serves one end in a thread, until it is told to stop or the guest breaks the ring."""

    def __init__(self, channel: Channel, gpa_map: GpaMap) -> None:
        self.vsp, self.stop = EchoVsp(channel, gpa_map), threading.Event()
        self.broken: RingCorrupt | None = None
        self.failed: BaseException | None = None
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        try:
            self.vsp.serve(self.stop)
        except RingCorrupt as error:
            self.broken = error
        except BaseException as error:
            self.failed = error


@contextmanager
def echo_pair() -> Iterator[tuple[Channel, memoryview, Server]]:
    """A guest's end, its data pages, and who serves the other end."""
    with ring_pair(pages=32) as pair:
        data = memoryview(mmap.mmap(-1, DATA_PAGES * PAGE_BYTES))
        gpa_map = GpaMap()
        gpa_map.add(DATA_GPFN, data)
        server = Server(pair.host, gpa_map)
        try:
            yield pair.guest, data, server
        finally:
            server.stop.set()
            pair.host.close()
            server.thread.join()
        assert server.failed is None


@pytest.mark.parametrize("size", [32, 64, 4096, 65_536])
def test_both_ways_carry_what_the_ladder_checks(size: int) -> None:
    """In band and in pages, plain and checked requests in turn, on one channel: counts go on."""
    with echo_pair() as (guest, data, server):
        echo = Echo(guest, data, DATA_GPFN)
        ways = cycle((echo.exchange, echo.exchange_pages))
        client = Client(lambda request: next(ways)(request), size, ECHO_KEY)
        for _ in range(9):
            client.check()
        assert server.vsp.statistics()["requests"] == 9
        assert server.vsp.dropped == 0


def test_more_than_the_channel_has_pages_for_is_refused_here() -> None:
    with echo_pair() as (guest, data, _), pytest.raises(ValueError, match="for data"):
        Echo(guest, data, DATA_GPFN).exchange_pages(bytes(len(data) + 8))


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from([IN_BAND, COMPLETION, GPA_DIRECT, 7, 0, 99]),
            st.sampled_from([0, 1, 1, 1, 2]),
            st.binary(max_size=64).map(lambda data: data[: len(data) // 8 * 8]),
            st.binary(max_size=64),
        ),
        max_size=12,
    )
)
def test_whatever_a_guest_sends_it_is_answered_or_has_broken_its_ring(
    requests: list[tuple[int, int, bytes, bytes]],
) -> None:
    """Any packet type, flags and header. Answers come in order, and the next good request gets its own; only a packet
    that no ring may hold ends the channel, which is the guest's own."""
    with echo_pair() as (guest, data, server):
        wanted = []
        for number, (kind, flags, extra, payload) in enumerate(requests):
            header = extra if kind in (GPA_DIRECT, 7) else b""
            guest.send_raw(kind, flags, header, payload, number)
            if flags & FLAG_COMPLETION:
                wanted.append(number)
        guest.send(bytes(64), len(requests), completion=True)
        wanted.append(len(requests))
        while wanted:
            packet = guest.receive(10_000_000)
            if packet is None:
                if server.thread.is_alive():
                    continue
                break
            assert packet[2] == wanted.pop(0)
        guest.release()
        assert server.broken is not None or not wanted
        assert not any(data)


def test_pages_that_were_not_lent_are_not_touched() -> None:
    """One page before ours, one behind, and a range that begins in ours and leaves them."""
    with echo_pair() as (guest, data, server):
        for gpfn, count in ((DATA_GPFN - 1, 1), (DATA_GPFN + DATA_PAGES, 1), (DATA_GPFN + DATA_PAGES - 1, 2)):
            pfns = b"".join((gpfn + index).to_bytes(8, "little") for index in range(count))
            guest.send_gpa_direct(b"", 0, count * PAGE_BYTES, pfns, 5)
            packet = guest.receive(PATIENCE_NS)
            assert packet is not None
            assert (packet[0], packet[2], packet[3]) == (COMPLETION, 5, b"")
        assert server.vsp.dropped == 3
        assert not any(data)


def test_a_guest_that_takes_no_answers_in_is_waited_for() -> None:
    """Its ring for answers is full: nothing is lost, and the worker can be told to stop (echo_pair does)."""
    with echo_pair() as (guest, _, server):
        sent = 0
        while not server.vsp.waits_for_guest:
            if guest.wait_writable(4096 + 64, 1_000_000):
                guest.send(bytes(4096), sent, completion=True)
                sent += 1
        for number in range(sent):
            packet = guest.receive(PATIENCE_NS)
            assert packet is not None
            assert packet[2] == number
