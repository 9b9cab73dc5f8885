"""The control messages' encoding: what goes in comes out, and nothing else gets in."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import codec
from runtime.codec import DecodeError, EncodeError

_MESSAGES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@given(_MESSAGES)
def test_a_message_comes_out_as_it_went_in(message: object) -> None:
    assert codec.decode(codec.encode(message)) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_decode_error(data: bytes) -> None:
    try:
        message = codec.decode(data)
    except DecodeError:
        return
    assert codec.decode(codec.encode(message)) == message or "nan" in repr(message)


@given(_MESSAGES, st.data())
def test_a_cut_message_is_refused(message: object, data: st.DataObject) -> None:
    encoded = codec.encode(message)
    cut = encoded[: data.draw(st.integers(0, len(encoded) - 1))]
    with pytest.raises(DecodeError):
        codec.decode(cut)
    with pytest.raises(DecodeError):
        codec.decode(encoded + b"\x00")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x81\x01\x01",  # an integer as key
        b"\x81\xc4\x01a\x01",  # bytes as key
        b"\xc7\x00\x05",  # an extension of no bytes
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\xa1\xff",  # text that is not UTF-8
        b"\x91" * (codec.DEPTH_MAX + 1) + b"\x90",
        b"\x91" * 5000,
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6" + struct.pack(">I", codec.BINARY_BYTES_MAX + 1) + bytes(codec.BINARY_BYTES_MAX + 1),
        b"\xdb" + struct.pack(">I", codec.TEXT_BYTES_MAX + 1) + b"x" * (codec.TEXT_BYTES_MAX + 1),
        b"\xdc" + struct.pack(">H", codec.ARRAY_ELEMENTS_MAX + 1) + bytes(codec.ARRAY_ELEMENTS_MAX + 1),
        bytes(codec.PACKET_BYTES_MAX + 1),
    ],
)
def test_each_limit_refuses(data: bytes) -> None:
    with pytest.raises(DecodeError):
        codec.decode(data)


def test_each_limit_itself_is_allowed() -> None:
    nested: object = 0
    for _ in range(codec.DEPTH_MAX - 1):
        nested = [nested]
    for message in (
        nested,
        bytes(codec.BINARY_BYTES_MAX),
        "x" * codec.TEXT_BYTES_MAX,
        [0] * codec.ARRAY_ELEMENTS_MAX,
        {str(number): 0 for number in range(codec.MAP_ENTRIES_MAX)},
    ):
        assert codec.decode(codec.encode(message)) == message


@pytest.mark.parametrize("message", [object(), {1, 2}, 2**64, "\ud800", bytes(codec.PACKET_BYTES_MAX)])
def test_what_no_peer_would_take_is_not_encoded(message: object) -> None:
    with pytest.raises(EncodeError):
        codec.encode(message)


# -- sockets -------------------------------------------------------------------------------------------------


def test_descriptors_ride_along_in_order_and_are_not_inheritable(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    pipes = [os.pipe() for _ in range(5)]
    codec.send_message(ours, ["here", {}], [reader for reader, _ in pipes])
    received = codec.receive_message(theirs)
    assert received is not None
    message, fds = received
    assert message == ["here", {}]
    for (reader, writer), fd in zip(pipes, fds, strict=True):
        os.write(writer, b"%d" % writer)
        assert os.read(fd, 10) == b"%d" % writer
        assert not os.get_inheritable(fd)
        codec.close_all([reader, writer, fd])


@pytest.mark.parametrize(("sent", "taken"), [(1, 0), (2, 1), (3, 1), (17, 16)])
def test_more_descriptors_than_this_end_takes_are_all_closed_and_the_packet_is_gone(
    pair: tuple[socket.socket, socket.socket], sent: int, taken: int
) -> None:
    ours, theirs = pair
    reader, writer = os.pipe()
    codec.send_message(ours, ["too many"], [writer] * sent)
    os.close(writer)
    codec.send_message(ours, ["next"])
    with pytest.raises(DecodeError):
        codec.receive_message(theirs, taken)
    assert os.read(reader, 1) == b""  # every copy is closed
    os.close(reader)
    assert codec.receive_message(theirs, taken) == (["next"], [])


def test_descriptors_of_a_message_that_does_not_decode_are_closed(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    reader, writer = os.pipe()
    codec.send_packet(ours, b"\xc1", [writer])
    os.close(writer)
    with pytest.raises(DecodeError):
        codec.receive_message(theirs)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_packet_longer_than_the_limit_is_refused_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.send(bytes(codec.PACKET_BYTES_MAX + 1))
    codec.send_message(ours, 1)
    with pytest.raises(DecodeError):
        codec.receive_packet(theirs)
    assert codec.receive_message(theirs) == (1, [])


def test_the_end_of_file_is_none_and_a_dead_peer_a_broken_pipe(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    theirs.close()
    assert codec.receive_message(ours) is None
    with pytest.raises(BrokenPipeError):
        codec.send_message(ours, 1)


def test_a_full_socket_takes_a_packet_whole_or_not_at_all(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            codec.send_message(ours, [sent, bytes(1000)])
            sent += 1
    assert sent
    for number in range(sent):
        assert codec.receive_message(theirs) == ([number, bytes(1000)], [])
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        codec.receive_message(theirs)
