"""Ways to talk: each brings the bytes, leaves nothing behind, and none that does not bring them gets a figure."""

import gc
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from runtime.config.model import WaitingKind
from runtime.measure.exchanges import CHECK_EVERY, Client, WrongReply, make_answer
from runtime.measure.ladder_rows import PYTHON_PEERS
from runtime.measure.results import Placement
from runtime.measure.sample import Order, SampleFailed
from runtime.measure.transport import (
    Answer,
    Impossible,
    NotInstalled,
    Transport,
    TransportError,
    check_class,
    load_transport,
)
from runtime.measure.transport_pair import measure_pair
from runtime.measure.transports.rings import RingExchangeTransport, RingTransport
from runtime.measure.transports.sockets import UnixSeqpacketTransport

CPUS = frozenset(os.sched_getaffinity(0))
KEY = 7
MAKERS: list[Callable[[], Transport]] = [
    *PYTHON_PEERS,
    *(partial(ring, waiting) for ring in (RingTransport, RingExchangeTransport) for waiting in WaitingKind),
]


def order(payload_bytes: int = 64, rate: float | None = None, seconds: float = 0.002) -> Order:
    return Order(
        payload_bytes=payload_bytes,
        seconds=seconds,
        placement=Placement.UNPINNED,
        client_cpus=CPUS,
        server_cpus=CPUS,
        rate_per_s=rate,
    )


def traces() -> tuple[set[str], set[str], set[int]]:
    """What a transport might leave: descriptors of ours, names in shared memory, processes."""
    gc.collect()  # what tests before have left may go at any moment otherwise
    fds = {f"{fd.name}: {fd.readlink()}" for fd in Path("/proc/self/fd").iterdir() if fd.exists()}
    shared = {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith("pv")}
    return fds, shared, {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: f"{make().name}-{make().waiting}")
def test_each_transport_brings_every_byte_and_leaves_nothing(make: Callable[[], Transport]) -> None:
    """What a reply carries is checked by the client itself; here, that it did check, and what remains."""
    before = traces()
    try:
        sample = measure_pair(make, order(4096))
    except (NotInstalled, Impossible) as error:
        pytest.skip(str(error))
    assert sample.measured.latency.count > 0
    assert sample.measured.exchanges > sample.measured.latency.count  # the last one is a checked one
    assert sample.client is not None
    assert sample.client.cpu_ns > 0
    assert sample.server is not None
    assert traces() == before


class Cheat(UnixSeqpacketTransport):
    name = "cheat"


class AnswersItself(Cheat):
    def exchange(self, request: bytes) -> bytes:
        return request


class BringsTheHead(Cheat):
    """Eight bytes travel; the rest is made up on the other side."""

    def serve(self, answer: Answer) -> None:
        while True:
            head = self._server.recv(8)
            self._server.send(answer(head.ljust(self._size, b"\0"))[:16])

    def exchange(self, request: bytes) -> bytes:
        self._client.send(request[:8])
        return self._client.recv(16) + request[16:]


class SkipsOne(Cheat):
    """The first plain request: however few a slow host comes to, there is one."""

    skipped = False

    def exchange(self, request: bytes) -> bytes:
        if self.skipped or request[0] != 0:
            return super().exchange(request)
        self.skipped = True
        return request


class RepliesWithoutAsking(Cheat):
    """The server echoes by itself, and never looks at what it got."""

    def serve(self, answer: Answer) -> None:
        while True:
            self._server.send(self._server.recv(self._size))


class ForgetsTheRequest(Cheat):
    """It brings the answer's head, and not the bytes behind it."""

    def exchange(self, request: bytes) -> bytes:
        return super().exchange(request)[:16].ljust(self._size, b"\0")


class RepeatsTheLast(Cheat):
    last = b""

    def exchange(self, request: bytes) -> bytes:
        reply, self.last = self.last or request, super().exchange(request)
        return reply


CHEATS = [
    AnswersItself,
    BringsTheHead,
    SkipsOne,
    RepliesWithoutAsking,
    ForgetsTheRequest,
    RepeatsTheLast,
]


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_transport_that_does_not_do_the_work_gets_no_figure(cheat: type[Transport]) -> None:
    with pytest.raises(SampleFailed, match="WrongReply"):
        measure_pair(cheat, order())


def test_the_head_of_a_reply_cannot_be_made_without_the_server() -> None:
    """A client that knows all but the key: its own answers are refused."""
    client = Client(make_answer(KEY + 1), 64, KEY)
    with pytest.raises(WrongReply):
        client.check()


class Fails(Cheat):
    def exchange(self, request: bytes) -> bytes:
        raise RuntimeError("out\nof order")


class ServerFails(Cheat):
    def serve(self, answer: Answer) -> None:
        raise RuntimeError("no such luck")


class ServeEnds(Cheat):
    def serve(self, answer: Answer) -> None:
        return


class Dies(Cheat):
    def exchange(self, request: bytes) -> bytes:
        os.kill(os.getpid(), 9)
        return b""


class CannotOpen(Cheat):
    def open(self, payload_bytes: int) -> None:
        raise OSError("no room")


class ThreadFails(Cheat):
    one_process = True

    def serve(self, answer: Answer) -> None:
        raise RuntimeError("no such luck")


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (Fails, "RuntimeError: out of order"),
        (ServerFails, "RuntimeError: no such luck"),
        (ServeEnds, "serve returned"),
        (Dies, "died without a word"),
        (CannotOpen, "no room"),
        (ThreadFails, "RuntimeError: no such luck"),
    ],
)
def test_a_transport_that_breaks_says_why_and_leaves_nothing(broken: type[Transport], says: str) -> None:
    before = traces()
    with pytest.raises(SampleFailed, match=says):
        measure_pair(broken, order())
    assert traces()[1:] == before[1:]


# -- the open loop


class Stalls:
    """A server that answers at once, except for one request."""

    def __init__(self, at: int, stall_s: float) -> None:
        self._answer, self._at, self._stall_s, self._calls = make_answer(KEY), at, stall_s, 0

    def __call__(self, request: bytes) -> bytes:
        self._calls += 1
        if self._calls == self._at:
            time.sleep(self._stall_s)
        return self._answer(request)


def slow_ones(client: Client, measured: object, above_ns: int) -> int:
    buckets = measured.latency.buckets  # type: ignore[attr-defined]
    return int(sum(count for top, count in buckets if top > above_ns))


def test_a_stall_shows_in_every_request_that_was_due_meanwhile() -> None:
    """At 2000 a second a stall of 100 ms delays 200 requests, half of them by more than 50 ms. A closed loop sends
    none meanwhile, and so sees one: coordinated omission."""
    client = Client(Stalls(at=20, stall_s=0.1), 64, KEY)
    assert slow_ones(client, client.open(0.3, 2000), 50_000_000) >= 90
    client = Client(Stalls(at=20, stall_s=0.1), 64, KEY)
    # A host's own stalls may come on top; more than six that are one after the other do not fit, and one at the end.
    assert 1 <= slow_ones(client, client.closed(0.3), 50_000_000) <= 7


def test_requests_that_never_began_count_as_late() -> None:
    """10 ms an exchange, and one asked for every ms: it ends in time, and each of the 100 is counted."""

    answer = make_answer(KEY)

    def slow(request: bytes) -> bytes:
        time.sleep(0.01)
        return answer(request)

    measured = Client(slow, 64, KEY).open(0.1, 1000)
    assert measured.latency.count == 100
    assert measured.exchanges < 100
    assert measured.latency.percentile(50) > 50_000_000


def test_an_open_loop_keeps_its_rate() -> None:
    measured = Client(make_answer(KEY), 64, KEY).open(0.1, 500)
    assert measured.latency.count == 50
    assert measured.seconds >= 0.097  # the last one begins 2 ms before the end


def test_checked_exchanges_stand_among_the_plain_ones() -> None:
    checked = 0
    answer = make_answer(KEY)

    def exchange(request: bytes) -> bytes:
        nonlocal checked
        checked += request[0]
        return answer(request)

    client = Client(exchange, 64, KEY)
    client.warm_up()
    checked = 0
    measured = client.closed(0.02)
    assert checked >= measured.exchanges // (2 * CHECK_EVERY)


# -- a user's own


def test_a_class_of_the_users_own_is_found_in_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_transport_module.py").write_text(
        "from runtime.measure.transports.sockets import PipeTransport\n"
        "class Mine(PipeTransport):\n    name = 'mine'\n"
        "class NoName(PipeTransport):\n    name = 'a b'\n"
        "class Nothing: pass\n"
        "from runtime.measure.transport import Transport\n"
        "class Half(Transport):\n    name = 'half'\n    def serve(self, answer): ...\n"
    )
    assert load_transport("own_transport_module:Mine").name == "mine"
    for text, says in {
        "own_transport_module": "MODULE:CLASS",
        "own_transport_module:": "MODULE:CLASS",
        "no_such_module_here:Mine": "no module no_such_module_here",
        "own_transport_module:Other": "no class Other",
        "own_transport_module:NoName": "needs a name",
        "own_transport_module:Nothing": "derive it",
        "own_transport_module:Half": "lacks the method exchange",
    }.items():
        with pytest.raises(TransportError, match=says) as caught:
            load_transport(text)
        assert "\n" not in str(caught.value)


def test_a_module_that_cannot_be_imported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_transport_module.py").write_text("1 / 0\n")
    with pytest.raises(TransportError, match="ZeroDivisionError"):
        load_transport("broken_transport_module:Mine")


def test_every_peer_of_ours_is_a_sound_transport() -> None:
    for peer in PYTHON_PEERS:
        assert check_class(peer, "peer") is peer
    assert len({peer.name for peer in PYTHON_PEERS}) == len(PYTHON_PEERS)
