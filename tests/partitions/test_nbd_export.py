"""The NBD export's transmission phase, byte by byte, over a real channel to a real disk's server."""

import contextlib
import errno
import random
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from partitions.storage._blockio import NBD_CONNECTIONS_MAX, NBD_DROPPED_PAYLOAD_BYTES_MAX, NBD_REQUESTS_MAX
from partitions.storage.backends import MemoryBackend
from tests.partitions.nbd_pair import (
    BLOCK_STATUS,
    CACHE,
    DISCONNECT,
    FLUSH,
    FUA,
    NO_HOLE,
    PATIENCE_S,
    READ,
    REQUEST_BYTES,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Client,
    Exported,
    exported,
)
from tests.partitions.storage_guest import SIZE, FailingBackend

DISK_BYTES = 4 << 20
LARGEST = 256 << 10  # of nbd_pair's pool


@pytest.fixture(scope="module")
def backend() -> MemoryBackend:
    return MemoryBackend(DISK_BYTES)


@pytest.fixture(scope="module")
def served(backend: MemoryBackend) -> Iterator[Exported]:
    with exported(backend) as running:
        yield running


@pytest.fixture
def client(served: Exported) -> Iterator[Client]:
    with served.connect() as connected:
        yield connected


def settle(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_any_mix_of_requests_in_flight_leaves_what_a_model_says(client: Client) -> None:
    """Writes, zeros, trims and reads, many at once, of any size: a bytearray says what each READ returns."""
    assert (client.size, client.block_sizes) == (DISK_BYTES, (512, 4096, LARGEST))
    rng, model = random.Random(8), bytearray(DISK_BYTES)
    for _ in range(20):
        wanted: dict[int, bytes] = {}
        lengths: dict[int, int] = {}
        asked: list[Callable[[], None]] = []
        free = list(
            range(0, DISK_BYTES, LARGEST)
        )  # requests of one round do not overlap: their order is open
        for cookie in range(rng.randrange(1, len(free))):
            start = free.pop(rng.randrange(len(free))) + 512 * rng.randrange(64)
            length = min(512 * rng.choice((1, 3, 8, 9, 100, 448)), LARGEST - start % LARGEST)
            command = rng.choice((READ, READ, WRITE, WRITE, TRIM, WRITE_ZEROES))
            data = rng.randbytes(length) if command == WRITE else b""
            flags = rng.choice((0, FUA)) | (NO_HOLE if command == WRITE_ZEROES and rng.random() < 0.5 else 0)
            asked.append(partial(client.request, command, start, length, data, cookie=cookie, flags=flags))
            if command == READ:
                wanted[cookie], lengths[cookie] = bytes(model[start : start + length]), length
            else:
                wanted[cookie] = b""
                model[start : start + length] = data or bytes(length)
        sender = threading.Thread(target=lambda requests: [send() for send in requests], args=(asked,))
        sender.start()  # nobody may send for ever and read nothing
        for _ in range(len(wanted)):
            cookie, error, data = client.reply(lengths)
            assert error == 0
            assert data == wanted.pop(cookie)
        sender.join()
    assert b"".join(client.read(at, LARGEST) for at in range(0, DISK_BYTES, LARGEST)) == model


def test_zeros_of_any_length_are_one_request(client: Client, backend: MemoryBackend) -> None:
    for flags in (0, NO_HOLE, NO_HOLE | FUA):
        backend.writev([memoryview(b"x" * DISK_BYTES)], 0)
        assert client.ask(WRITE_ZEROES, 512, DISK_BYTES - 1024, flags=flags) == 0
        assert client.read(0, 1024) == b"x" * 512 + bytes(512)
        assert client.read(DISK_BYTES - 1024, 1024) == bytes(512) + b"x" * 512
        assert client.read(2 << 20, LARGEST) == bytes(LARGEST)


@pytest.mark.parametrize(
    ("command", "offset", "length", "flags", "error"),
    [
        (READ, DISK_BYTES, 512, 0, errno.EINVAL),
        (READ, DISK_BYTES - 512, 1024, 0, errno.EINVAL),
        (READ, 2**64 - 512, 1024, 0, errno.EINVAL),
        (READ, 1, 512, 0, errno.EINVAL),
        (READ, 0, 511, 0, errno.EINVAL),
        (READ, 0, 0, 0, errno.EINVAL),
        (READ, 0, LARGEST + 512, 0, errno.EINVAL),
        (READ, 0, 512, 0x8000, errno.EINVAL),
        (WRITE, DISK_BYTES, 512, 0, errno.ENOSPC),
        (WRITE, 0, LARGEST + 512, 0, errno.EINVAL),
        (WRITE, 7, 512, 0, errno.EINVAL),
        (WRITE_ZEROES, DISK_BYTES - 512, 1024, 0, errno.ENOSPC),
        (TRIM, DISK_BYTES - 512, 1024, 0, errno.EINVAL),
        (TRIM, 0, 512, NO_HOLE, errno.EINVAL),
        (FLUSH, 0, 0, 4, errno.EINVAL),
        (CACHE, 0, 512, 0, errno.EINVAL),
        (BLOCK_STATUS, 0, 512, 0, errno.EINVAL),
        (77, 0, 512, 0, errno.EINVAL),
    ],
)
def test_a_bad_request_is_refused_alone(
    client: Client, command: int, offset: int, length: int, flags: int, error: int
) -> None:
    data = bytes(length) if command == WRITE else b""
    client.request(command, offset, length, data, cookie=1, flags=flags)
    client.request(FLUSH, cookie=2)
    assert sorted(client.reply() for _ in range(2)) == [(1, error, b""), (2, 0, b"")]


@pytest.mark.parametrize(
    "broken",
    [
        b"\0" * REQUEST_BYTES,
        struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 0, 0, NBD_DROPPED_PAYLOAD_BYTES_MAX + 512),
        struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 0, 0, 4096) + b"half",
        b"\x25\x60\x95",
    ],
)
def test_who_breaks_the_protocol_loses_the_connection_and_nobody_else_does(
    served: Exported, client: Client, broken: bytes
) -> None:
    settle(lambda: served.clients == 1)
    told = len(served.reports)
    with served.connect() as bad:
        bad.send(broken)
        bad.socket.shutdown(1)
        with pytest.raises(EOFError):
            bad.take(1)
    lost = "nbd_client_lost", "it broke the protocol"
    settle(lambda: lost in [(kind, more.get("reason")) for kind, more in served.reports[told:]])
    assert client.ask(FLUSH) == 0


def test_a_client_that_takes_its_leave_is_answered_first(served: Exported) -> None:
    with served.connect() as leaving:
        for cookie in range(5):
            leaving.request(READ, 0, LARGEST, cookie=cookie)
        leaving.request(DISCONNECT)
        assert sorted(leaving.reply(LARGEST)[0] for _ in range(5)) == list(range(5))
        with pytest.raises(EOFError):
            leaving.take(1)


def test_who_asks_and_never_reads_stands_still_alone(served: Exported, client: Client) -> None:
    with served.connect() as greedy:
        greedy.socket.setblocking(False)
        asked = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                greedy.request(READ, 0, LARGEST)
                asked += 1
        for _ in range(20):
            assert len(client.read(0, LARGEST)) == LARGEST
        assert asked > NBD_REQUESTS_MAX  # the rest of them waits in the socket
    settle(lambda: served.clients == 1)
    assert client.ask(FLUSH) == 0


def test_clients_beyond_the_last_place_are_told_so_and_may_come_again(served: Exported) -> None:
    settle(lambda: served.clients == 0)
    clients = [served.connect() for _ in range(NBD_CONNECTIONS_MAX)]
    with Client(served.path, go=False) as late:
        late.send(struct.pack(">I", 3))
        late.option(7, struct.pack(">IH", 0, 0))
        assert late.option_reply()[1] == 0x8000_0002
    for one in clients:
        with one:
            assert len(one.read(0, 512)) == 512
            one.request(DISCONNECT)
            with pytest.raises(EOFError):
                one.take(1)
    with served.connect() as again:
        assert again.ask(FLUSH) == 0


def test_what_the_disk_says_is_wrong_reaches_the_client_and_the_disk_goes_on() -> None:
    broken = FailingBackend()
    with exported(broken) as failing, failing.connect() as client:
        client.write(0, b"a" * 4096)
        for number, told in ((errno.ENOSPC, errno.ENOSPC), (errno.EIO, errno.EIO)):
            broken.number = number
            assert client.ask(FLUSH) == told
            assert client.ask(WRITE, 0, 4096, bytes(4096), flags=FUA) == told
            broken.number = 0
        assert client.ask(FLUSH) == 0
    with exported(MemoryBackend(SIZE)) as plain, plain.connect() as client:
        assert client.ask(WRITE, 0, 512, b"b" * 512) == 0


def test_a_sealed_disk_can_only_be_read() -> None:
    class Sealed(MemoryBackend):
        def __init__(self) -> None:
            super().__init__(SIZE)
            object.__setattr__(self, "read_only", True)

    with exported(Sealed()) as sealed, sealed.connect() as client:
        assert client.flags & 2
        for command in (WRITE, TRIM, WRITE_ZEROES):
            data = bytes(512) if command == WRITE else b""
            assert client.ask(command, 0, 512, data) in (errno.EPERM, errno.EINVAL)
        assert client.read(0, 512) == bytes(512)


def test_garbage_of_any_kind_leaves_the_others_alone(served: Exported, client: Client) -> None:
    """Requests with random fields, cut at random places."""
    rng = random.Random(3)
    for _ in range(60):
        with served.connect() as bad:
            for _ in range(rng.randrange(1, 6)):
                length = rng.choice((0, 511, 512, 4096, LARGEST, 1 << 31, rng.getrandbits(32)))
                command, flags = (
                    rng.choice((0, 3, 4, 5, 6, 7, rng.getrandbits(16))),
                    rng.choice((0, 1, 2, 255)),
                )
                offset = rng.choice((0, 512, DISK_BYTES - 512, rng.getrandbits(64)))
                if command == WRITE and length:
                    command = READ
                head = struct.pack(">IHHQQI", 0x25609513, flags, command, rng.getrandbits(64), offset, length)
                try:
                    bad.send(head[: rng.choice((28, 28, 28, rng.randrange(29)))])
                except (BrokenPipeError, ConnectionResetError):
                    break
        settle(lambda: served.clients == 1)
    assert client.ask(FLUSH) == 0
    settle(lambda: served.clients == 1)
