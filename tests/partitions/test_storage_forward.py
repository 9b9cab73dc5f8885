"""A monitor's disk: a server whose bytes are behind a message server, and guests of it who must not notice."""

import errno
import itertools
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from partitions.storage import message_channel as client_side
from partitions.storage.backends import MemoryBackend
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskCommandError
from partitions.storage.message_channel import MessageChannel
from partitions.storage.message_service import MessageService
from partitions.storage.message_wire import (
    HEAD_BYTES,
    MESSAGE_BYTES_MAX,
    TURN,
    Kind,
    MessageHead,
    is_not_after,
)
from partitions.storage.passed_on import VscBackend
from partitions.storage.protocol import PACKET_BYTES
from tests.partitions.message_world import CountingBackend, MessageServer, PlainBackend
from tests.partitions.storage_guest import FailingBackend
from tests.partitions.storage_pair import Pair, connected
from tests.partitions.test_storage_relay import TIMEOUT_S, disk_of, play_on
from tests.partitions.test_storage_twins import (
    EVERY_CHANGE,
    OPCODES,
    Ask,
    Twins,
)
from tests.patience import WAIT_S

DATA_BYTES = 1 << 20


@contextmanager
def host_of(backend: MemoryBackend) -> Iterator[MessageServer]:
    server = MessageServer(backend)  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def passed_on(connect: Callable[[], int]) -> Iterator[tuple[VscBackend, MessageChannel]]:
    area = memoryview(bytearray(DATA_BYTES))
    channel = MessageChannel(connect, area, 0)
    try:
        yield VscBackend(Disk(channel, area, 0)), channel
    finally:
        channel.destroy()


def monitor(passing: VscBackend, **shape: Any) -> Any:
    record = memoryview(bytearray(64))
    return connected(passing, relay=passing.relay, record=record, turns=record[32:48], **shape)


class ForwardedTwins(Twins):
    """One server in front of a message server of a memory disk, and one in Python on a memory disk."""

    def first(self, stack: ExitStack, **shape: Any) -> Pair:
        host = stack.enter_context(host_of(self.disks[0]))
        passing, self.channel = stack.enter_context(passed_on(host.connect))
        found: Pair = stack.enter_context(monitor(passing, **shape))
        return found


@pytest.fixture(scope="module")
def twins() -> Iterator[ForwardedTwins]:
    with ExitStack() as stack:
        yield ForwardedTwins(stack)


@pytest.mark.parametrize("opcode", OPCODES)
@pytest.mark.parametrize("change", EVERY_CHANGE)
def test_a_disk_behind_messages_answers_as_one_in_place(
    twins: ForwardedTwins, opcode: int, change: str
) -> None:
    forwarded, direct = twins.ask(EVERY_CHANGE[change](Ask(opcode)))
    assert forwarded == direct


def test_the_ordinary_is_one_message_and_goes_through_c(twins: ForwardedTwins) -> None:
    before = twins.channel.statistics()["packets_sent"]
    assert twins.through_c(Ask(OPCODES[0]))
    assert twins.channel.statistics()["packets_sent"] == before + 1
    assert not twins.through_c(EVERY_CHANGE["force unit access"](Ask(OPCODES[1])))


@pytest.mark.parametrize("backend", [CountingBackend, PlainBackend], ids=["python", "c"])
@pytest.mark.parametrize("seed", range(2))
def test_two_guests_of_one_host_keep_their_halves_while_it_dies(
    seed: int, backend: type[CountingBackend]
) -> None:
    """A monitor for each. A host that dies is followed by another one, and no request is lost or done by halves."""
    with ExitStack() as stack:
        disk = stack.enter_context(backend())
        rng = random.Random(seed)
        size, pairs, servers = disk.size_bytes, [], []
        lock = MessageServer(disk).lock
        for _ in range(2):
            server = MessageServer(disk, lock)
            server.die_after = lambda served: rng.random() < 0.02
            server.start()
            stack.callback(server.stop)
            passing, _ = stack.enter_context(passed_on(server.connect))
            pairs.append(stack.enter_context(monitor(passing, data_pages=256)))
            servers.append(server)
        models = [bytearray(size // 2) for _ in pairs]
        failures: list[BaseException] = []

        def play(pair: Pair, model: bytearray, base: int) -> None:
            try:
                play_on(disk_of(pair), model, base, random.Random(10 * seed + base), 200)
            except BaseException as error:
                failures.append(error)

        threads = [
            threading.Thread(target=play, args=(pair, model, base))
            for pair, model, base in zip(pairs, models, (0, size // 2), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()
        assert failures == [], f"seed {seed}"
        content = bytearray(size)
        disk.readv([memoryview(content)], 0)
        assert content == models[0] + models[1], f"seed {seed}"
        assert sum(server.generations for server in servers) > 2


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("writing", [False, True])
def test_an_error_of_the_medium_arrives(number: int, writing: bool) -> None:
    class Slow(FailingBackend):  # without a descriptor: C would read past the failing methods
        @property
        def descriptor(self) -> None:
            return None

    def fail(disk: Disk, backend: FailingBackend) -> DiskCommandError:
        backend.number = number
        with pytest.raises(DiskCommandError) as caught:
            disk.write(0, bytes(4096)) if writing else disk.read(0, 4096)
        backend.number = 0
        return caught.value

    with (
        Slow() as direct,
        Slow() as behind,
        connected(direct) as pair,
        host_of(behind) as host,
        passed_on(host.connect) as (passing, _),
        monitor(passing) as below,
    ):
        wanted, found = fail(disk_of(pair), direct), fail(disk_of(below), behind)
        assert found.errno == wanted.errno  # the sense is made from it again


def test_requests_fail_where_there_is_no_host_any_more() -> None:
    with (
        CountingBackend() as disk,
        host_of(disk) as host,
        passed_on(host.connect) as (passing, channel),
        monitor(passing) as below,
    ):
        client = disk_of(below)
        client.write(0, bytes(4096))
        host.gone = True
        host.die_after = lambda served: True
        for _ in range(2):
            with pytest.raises(DiskCommandError) as caught:
                client.read(0, 4096)
            assert caught.value.errno == errno.EIO
        assert channel.calls.waiting == 0, "nothing names the guest's pages"


@pytest.mark.parametrize("lie", ["id", "kind", "too much", "too little", "cut", "hang up", "area"])
def test_a_host_that_lies_is_left_and_touches_no_byte_that_was_not_asked_for(
    lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_side, "RECONNECTS_MAX", 3)
    lying = threading.Event()
    with MemoryBackend(1 << 20) as disk:
        service = MessageService(disk, memoryview(bytearray(64)), serial="s", lock=MessageServer(disk).lock)  # type: ignore[arg-type]

        def serve(sock: socket.socket) -> None:
            with sock:
                while sock.recv(1, socket.MSG_PEEK) and not lying.is_set():  # looks when the request is there
                    if not service.serve_one(sock):
                        return
                while request := sock.recv(MESSAGE_BYTES_MAX):
                    head = MessageHead.decode(request[:HEAD_BYTES], len(request))
                    reply = _lie(lie, head)
                    if reply is None:
                        return
                    try:
                        sock.send(reply)
                    except OSError:
                        return

        serving: list[threading.Thread] = []

        def connect() -> int:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            serving.append(threading.Thread(target=serve, args=(theirs,), daemon=True))
            serving[-1].start()
            return ours.detach()

        with passed_on(connect) as (passing, _), monitor(passing) as below:
            client = disk_of(below)
            client.flush()  # the last honest one
            lying.set()
            below.data[:] = b"\x55" * len(below.data)
            buffer = client.allocate(4096)
            below.data[:] = b"\x55" * len(below.data)
            with pytest.raises(DiskCommandError) as caught:
                client.wait(client.submit_read(0, buffer, 4096))
            assert caught.value.errno == errno.EIO
            buffer.view[:] = b"\x55" * 4096
            assert below.data == b"\x55" * len(below.data)
        _join(serving)


def _join(serving: list[threading.Thread]) -> None:
    """Their client has gone away."""
    for one in serving:
        one.join(WAIT_S)
        assert not one.is_alive()


def _lie(what: str, head: MessageHead) -> bytes | None:
    data, identity, kind, inline = b"\xee" * head.area_bytes, head.transaction_id, Kind.REPLY, head.area_bytes
    match what:
        case "id":
            identity ^= 1
        case "kind":
            kind = Kind.REQUEST
        case "too much":
            data, inline = data + b"\xee" * 4096, inline + 4096
            return MessageHead(identity, inline, inline, kind, PACKET_BYTES).encode() + bytes(64) + data
        case "too little":
            data = data[:100]
        case "cut":
            return b"\x01" * 30
        case "area":
            return MessageHead(identity, 1 << 30, inline, kind, PACKET_BYTES).encode() + bytes(64) + data
        case _:
            return None
    return MessageHead(identity, head.area_bytes, inline, kind, PACKET_BYTES).encode() + bytes(64) + data


def test_a_monitors_successor_sends_the_same_request_by_the_same_number() -> None:
    """And another request by another one, whatever the place in the ring."""
    seen: list[tuple[int, int]] = []
    with CountingBackend() as disk:
        service = MessageService(disk, memoryview(bytearray(64)), serial="s", lock=MessageServer(disk).lock)

        def serve(sock: socket.socket) -> None:
            with sock:
                while service.serve_one(sock):
                    head = MessageHead.decode(
                        service._head, HEAD_BYTES + PACKET_BYTES + _inline(service._head)
                    )
                    if head.transaction_id & TURN:
                        seen.append((head.transaction_id, service.phase))

        serving: list[threading.Thread] = []

        def connect() -> int:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            serving.append(threading.Thread(target=serve, args=(theirs,), daemon=True))
            serving[-1].start()
            return ours.detach()

        with passed_on(connect) as (passing, _), monitor(passing) as below:
            client = disk_of(below)
            for _ in range(300):  # several laps
                client.write(0, bytes(512))
            client.write(0, bytes(512), durable=True)  # two steps
        _join(serving)  # the answer goes out before its request is noted
    ids = [identity for identity, _ in seen]
    assert len(set(ids)) == len(ids) == 302
    assert is_not_after(ids[-2], ids[-1])
    assert not is_not_after(ids[-1], ids[-2])
    assert not any(is_not_after(one, other) for one, other in itertools.pairwise(ids[:-1]))


def _inline(head: bytearray) -> int:
    return int.from_bytes(head[12:16], "little")
