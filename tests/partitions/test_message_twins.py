"""The message server in C and the one in Python decide alike: same replies, same disk, same marks and counters."""

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions.calls.endpoint import SOCKET_BUFFER_BYTES
from partitions.calls.endpoint_service import BEGUN, DONE, IDLE
from partitions.storage._blockio import DeviceLock
from partitions.storage.backends import MemoryBackend
from partitions.storage.disk import Disk
from partitions.storage.message_channel import MessageChannel
from partitions.storage.message_service import MessageService
from partitions.storage.message_wire import MESSAGE_BYTES_MAX, MESSAGE_DATA_BYTES_MAX, TURN, MessageHead
from partitions.storage.protocol import PACKET_BYTES
from tests.partitions.test_storage_twins import BLOCKS, EVERY_CHANGE, OPCODES, Ask

PATIENCE_S = 20
JOIN_S = 20
_PHASE_AT, _ID_AT, _DONE_AT = 8, 40, 48


@dataclass(frozen=True)
class Message:
    """A request and its data, field by field, so that a single one can be wrong."""

    ask: Ask
    identity: int = 1 << 20
    kind: int = 1
    flags: int = 0
    area: int | None = None
    inline: int | None = None
    packet: int = PACKET_BYTES
    cut: int = 0  # bytes missing at the end
    more: int = 0  # bytes too many
    phase: int = IDLE  # what a predecessor left
    last: int = 0  # whose
    done: int = 0

    def encode(self) -> bytes:
        _, payload = self.ask.packet()
        (transfer,) = struct.unpack_from("<I", payload, 24)
        area = min(transfer, MESSAGE_DATA_BYTES_MAX) if self.area is None else self.area
        inline = (0 if self.ask.reading else area) if self.inline is None else self.inline
        head = MessageHead(self.identity, area, inline, self.kind, self.packet, self.flags)
        data = random.Random(self.identity).randbytes(min(inline, MESSAGE_DATA_BYTES_MAX))
        whole = head.encode() + payload + data + bytes(self.more)
        return whole[: len(whole) - self.cut]


class Twin:
    """One service and its client's socket."""

    def __init__(self, stack: ExitStack, *, fast: bool) -> None:
        self.disk = stack.enter_context(MemoryBackend(BLOCKS * 512))
        self.record, self.lock = memoryview(bytearray(64)), DeviceLock()
        self.service = MessageService(self.disk, self.record, serial="t", lock=self.lock, fast=fast)
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        stack.callback(self.hang_up)

    def set_up(self) -> None:
        area = memoryview(bytearray(4096))
        channel = MessageChannel(self.connect, area, 0)
        Disk(channel, area, 0)
        channel.destroy()
        self.join()

    def connect(self) -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._thread = threading.Thread(target=self._serve, args=(theirs,), daemon=True)
        self._thread.start()
        return ours.detach()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            while self.service.serve(sock):
                pass

    def ask(self, message: Message) -> tuple[object, ...]:
        """The reply and all that can be seen of the service afterwards."""
        if self._socket is None:
            self._socket = socket.socket(fileno=self.connect())
            self._socket.settimeout(PATIENCE_S)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        # C looks at the marks after it has received, so this is before whatever it will see.
        struct.pack_into("<Q", self.record, _ID_AT, message.last)
        struct.pack_into("<Q", self.record, _DONE_AT, message.done)
        struct.pack_into("<Q", self.record, _PHASE_AT, message.phase)
        self._socket.send(message.encode())
        if message.kind == 3:
            self._socket.shutdown(socket.SHUT_WR)  # no reply: its end is
        reply = self._socket.recv(MESSAGE_BYTES_MAX + 1)
        self.hang_up()
        with self.lock:  # nobody was left holding it
            pass
        content = bytearray(self.disk.size_bytes)
        self.disk.readv([memoryview(content)], 0)
        return reply, bytes(self.record), self.service.statistics(), self.service.settled, bytes(content)

    def hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self.join()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join(JOIN_S)
            assert not self._thread.is_alive()


class Twins:
    def __init__(self, stack: ExitStack) -> None:
        self.both = [Twin(stack, fast=fast) for fast in (True, False)]
        self.reset()

    def reset(self) -> None:
        for twin in self.both:
            twin.set_up()
            twin.disk.writev([memoryview(random.Random(3).randbytes(BLOCKS * 512))], 0)

    def ask(self, message: Message) -> list[tuple[object, ...]]:
        if message.flags & 1:
            self.reset()
        return [twin.ask(message) for twin in self.both]

    def through_c(self, message: Message) -> bool:
        fast = self.both[0].service._fast
        assert fast is not None
        before = fast.served
        self.ask(message)
        return fast.served != before


@pytest.fixture(scope="module")
def twins() -> Iterator[Twins]:
    with contextlib.ExitStack() as stack:
        yield Twins(stack)


_OURS = TURN | 5 << 44 | 9
CHANGES: dict[str, Callable[[Message], Message]] = {
    "nothing": lambda message: message,
    "a reply": lambda message: replace(message, kind=2),
    "settled": lambda message: replace(message, kind=3),
    "no kind": lambda message: replace(message, kind=0),
    "kind 4": lambda message: replace(message, kind=4),
    "no area": lambda message: replace(message, area=0, inline=0),
    "half the area": lambda message: replace(message, area=1024),
    "a larger area": lambda message: replace(message, area=8192),
    "too large an area": lambda message: replace(message, area=MESSAGE_DATA_BYTES_MAX + 512, inline=0),
    "absurd area": lambda message: replace(message, area=2**32 - 1, inline=0),
    "no data": lambda message: replace(message, inline=0),
    "more data than area": lambda message: replace(message, area=512, inline=1024),
    "data with a read": lambda message: replace(message, inline=512),
    "short packet": lambda message: replace(message, packet=48),
    "shorter packet": lambda message: replace(message, packet=47),
    "no packet": lambda message: replace(message, packet=0),
    "long packet": lambda message: replace(message, packet=65),
    "one byte missing": lambda message: replace(message, cut=1),
    "one byte too many": lambda message: replace(message, more=1),
    "too long by far": lambda message: replace(message, more=MESSAGE_BYTES_MAX),
    "other flags": lambda message: replace(message, flags=0xFFFE),
    "a turn": lambda message: replace(message, identity=_OURS),
    "begun before": lambda message: replace(message, phase=BEGUN, last=message.identity),
    "done before": lambda message: replace(message, phase=DONE, last=message.identity),
    "another was begun": lambda message: replace(message, phase=BEGUN, last=message.identity + 1),
    "another was done": lambda message: replace(message, phase=DONE, last=message.identity + 1),
    "a turn was begun": lambda message: replace(message, phase=BEGUN, last=_OURS),
    "this step was done": lambda message: replace(message, identity=_OURS, done=_OURS),
    "a later step was done": lambda message: replace(message, identity=_OURS, done=_OURS | 7 << 32),
    "an earlier step was done": lambda message: replace(message, identity=_OURS | 7 << 32, done=_OURS),
    "another turn was done": lambda message: replace(message, identity=_OURS, done=_OURS + 1),
    "another opening's was done": lambda message: replace(message, identity=_OURS, done=_OURS + (1 << 44)),
}
_PLAIN = (
    "nothing",
    "a larger area",
    "other flags",
    "a turn",
    "an earlier step was done",
    "another turn was done",
    "another opening's was done",
)


@pytest.mark.parametrize("opcode", OPCODES)
@pytest.mark.parametrize("change", CHANGES)
def test_one_thing_out_of_the_ordinary_is_answered_alike(twins: Twins, opcode: int, change: str) -> None:
    twins.reset()
    fast, slow = twins.ask(CHANGES[change](Message(Ask(opcode))))
    assert fast == slow


@settings(max_examples=80, deadline=None)
@given(
    asks=st.lists(
        st.builds(
            Message,
            st.builds(
                Ask,
                st.sampled_from(OPCODES),
                lba=st.integers(0, BLOCKS),
                blocks=st.integers(0, 60),
                rest=st.integers(0, 2**32 - 1),
            ),
            identity=st.integers(1, 2**63 - 1),
        ),
        min_size=1,
        max_size=4,
    ),
    first=st.lists(st.sampled_from(sorted(EVERY_CHANGE)), max_size=2),
    second=st.lists(st.sampled_from(sorted(CHANGES)), max_size=2),
    begins=st.booleans(),
)
def test_any_sequence_is_answered_alike(
    twins: Twins, asks: list[Message], first: list[str], second: list[str], begins: bool
) -> None:
    twins.reset()
    for number, message in enumerate(asks):
        changed = replace(message, flags=int(begins and number == len(asks) - 1))
        for change in first:
            changed = replace(changed, ask=EVERY_CHANGE[change](changed.ask))
        for change in second:
            changed = CHANGES[change](changed)
        fast, slow = twins.ask(changed)
        assert fast == slow


@pytest.mark.parametrize("opcode", OPCODES)
def test_the_ordinary_goes_through_c_and_the_rest_does_not(twins: Twins, opcode: int) -> None:
    twins.reset()
    for change in CHANGES:
        message = CHANGES[change](Message(Ask(opcode)))
        no_matter = message.ask.reading and change in ("data with a read", "no data")
        assert twins.through_c(message) == (change in _PLAIN or no_matter), change


def test_what_fails_in_c_is_asked_again_in_python_with_the_device_in_between() -> None:
    """A medium that ends early: C has begun; who tells the client is Python, and nobody was let in meanwhile."""
    with ExitStack() as stack:
        both = [Twin(stack, fast=fast) for fast in (True, False)]
        results = []
        for twin in both:
            twin.set_up()
            assert twin.disk.descriptor is not None
            # Closed under it: every call fails with EBADF.
            twin.disk.close()
            sock = socket.socket(fileno=twin.connect())
            sock.settimeout(PATIENCE_S)
            sock.send(Message(Ask(0x2A)).encode())
            reply = sock.recv(MESSAGE_BYTES_MAX)
            sock.close()
            twin.join()  # that it has replied is marked when the reply is out
            results.append((reply, bytes(twin.record), twin.service.statistics()))
            with twin.lock:
                pass
        assert results[0] == results[1]
        assert results[0][2]["refused"] == 1
