"""hv_sock: the relay and a hostile guest, a guest's stream and a hostile host, at the two ends of real rings; and what
a program of the host's says before it has a stream."""

import mmap
import os
import re
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import pytest
import trio

from bus.byte_pipe import decode_piece
from bus.memory import PAGE_BYTES
from bus.native import Channel, RingCorrupt, RingFull
from bus.packets import PacketError, PacketType, encode_pipe
from partitions.streams.desk import COMMAND_BYTES_MAX, _read_line
from partitions.streams.guest import Stream, StreamReset, StreamTimeout
from partitions.streams.relay import StreamEnd, StreamRelay
from partitions.streams.wire import END, name_of, parse_service
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.targets import Side, declare, target
from tests.partitions.storage_pair import guest_end, host_end
from tests.partitions.test_streams import OpenedChannel

_RING_BYTES: Final = 4 * PAGE_BYTES
_MORE: Final = 0x80  # in a piece's first byte: nobody looks before the next one is there, too
_TO_GUEST: Final = 0x40  # the same: it is what the host's program says, and no packet; none is its end
_KINDS: Final = (PacketType.INBAND, PacketType.COMPLETION, 0, 0xFFFF)
_SERVICE_NAME: Final = re.compile(r"[0-9a-f-]{1,36}")  # of a socket's file: nothing of a path is in it

declare("stream-commands", Side.SERVER)


@contextmanager
def _rings() -> Iterator[tuple[Channel, Channel]]:
    """The guest's end, and the host's."""
    memory = mmap.mmap(-1, 2 * (PAGE_BYTES + _RING_BYTES))
    bells = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    guest = guest_end(memory, _RING_BYTES, *bells)
    host = host_end(memory, _RING_BYTES, *bells, "block")
    try:
        yield guest, host
    finally:
        guest.close()
        host.close()
        for bell in bells:
            os.close(bell)


@dataclass
class _Said:
    """Through a ring, one piece at a time, by whoever is hostile."""

    channel: Channel
    data: bytes = b""  # of good packets in front of the first that is none
    ended: bool = False  # by a good END
    broken: bool = False  # something came that no stream says

    def say(self, piece: bytes) -> bool:
        """A piece: which of _KINDS, with _MORE, and the payload. False: the ring has no room for it."""
        kind = _kind(piece)
        try:
            self.channel.send_raw(kind, 0, b"", piece[1:], 7)
        except (RingFull, ValueError):
            return False
        payload = piece[1:] + bytes(-len(piece[1:]) % 8)  # as a ring has it
        try:
            if kind != PacketType.INBAND or self.ended:
                raise PacketError
            data = decode_piece(payload)
        except PacketError:
            self.broken = True
        else:
            self.data += data if not self.broken else b""
            self.ended |= not data and not self.broken
        return True


def _kind(piece: bytes) -> int:
    return _KINDS[(piece[0] & ~_MORE) % len(_KINDS)]


@dataclass
class _Answered:
    """To the guest by the host's program, through the relay; the guest looks when it is told to, or never."""

    program: socket.socket
    guest: Channel
    said: bytes = b""
    over: bool = False
    got: bytes = b""
    got_end: bool = False

    def say(self, data: bytes) -> None:
        if self.over:
            return
        if data:
            with suppress(BlockingIOError):
                self.said += data[: self.program.send(data)]
        else:
            self.program.shutdown(socket.SHUT_WR)
            self.over = True

    def take_in(self) -> None:
        """What the relay has written is packets of a stream, whatever the guest says meanwhile."""
        while packets := self.guest.receive_batch(8, 0):
            for kind, _, _, _, payload in packets:
                assert kind == PacketType.INBAND
                assert not self.got_end
                piece = decode_piece(payload)
                self.got += piece
                self.got_end = not piece
            self.guest.release()
        assert self.said.startswith(self.got)
        assert not self.got_end or (self.over and self.got == self.said)


def _seeds() -> list[bytes]:
    said = [b"\0" + encode_pipe(data) for data in (b"hello", b"x" * 4096, bytes(range(256)))]
    end, early = b"\0" + END, bytes([_MORE]) + END
    return [
        join([*said, end]),
        join(said),
        join([end]),
        join([end, said[0]]),
        join([early, said[0]]),
        join([said[1]] * 12),
        join([said[0], b"\1" + encode_pipe(b"no stream says that"), said[0]]),
    ]


def _host_seeds() -> list[bytes]:
    answer, silence = bytes([_TO_GUEST]) + b"answer", bytes([_TO_GUEST])
    asked = b"\0" + encode_pipe(b"hello")
    return [
        *_seeds(),
        join([asked, answer, asked, silence, b"\0" + END]),
        join([answer + bytes(6000), asked, answer + bytes(9000), asked, silence]),
        join([bytes([_TO_GUEST | _MORE]) + bytes([n]) * 1000 * n for n in (6, 14)] + [answer] * 3),
        join([bytes([_MORE]) + encode_pipe(bytes([n]) * 3000) for n in range(5)] + [asked]),
    ]


@target("streams", Side.HOST, _host_seeds)
def host(data: bytes) -> None:
    """What comes out of the socket is what good packets had, up to the first that is none; then it is the end of it.

    And the guest gets what the socket was told, whole and in order, as far as it looks.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in (ours, theirs):
        end.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # as little as there can be: parts are sent
    with theirs, _rings() as (guest, channel), closing(ours):
        relay, said = StreamRelay(channel, StreamEnd(ours), lambda: None), _Said(guest)
        answered, got, corrupt = _Answered(theirs, guest), b"", False
        for piece in [*cut(data), bytes([_TO_GUEST | _MORE])]:  # in the end everybody looks once more
            if not piece or corrupt:
                continue
            if piece[0] & _TO_GUEST:
                answered.say(piece[1:])
                if not piece[0] & _MORE:
                    answered.take_in()
            elif not said.say(piece) or piece[0] & _MORE:
                continue
            try:
                got += _relayed(relay, theirs)
            except RingCorrupt:
                corrupt = True
        answered.take_in()
        assert said.data.startswith(
            got
        )  # of packets that were taken together with nonsense none is passed on
        if not corrupt:
            assert not said.broken
            assert said.data == got
            if said.ended:
                assert theirs.recv(1) == b""


def _relayed(relay: StreamRelay, program: socket.socket) -> bytes:
    """What comes out of the socket until nothing moves any more. RingCorrupt."""
    got = b""
    while True:
        moved = relay._take_from_guest()
        if not relay._socket_ended and relay._has_room():
            moved |= relay._give_to_guest()
        with suppress(BlockingIOError):
            got += (piece := program.recv(1 << 20))
            moved |= bool(piece)
        if not moved:
            return got


@target("streams", Side.GUEST, _seeds)
def guest(data: bytes) -> None:
    """What the guest receives is what good packets had; after the end there is nothing, after nonsense a reset."""
    got, reset = b"", False
    with _rings() as (channel, host):
        stream, said = Stream(OpenedChannel(channel), _RING_BYTES), _Said(host)  # type: ignore[arg-type]
        for piece in [*cut(data), None]:  # in the end it looks once more
            if piece is not None and (not piece or not said.say(piece) or piece[0] & _MORE):
                continue
            try:
                while part := stream.receive_some(1000, timeout_s=0):
                    assert len(part) <= 1000
                    got += part
                assert said.ended
            except StreamTimeout:
                pass
            except StreamReset:
                reset = True
                break
        assert said.data.startswith(got)
        assert said.broken or not reset
        if reset:  # for good
            with pytest.raises(StreamReset):
                stream.receive_some(1000, timeout_s=0)
        else:
            assert got == said.data
            assert not said.broken or said.ended  # nobody looks behind an end


def _command_seeds() -> list[bytes]:
    return [
        join([b"CONNECT 5000\n", b"and more"]),
        join([b"CONN", b"ECT 6f6e6c79-7061-5274-a973-73747265616d\n"]),
        join([b"x" * 70 + b"\n"]),
    ]


@target("stream-commands", Side.SERVER, _command_seeds)
def command(data: bytes) -> None:
    """One line, and no byte behind it, is read; what it names is a service whose name is safe in a path."""
    said = b"".join(cut(data))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        ours.setblocking(False)
        line = trio.run(_read_line, ours)
        left = b""
        with suppress(BlockingIOError):
            left = ours.recv(1 << 20)
    taken = said[: len(said) - len(left)]
    assert len(taken) <= COMMAND_BYTES_MAX + 1
    assert b"\n" not in taken[:-1]
    assert not line or taken.endswith(b"\n")
    try:
        service = parse_service(line.partition(" ")[2].strip())
    except ValueError:
        return
    assert isinstance(service, UUID)
    assert _SERVICE_NAME.fullmatch(name_of(service))
    assert parse_service(name_of(service)) == service
