"""Storage by send, receive and reply: the same disk as behind a ring, and servers that die, and peers that lie."""

import contextlib
import random
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from bus.native import RingClosed
from partitions.calls.endpoint_service import BEGUN, DONE, IDLE
from partitions.storage import message_channel as client_side
from partitions.storage.async_disk import AsyncDisk
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskClosedError, DiskCommandError
from partitions.storage.handshake import build_srb_packet
from partitions.storage.message_service import MessageService
from partitions.storage.message_wire import (
    HEAD_BYTES,
    MESSAGE_DATA_BYTES_MAX,
    Kind,
    MalformedMessage,
    MessageHead,
)
from partitions.storage.protocol import PACKET_BYTES, Direction
from partitions.storage.scsi import WriteBlocks
from tests.partitions.message_world import (
    DISK_BYTES,
    GPFN,
    CountingBackend,
    Crash,
    Died,
    MessageServer,
    PlainBackend,
    hostile,
    message_channel,
    message_server,
)

BLOCK = 512
PATIENCE_NS = 20_000_000_000


@given(data=st.binary(min_size=HEAD_BYTES, max_size=HEAD_BYTES), received=st.integers(0, 1 << 20))
def test_a_head_is_refused_or_keeps_what_it_promises(data: bytes, received: int) -> None:
    """Whatever the bytes: an accepted one accounts for the message to the byte, and encodes to itself."""
    try:
        head = MessageHead.decode(data, received)
    except MalformedMessage:
        return
    assert head.inline_bytes <= head.area_bytes <= MESSAGE_DATA_BYTES_MAX
    assert received == HEAD_BYTES + PACKET_BYTES + head.inline_bytes
    assert head.encode()[:-2] == data[:-2]


@given(
    transaction_id=st.integers(0, 2**64 - 1),
    area=st.integers(0, MESSAGE_DATA_BYTES_MAX),
    share=st.floats(0, 1),
    kind=st.sampled_from(Kind),
    flags=st.integers(0, 1),
)
def test_a_head_comes_back_as_it_was_sent(
    transaction_id: int, area: int, share: float, kind: Kind, flags: int
) -> None:
    head = MessageHead(transaction_id, area, int(area * share), kind, PACKET_BYTES, flags)
    assert MessageHead.decode(head.encode(), HEAD_BYTES + PACKET_BYTES + head.inline_bytes) == head


@pytest.mark.parametrize("backend", [CountingBackend, PlainBackend], ids=["python", "c"])
@pytest.mark.parametrize("seed", range(3))
def test_the_disk_is_the_one_behind_a_ring(seed: int, backend: type[CountingBackend]) -> None:
    """Random operations by every way that a program has, against a model; depth by waiting in the client."""
    rng, model = random.Random(seed), bytearray(DISK_BYTES)
    with message_server(backend) as server, message_channel(server.connect) as (channel, area):
        disk = Disk(channel, area, GPFN)
        assert disk.description.serial == "messages"
        for _ in range(60):
            blocks = rng.choice((1, 3, 8, 512, 700))
            length = blocks * BLOCK
            offset = rng.randrange((DISK_BYTES - length) // BLOCK) * BLOCK
            match rng.randrange(5):
                case 0:
                    model[offset : offset + length] = data = rng.randbytes(length)
                    disk.write(offset, data, durable=rng.random() < 0.3)
                case 1:
                    assert disk.read(offset, length) == model[offset : offset + length]
                case 2:
                    disk.flush()
                case 3:
                    model[offset : offset + length] = bytes(length)
                    disk.discard(offset, length)
                case 4:
                    with disk.open_queue(8, 4096) as queue:
                        offsets = [rng.randrange(DISK_BYTES // 4096) * 4096 for _ in range(8)]
                        assert queue.submit_reads(list(range(8)), offsets) == 8
                        ended: list[int] = []
                        while len(ended) < 8:
                            ended += queue.reap()
                        assert sorted(ended) == list(range(8))
                        for slot, at in enumerate(offsets):
                            assert queue.views[slot] == model[at : at + 4096]
                        queue.views[3][:] = model[4096:8192] = rng.randbytes(4096)
                        queue.write(4096, 3)
                        queue.read(4096, 5)
                        assert queue.views[5] == model[4096:8192]
        assert disk.read(0, DISK_BYTES) == model
        with pytest.raises(ValueError, match="the disk has"):
            disk.read(DISK_BYTES, BLOCK)
        assert channel.statistics()["reconnects"] == 0
        assert server.service is not None
        assert server.service._fast is None or server.service._fast.served > 100


def test_any_number_of_trio_tasks_share_the_disk() -> None:
    async def main() -> None:
        with message_server() as server, message_channel(server.connect) as (channel, area):
            async with AsyncDisk(Disk(channel, area, GPFN)) as disk, trio.open_nursery() as nursery:

                async def work(number: int) -> None:
                    data = random.Random(number).randbytes(8 * BLOCK)
                    for turn in range(5):
                        offset = (number * 5 + turn) * len(data)
                        await disk.write(offset, data)
                        assert await disk.read(offset, len(data)) == data
                    await disk.flush()

                for number in range(8):
                    nursery.start_soon(work, number)

    trio.run(main)


@pytest.mark.parametrize("seed", range(5))
def test_a_server_that_dies_between_execution_and_reply_executes_each_write_once(seed: int) -> None:
    """Its successor finds the request DONE, and answers it; the client notices nothing, and no write is lost."""
    rng = random.Random(seed)
    with message_server() as server, message_channel(server.connect) as (channel, area):
        disk = Disk(channel, area, GPFN)
        server.die_after = lambda served: rng.random() < 0.2
        wanted = []
        for number in range(100):
            data = struct.pack("<Q", number) * (BLOCK // 8)
            offset = rng.randrange(32) * BLOCK
            wanted.append((offset, data))
            disk.write(offset, data)
        assert server.backend.writes == wanted
        assert server.generations > 5
        assert channel.statistics()["reconnects"] >= server.generations - 1


@pytest.mark.parametrize("at", ["execution", "reply"])
@pytest.mark.parametrize("seed", range(5))
def test_a_server_that_dies_during_the_set_up_is_replaced_in_the_middle_of_it(
    seed: int, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the step is saved, or after: then the client's asks for a step that its session has behind it."""
    rng = random.Random(seed)
    reply = MessageService._reply

    def die(service: MessageService, *args: Any) -> bool:
        if rng.random() < 0.4:
            raise Died
        return reply(service, *args)

    with message_server() as server:
        if at == "execution":
            server.die_after = lambda served: rng.random() < 0.4
        else:
            monkeypatch.setattr(MessageService, "_reply", die)
        for _ in range(5):  # each opening begins a new session on the same record
            with message_channel(server.connect) as (channel, area):
                assert Disk(channel, area, GPFN).size_bytes == DISK_BYTES
        assert server.generations > 5


def test_a_request_that_was_begun_is_executed_again_unless_others_went_on() -> None:
    """What a predecessor had BEGUN may be on the disk in part. Sent again it is executed; too late, it is refused."""
    with message_server() as server, message_channel(server.connect) as (channel, area):
        disk = Disk(channel, area, GPFN)

        def crash() -> None:
            server.backend.fail = lambda: None
            raise Crash

        before = len(server.backend.writes)
        server.backend.fail = crash
        disk.write(0, bytes(BLOCK))
        assert len(server.backend.writes) == before + 1
        server.backend.fail = crash
        server.on_crash = lambda service: setattr(service, "refuses_resent", True)
        with pytest.raises(DiskCommandError):
            disk.write(0, bytes(BLOCK))
        assert len(server.backend.writes) == before + 1
        disk.write(0, b"x" * BLOCK)
        assert disk.read(0, BLOCK) == b"x" * BLOCK


def test_a_server_that_dies_before_it_begins_has_not_done_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not if the last mark of its predecessor still stands: of another request, DONE and replied to."""
    enter = MessageService._enter
    with message_server() as server, message_channel(server.connect) as (channel, area):
        disk = Disk(channel, area, GPFN)
        deaths = 0

        def die(service: MessageService, phase: int) -> None:
            """Twice: with the reply to the first write on its way, then just before the second one is begun."""
            nonlocal deaths
            replied = phase == IDLE and service.phase == DONE
            if (deaths == 0 and replied) or (deaths == 1 and phase == BEGUN):
                deaths += 1
                raise Died
            enter(service, phase)

        monkeypatch.setattr(MessageService, "_enter", die)
        disk.write(0, b"1" * BLOCK)
        disk.write(BLOCK, b"2" * BLOCK)
        assert [offset for offset, _ in server.backend.writes] == [0, BLOCK]
        assert disk.read(0, 2 * BLOCK) == b"1" * BLOCK + b"2" * BLOCK
        assert server.generations == 3


def test_a_server_that_leaves_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests do not hang, and nothing spins for ever."""
    monkeypatch.setattr(client_side, "RECONNECTS_MAX", 4)
    with message_channel(hostile(lambda request: None)) as (channel, area), pytest.raises(DiskClosedError):
        Disk(channel, area, GPFN)


def test_a_channel_that_is_closed_while_it_connects_again_waits_for_nobody() -> None:
    """Whoever closes it sees the old socket, or none: the new one must not be waited at."""
    silent: list[socket.socket] = []

    def connect() -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if silent:
            channel.close()
        else:
            theirs.shutdown(socket.SHUT_RDWR)  # a server that leaves
        silent.append(theirs)
        return ours.detach()

    with message_channel(connect) as (channel, _):
        with pytest.raises(RingClosed):
            channel.send(bytes(PACKET_BYTES), 1)
        with pytest.raises(RingClosed):
            channel.receive_batch(1)
        assert len(silent) == 2
        for end in silent:
            end.close()


def test_the_end_of_the_last_server_ends_what_is_in_flight() -> None:
    with message_server() as server, message_channel(server.connect) as (channel, area):
        disk = Disk(channel, area, GPFN)
        server.gone = True
        server.die_after = lambda served: True
        with pytest.raises(DiskClosedError):
            disk.write(0, bytes(BLOCK))
        with pytest.raises(DiskClosedError):
            disk.read(0, BLOCK)


def _lie_about(what: str) -> Callable[[bytes], list[bytes] | None]:
    def answer(request: bytes) -> list[bytes] | None:
        head = MessageHead.decode(request[:HEAD_BYTES], len(request))
        packet = request[HEAD_BYTES : HEAD_BYTES + PACKET_BYTES]
        inline = head.area_bytes
        good = MessageHead(head.transaction_id, head.area_bytes, inline, Kind.REPLY, PACKET_BYTES)
        match what:
            case "nothing that is a message":
                return [b"\xff" * 7]
            case "an end of file":
                return None
            case "another request's id":
                wrong = MessageHead(~head.transaction_id & 0xFFFF, 0, 0, Kind.REPLY, PACKET_BYTES)
                return [wrong.encode() + packet]
            case "more data than was asked for":
                return [good.encode() + packet + b"\xee" * (inline + 4096)]
            case "a length that is not there":
                return [good.encode() + packet]
            case "a request":
                return [request]
            case _:
                return [good.encode() + packet + b"\xee" * inline] * 3

    return answer


@pytest.mark.parametrize(
    "lie",
    [
        "nothing that is a message",
        "an end of file",
        "another request's id",
        "more data than was asked for",
        "a length that is not there",
        "a request",
        "the same thing three times",
    ],
)
def test_a_hostile_server_costs_its_client_the_disk_and_no_byte_elsewhere(
    lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the bytes that a request named can change, and the client comes back with an error in the end."""
    monkeypatch.setattr(client_side, "RECONNECTS_MAX", 3)
    with message_channel(hostile(_lie_about(lie))) as (channel, area):
        area[:] = b"\x55" * len(area)
        target = area[8192:12288]
        channel.send_gpa_direct(
            b"\x03" + bytes(21) + b"\x01" + bytes(41), 0, 4096, struct.pack("<Q", GPFN + 2), 1
        )
        taken = list[tuple[int, int, int, bytes, bytes]]()
        with contextlib.suppress(RingClosed):  # after the third lie
            while not taken:
                taken += channel.receive_batch(16, PATIENCE_NS)
            taken += channel.receive_batch(16, 50_000_000)  # for one too many
        assert len(taken) == (lie == "the same thing three times"), "no lie is taken for a reply"
        target[:] = b"\x55" * 4096
        assert area == b"\x55" * len(area)


def test_a_write_that_does_not_bring_its_data_is_no_message() -> None:
    """It would write what an earlier one brought."""
    with message_server() as server, message_channel(server.connect) as (channel, area):
        disk = Disk(channel, area, GPFN)
        disk.write(0, b"1" * BLOCK)
        packet = build_srb_packet(WriteBlocks(9, 1, False), Direction.WRITE, BLOCK).build()
        liar = socket.socket(fileno=server.connect())
        channel.destroy()  # ours is served first
        with liar:
            head = MessageHead(1 << 20, BLOCK, 0, Kind.REQUEST, PACKET_BYTES)
            liar.send(head.encode() + packet)
            assert liar.recv(1) == b"", "it is left"
        assert server.backend.writes == [(0, b"1" * BLOCK)]
        assert server.service is not None
        assert server.service.dropped == 1


@pytest.mark.parametrize("backend_type", [CountingBackend, PlainBackend], ids=["python", "c"])
@pytest.mark.parametrize("seed", range(40))
def test_a_hostile_client_loses_its_socket_and_nobody_else_anything(
    seed: int, backend_type: type[CountingBackend]
) -> None:
    """Random and nearly right messages: the service never raises, and serves the next socket as ever."""
    rng = random.Random(seed)
    backend = backend_type()
    record = memoryview(bytearray(64))
    server = MessageServer(backend)
    service = MessageService(backend, record, serial="s", lock=server.lock)
    for _ in range(20):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            head = MessageHead(
                rng.getrandbits(64),
                area := rng.choice((0, 512, 4096, 1 << 30)) & 0xFFFFFFFF,
                inline := rng.choice((0, area & 0xFFFF, 77)),
                rng.choice((1, 1, 1, 2, 3, 9)),
                rng.choice((64, 64, 48, 0, 65)),
                rng.getrandbits(1),
            ).encode()
            message = head + rng.randbytes(PACKET_BYTES) + rng.randbytes(inline)
            if rng.random() < 0.2:
                message = message[: rng.randrange(1, len(message))]
            ours.send(message)
            ours.shutdown(socket.SHUT_WR)
            while service.serve(theirs):
                pass
            assert service.phase in (IDLE, BEGUN, DONE)
    with server.lock:
        pass  # nobody was left holding it
    assert not backend.writes
    content = bytearray(DISK_BYTES)
    backend.readv([memoryview(content)], 0)
    assert content == bytes(DISK_BYTES)
    backend.close()
