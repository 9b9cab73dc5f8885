"""A custom device: its protocol, and both ends of it against a peer that may send, or return, anything."""

import errno
import threading
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.memory import PAGE_BYTES
from partitions.custom.device import CustomDevice
from partitions.custom.serving import DriverMisbehaved
from partitions.custom.wire import REQUEST_BYTES_MAX, CustomClosedError, CustomError
from partitions.echo.driver import ECHO_KEY, EchoDriver
from partitions.sdk import AsyncCustomDriver, BackendError, CustomDriver
from runtime.measure.exchanges import Client
from tests.bus.ring_pair import COMPLETION, GPA_DIRECT, IN_BAND
from tests.partitions.custom_pair import CONTEXT, DATA_GPFN, DATA_PAGES, CustomPair, answering, custom_pair
from tests.patience import WAIT_S

PATIENCE_NS = 20_000_000_000
FLAG_COMPLETION = 1
FEW = 10


class Batches(CustomDriver):
    """Replies with its requests, reversed, and remembers how many came at once."""

    def __init__(self) -> None:
        super().__init__(CONTEXT)
        self.sizes: list[int] = []

    def serve(self, requests: Sequence[bytes]) -> Sequence[bytes]:
        self.sizes.append(len(requests))
        return [request[::-1] for request in requests]


class Waits(AsyncCustomDriver):
    """Replies with its request reversed, after so many ms as its first byte says; knows how many are under way."""

    def __init__(self) -> None:
        super().__init__(CONTEXT)
        self.under_way = self.most = 0

    async def serve(self, request: bytes) -> bytes:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        if request[:1] not in (b"", b"\0"):
            await trio.sleep(request[0] / 1000)
        self.under_way -= 1
        return request[::-1]


class Gathers(Waits):
    """Begins to wait when more than FEW are under way, however slowly they come."""

    def __init__(self) -> None:
        super().__init__()
        self._are_many = trio.Event()

    async def serve(self, request: bytes) -> bytes:
        if self.under_way >= FEW:
            self._are_many.set()
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        with trio.fail_after(WAIT_S):
            await self._are_many.wait()
        self.under_way -= 1
        return await super().serve(request)


def reversing() -> CustomDriver:
    return answering(lambda request: request[::-1])


EVERY_FORM: list[Callable[[], Any]] = [reversing, Batches, Waits]


@pytest.mark.parametrize("make", EVERY_FORM, ids=["answer", "serve", "async"])
@settings(max_examples=12, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.sampled_from([0, 1, 7, 8, 4095, 4096, 4097, 20_000, REQUEST_BYTES_MAX]), st.booleans())
    )
)
def test_every_reply_has_the_bytes_and_the_length_that_the_driver_gave_it(
    make: Callable[[], Any], requests: list[tuple[int, bool]]
) -> None:
    """Any lengths, one by one and as one batch; those that do not fit the ring go in pages."""
    data = [bytes([0, *range(255)] * 1100)[:size] for size, _ in requests]
    with custom_pair(make()) as pair:
        for request, (_, in_pages) in zip(data, requests, strict=True):
            exchange = pair.device.exchange_pages if in_pages else pair.device.exchange
            assert exchange(request) == request[::-1]
        assert pair.device.exchange_batch(data) == [request[::-1] for request in data]


@pytest.mark.parametrize("size", [32, 64, 4096, 65_536])
def test_both_ways_carry_what_the_ladder_checks(size: int) -> None:
    """In band and in pages, plain and checked requests in turn, on one channel: counts go on."""
    with custom_pair(EchoDriver(CONTEXT)) as pair:
        ways = cycle((pair.device.exchange_in_band, pair.device.exchange_pages))
        client = Client(lambda request: next(ways)(request), size, ECHO_KEY)
        for _ in range(9):
            client.check()
        assert pair.server.vsp.statistics() == {"requests": 9, "dropped": 0}


@pytest.mark.parametrize("make", EVERY_FORM, ids=["answer", "serve", "async"])
@settings(max_examples=15, deadline=None)
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
    make: Callable[[], Any], requests: list[tuple[int, int, bytes, bytes]]
) -> None:
    """Any packet type, flags and header. Replies come in order, and the next good request gets its own; only a packet
    that no ring may hold ends the channel, which is the guest's own."""
    with custom_pair(make()) as pair:
        guest, wanted = pair.channel, []
        for number, (kind, flags, extra, payload) in enumerate(requests):
            header = extra if kind in (GPA_DIRECT, 7) else b""
            guest.send_raw(kind, flags, header, b"\0" + payload, number)
            if flags & FLAG_COMPLETION:
                wanted.append(number)
        guest.send(bytes(64), len(requests), completion=True)
        wanted.append(len(requests))
        while wanted:
            packet = guest.receive(10_000_000)
            if packet is None:
                if pair.server.thread.is_alive():
                    continue
                break
            assert packet[2] == wanted.pop(0)
        guest.release()
        assert pair.server.broken is not None or not wanted
        assert not any(pair.data)


def test_pages_that_were_not_lent_are_not_touched() -> None:
    """One page before ours, one behind, and a range that begins in ours and leaves them."""
    with custom_pair(reversing()) as pair:
        for gpfn, count in ((DATA_GPFN - 1, 1), (DATA_GPFN + DATA_PAGES, 1), (DATA_GPFN + DATA_PAGES - 1, 2)):
            pfns = b"".join((gpfn + index).to_bytes(8, "little") for index in range(count))
            pair.channel.send_gpa_direct(b"", 0, count * PAGE_BYTES, pfns, 5)
            packet = pair.channel.receive(PATIENCE_NS)
            assert packet is not None
            assert (packet[0], packet[2], packet[3][:4]) == (
                COMPLETION,
                5,
                errno.EBADMSG.to_bytes(4, "little"),
            )
        assert pair.server.vsp.statistics()["dropped"] == 3
        assert not any(pair.data)


@pytest.mark.parametrize("make", EVERY_FORM, ids=["answer", "serve", "async"])
def test_a_guest_that_takes_no_answers_in_is_waited_for(make: Callable[[], Any]) -> None:
    """Its ring for replies is full: nothing is lost, and the worker can be told to stop (custom_pair does)."""
    with custom_pair(make()) as pair:
        sent = 0
        while not pair.server.vsp.waits_for_guest:
            if pair.channel.wait_writable(4096 + 64, 1_000_000):
                pair.channel.send(bytes(4096), sent, completion=True)
                sent += 1
        for number in range(sent):
            packet = pair.channel.receive(PATIENCE_NS)
            assert packet is not None
            assert packet[2] == number


def test_what_waits_in_the_ring_comes_as_one_batch() -> None:
    driver = Batches()
    with custom_pair(driver) as pair:
        replies = pair.device.exchange_batch([bytes([number]) for number in range(200)])
        assert replies == [bytes([number]) for number in range(200)]
    assert sum(driver.sizes) == 200
    assert max(driver.sizes) <= 64


def test_of_an_asynchronous_driver_many_are_under_way_and_replies_keep_their_order() -> None:
    """Those that wait longest come first."""
    driver = Gathers()
    requests = [bytes([30 - number, number]) for number in range(30)]
    with custom_pair(driver) as pair:
        assert pair.device.exchange_batch(requests) == [request[::-1] for request in requests]
    assert driver.most > FEW


def refuse(request: bytes) -> bytes:
    raise BackendError(errno.ENOSPC, "full")


def test_an_error_with_an_errno_is_an_answer_and_the_device_goes_on() -> None:
    with custom_pair(answering(lambda request: request if request == b"fine" else refuse(request))) as pair:
        for exchange in (pair.device.exchange, pair.device.exchange_in_band, pair.device.exchange_pages):
            with pytest.raises(CustomError, match="full") as raised:
                exchange(b"more")
            assert raised.value.errno == errno.ENOSPC
            assert exchange(b"fine") == b"fine"
        (first, second) = pair.device.exchange_batch([b"fine", b"more"])
        assert first == b"fine"
        assert isinstance(second, CustomError)


def test_a_reply_that_has_no_room_is_an_error_and_one_that_has_comes_as_it_is() -> None:
    with custom_pair(answering(lambda request: bytes(int(request)))) as pair:
        for size, room in ((5000, 0), (REQUEST_BYTES_MAX + 1, REQUEST_BYTES_MAX), (200_000, 199_999)):
            with pytest.raises(CustomError) as raised:
                pair.device.exchange(str(size).encode(), room)
            assert raised.value.errno == errno.EMSGSIZE
        for size in (4096, 20_000, REQUEST_BYTES_MAX):
            assert len(pair.device.exchange(str(size).encode(), size)) == size
        with pytest.raises(ValueError, match="at most"):
            pair.device.exchange(bytes(REQUEST_BYTES_MAX + 1))


def garbage(reply: object) -> CustomDriver:
    class Garbage(CustomDriver):
        def serve(self, requests: Sequence[bytes]) -> Sequence[bytes]:
            return reply  # type: ignore[return-value]

    return Garbage(CONTEXT)


class AsyncGarbage(AsyncCustomDriver):
    async def serve(self, request: bytes) -> bytes:
        return "text"  # type: ignore[return-value]


@pytest.mark.parametrize(
    "driver",
    [
        garbage(None),
        garbage(b"x"),
        garbage([]),
        garbage([b"one", b"too many"]),
        garbage([None]),
        garbage([bytearray(b"x")]),
        answering(lambda request: "text"),  # type: ignore[arg-type,return-value]
        answering(lambda request: None),  # type: ignore[arg-type,return-value]
        AsyncGarbage(CONTEXT),
    ],
    ids=["None", "bytes", "none", "too many", "of None", "bytearray", "text", "no reply", "async"],
)
def test_what_is_no_reply_ends_the_worker_and_nobody_gets_it(driver: Any) -> None:
    """It fails with a typed error; the request is in the ring for a successor."""
    with custom_pair(driver, fails=True) as pair:
        pair.channel.send(b"request", 1, completion=True)
        pair.server.thread.join(20)
        assert isinstance(pair.server.failed, DriverMisbehaved)
        assert pair.channel.receive(0) is None
        assert pair.host.has_work


@pytest.mark.parametrize("form", ["answer", "serve", "async"])
def test_calls_of_one_object_never_overlap(form: str) -> None:
    """Two guests of one driver at the same time; and of an asynchronous one, requests of one guest alone overlap."""
    inside: set[bytes] = set()
    mixed = []

    def enter(request: bytes) -> None:
        inside.add(request[:1])
        time.sleep(0.0003)
        mixed.append(len(inside))

    class Batched(CustomDriver):
        def serve(self, requests: Sequence[bytes]) -> Sequence[bytes]:
            for request in requests:
                enter(request)
            inside.clear()
            return requests

    class Asynchronous(AsyncCustomDriver):
        async def serve(self, request: bytes) -> bytes:
            inside.add(request[:1])
            await trio.sleep(0.0003)
            mixed.append(len(inside))
            inside.discard(request[:1])
            return request

    def answer(request: bytes) -> bytes:
        enter(request)
        inside.clear()
        return request

    drivers = {"answer": answering(answer), "serve": Batched(CONTEXT), "async": Asynchronous(CONTEXT)}
    driver: Any = drivers[form]
    device = CustomDevice("device", driver)
    with custom_pair(driver, device=device) as first, custom_pair(driver, device=device) as second:

        def load(pair: CustomPair, letter: bytes) -> None:
            for _ in range(10):
                assert pair.device.exchange_batch([letter] * 8) == [letter] * 8

        threads = [
            threading.Thread(target=load, args=(pair, name)) for pair, name in ((first, b"a"), (second, b"b"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(mixed) == 160
    assert set(mixed) <= {0, 1}


def test_a_closed_end_is_a_typed_error() -> None:
    with custom_pair(reversing()) as pair:
        pair.channel.close()
        for exchange in (pair.device.exchange, pair.device.exchange_pages):
            with pytest.raises(CustomClosedError):
                exchange(b"request")
        with pytest.raises(CustomClosedError):
            pair.device.exchange_batch([b"request"])
