"""A network without rings: a hostile client's calls at a switch with a neighbour; a hostile server's replies."""

import socket
from contextlib import ExitStack, suppress
from typing import Final

from bus.seam import Seam
from partitions.net.errors import NetClosedError
from partitions.net.frames import ETHERNET_HEADER_BYTES, MTU_MAX
from partitions.net.message_calls import Receiving, Transmitting
from partitions.net.message_port import MessagePort
from partitions.net.message_service import ReceiveService, TransmitService
from partitions.net.message_wire import (
    FRAME_DATA_BYTES_MAX,
    FRAMES_MAX,
    VLAN_TAG_BYTES,
    Kind,
    MalformedCall,
    Open,
    Opened,
    Receive,
    Received,
    Refusal,
    Refused,
    Transmit,
    Transmitted,
    decode_call,
    decode_reply,
)
from partitions.net.rndis import PacketFilter
from partitions.net.server_session import Adapter
from partitions.net.switch import LearningSwitch
from tests.fuzzing.lying_server import LyingServer
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.targets import Side, target
from tests.partitions.test_net_switch import BROADCAST, OWN, FakePort

_MTU: Final = 1500
_EVERYTHING: Final = int(PacketFilter.PROMISCUOUS)
_ON_THE_SECOND: Final = 0x80  # bit of a piece's first byte: which connection it comes on
_FRAME: Final = BROADCAST + OWN[0] + bytes(46)
_ANSWER_BYTES_MAX: Final = 1 << 20
_OPEN: Final = Open(_MTU, _EVERYTHING, 1 << 20)


def _client_seeds() -> list[bytes]:
    def first(call: Open | Transmit | Receive) -> bytes:
        return b"\0" + call.encode()

    second = bytes([_ON_THE_SECOND]) + Receive().encode()
    return [
        join([first(_OPEN), first(Transmit([_FRAME] * 3)), second, first(Open(600, 0, 0)), second]),
        join([second, first(Transmit([_FRAME])), first(_OPEN), first(Transmit([_FRAME, bytes(13)])), second]),
        join([first(_OPEN), first(Transmit([bytes(2000)])), first(Transmit([]))]),
    ]


@target("network-calls", Side.HOST, _client_seeds)
def host(data: bytes) -> None:
    """Each call has one reply, or its connection ends and the port with it; the neighbour gets whole frames alone."""
    switch, neighbour = LearningSwitch(), FakePort(OWN[1])
    switch.join(neighbour)
    port = MessagePort(Adapter(OWN[0], _MTU))
    transmitting, receiving = TransmitService(port, switch, Seam()), ReceiveService(port, Seam())
    longest = _MTU + ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES
    for piece in cut(data):
        if len(piece) < 2:
            continue
        before = list(neighbour.got)
        is_first = not piece[0] & _ON_THE_SECOND
        if port.is_open and not is_first:
            switch.forward(neighbour, [memoryview(OWN[0] + OWN[1] + bytes(50))])
        answer, goes_on = _call(transmitting if is_first else receiving, piece[1:])
        if answer is None:
            assert not goes_on
            assert neighbour.got == before
            assert not (is_first and port.is_open), "its client is gone, and the port is not"
            continue
        reply = decode_reply(memoryview(answer))
        call = decode_call(memoryview(piece[1:]))
        match call, reply:
            case Open(), Opened(mac, _, mtu):
                assert (mac, port.is_open) == (OWN[0], True)
                assert mtu <= _MTU
            case Transmit(frames), Transmitted():
                assert all(ETHERNET_HEADER_BYTES <= len(frame) <= longest for frame in frames)
            case Transmit(frames), Refused(Refusal.INVALID_FRAME):
                assert any(
                    not ETHERNET_HEADER_BYTES <= len(frame) <= port.frame_bytes_max for frame in frames
                )
            case _, Refused(Refusal.NOT_OPEN):
                assert not port.is_open
                assert neighbour.got == before
            case Receive(), Received(frames):
                assert len(frames) <= FRAMES_MAX
                assert sum(map(len, frames)) <= FRAME_DATA_BYTES_MAX
            case _:
                raise AssertionError(f"{reply} to {call}")
        assert all(ETHERNET_HEADER_BYTES <= len(frame) <= longest for frame in neighbour.got)
        assert port.ready_fd >= 0
    transmitting.let_go()
    assert not port.is_open


def _call(service: TransmitService | ReceiveService, said: bytes) -> tuple[bytes | None, bool]:
    """The reply, if there is one, and whether the connection goes on."""
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(one) for one in socket.socketpair(type=socket.SOCK_SEQPACKET))
        ours.send(said)
        ours.shutdown(socket.SHUT_WR)  # nobody waits for a frame that will not come
        goes_on = service.serve_one(theirs)
        ours.setblocking(False)
        with suppress(BlockingIOError):
            return ours.recv(_ANSWER_BYTES_MAX), goes_on
    return None, goes_on


def _server_seeds() -> list[bytes]:
    opened = Opened(OWN[0], True, _MTU).encode()
    said = [opened, Transmitted().encode(), Refused(Refusal.INVALID_FRAME).encode()]
    lost = [opened, Refused(Refusal.NOT_OPEN).encode(), opened, Transmitted().encode()]
    got = [Received([_FRAME] * 3, True).encode(), Received([], False).encode()]
    return [
        join(said),
        join(lost),
        join([*got, Refused(Refusal.NOT_OPEN).encode(), *got]),
        join([opened, *got]),
    ]


@target("network-calls", Side.GUEST, _server_seeds)
def guest(data: bytes) -> None:
    """No reply makes it send a frame twice, or take in more than a message has."""
    pieces = list(cut(data))
    with LyingServer(pieces) as server, suppress(NetClosedError):
        transmitting = Transmitting(server.connect, _OPEN)
        try:
            for number in range(4):
                frame = _FRAME[:-1] + bytes([number])
                server.calls()
                transmitting.transmit([frame])
                with suppress(NetClosedError):
                    assert transmitting.settle()
                    assert transmitting.in_flight == 0
                said = [one for one in server.calls() if one[0] == Kind.TRANSMIT]
                assert len(said) <= 1, "a frame was sent twice"
                assert all(frame in one for one in said)
                assert 0 < transmitting.opened.mtu <= MTU_MAX
        finally:
            transmitting.socket.destroy()
    with LyingServer(pieces) as server, suppress(ConnectionError):
        receiving = Receiving(server.connect)
        try:
            while (found := receiving.take()) is not None:
                if isinstance(found, Received):
                    assert len(found.frames) <= FRAMES_MAX
                    assert sum(map(len, found.frames)) <= FRAME_DATA_BYTES_MAX
                else:
                    assert found.refusal is Refusal.NOT_OPEN
        finally:
            receiving.socket.destroy()
    for piece in pieces:  # and what no connection has taken in
        with suppress(MalformedCall):
            decode_reply(memoryview(piece))
