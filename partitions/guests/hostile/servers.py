"""Attacks on a server that is called by messages: what it receives is no message, or nobody takes what it sends."""

import os
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Final

from partitions.custom.wire import MARK_BYTES
from partitions.guests.hostile.scene import Scene
from partitions.guests.hostile.tally import Tally
from partitions.net.message_wire import Kind as NetKind
from partitions.net.message_wire import Open, Receive, Transmit
from partitions.net.rndis import PacketFilter
from partitions.serial.message_wire import Kind as SerialKind
from partitions.serial.message_wire import Read, Write
from partitions.stack.vmbus_ports import message_connection, receive_connection
from partitions.storage.message_wire import HEAD_BYTES, MESSAGE_DATA_BYTES_MAX
from partitions.storage.protocol import PACKET_BYTES

_ANSWER_S: Final = 0.02
_DESCRIPTORS: Final = 16
_FRAME_BYTES: Final = 60
_BOTH_WAYS: Final = ("net", "serial")  # devices that are reached by two connections
_HEAD: Final = struct.Struct("<QIIHHHH")
_NET_HEAD: Final = struct.Struct("<BBHI")  # partitions/net/message_wire.py
_SERIAL_HEAD: Final = struct.Struct("<BBHIQ")  # partitions/serial/message_wire.py
_NET_KINDS: Final = (0, *NetKind, 0xFF)
_SERIAL_KINDS: Final = (0, *SerialKind, 0xFF)


def _connect(scene: Scene) -> socket.socket:
    """A connection of our own to the server, in the place of the one before: either of them, where there are two."""
    number = list(scene.partition.devices).index(str(scene.args["device"]))
    connection = message_connection(number)
    if scene.args["kind"] in _BOTH_WAYS and scene.rng.random() < 0.3:
        connection = receive_connection(number)
    return socket.socket(fileno=scene.partition.hypercalls.claim_connection_endpoint(connection))


def garbage_to_a_server(scene: Scene, tally: Tally) -> None:
    rng, garbage = scene.rng, _GARBAGE[str(scene.args["kind"])]
    sock = _connect(scene)
    eventfds = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(_DESCRIPTORS)]
    try:
        while scene.goes_on():
            sock.settimeout(_ANSWER_S)
            data, was_taken = garbage(scene), False
            fds = eventfds if rng.random() < 0.3 else []
            try:
                if fds:
                    socket.send_fds(sock, [data], fds)
                else:
                    sock.send(data, socket.MSG_NOSIGNAL)
                was_taken = True
                tally.made += 1
                tally.evidence = f"{len(data)} bytes with {len(fds)} descriptors were taken"
                tally.came_of_it("answered" if sock.recv(1 << 16) else "connection ended")
                if not data:
                    raise ConnectionResetError
            except TimeoutError:
                tally.came_of_it("no answer" if was_taken else "not taken")
            except OSError:
                tally.came_of_it("connection ended")
                sock.close()
                sock = _connect(scene)
    finally:
        sock.close()
        for fd in eventfds:
            os.close(fd)


def _garbage_for_custom(scene: Scene) -> bytes:
    return scene.rng.randbytes(scene.rng.choice((0, 1, 9, 300)))


def _garbage_for_net(scene: Scene) -> bytes:
    """Counts and lengths of frames that lie; now and then an OPEN with impossible wishes, or frames that are taken."""
    rng = scene.rng
    if rng.random() < 0.2:
        return Open(*(rng.choice((0, 1500, 70_000, 2**32 - 1)) for _ in range(3))).encode()
    if rng.random() < 0.2:
        return Transmit(
            [rng.randbytes(rng.choice((1, 14, 60, 1514))) for _ in range(rng.randrange(4))]
        ).encode()
    count = rng.choice((0, 1, 2, 3, 256, 257, 0xFFFF))
    lengths = [rng.choice((0, 13, 60, 70_000, 2**31, 2**32 - 1)) for _ in range(min(count, 3))]
    body = struct.pack(f"<{len(lengths)}I", *lengths) + rng.randbytes(rng.choice((0, 12, 60, 180)))
    size = rng.choice((len(body), len(body), len(body), 0, 2**32 - 1))
    whole = _NET_HEAD.pack(rng.choice(_NET_KINDS), rng.choice((0, 0, 1, 0xFF)), count, size) + body
    return whole[: rng.choice((len(whole), len(whole), 1, _NET_HEAD.size, len(whole) - 1))]


def _garbage_for_serial(scene: Scene) -> bytes:
    """Lengths that lie, numbers that were never given, bytes that are said to be sent again."""
    rng, body = scene.rng, scene.rng.randbytes(scene.rng.choice((0, 1, 80, 16_384, 16_385)))
    if rng.random() < 0.3:
        return Write(rng.choice((0, 1, rng.getrandbits(64))), rng.randbytes(80), rng.random() < 0.8).encode()
    head = _SERIAL_HEAD.pack(
        rng.choice(_SERIAL_KINDS),
        rng.choice((0, 1, 1, 0xFF)),
        rng.choice((0, 0, 0, 0xFFFF)),
        rng.choice((len(body), len(body), len(body), 0, 2**32 - 1)),
        rng.choice((0, rng.getrandbits(64))),
    )
    whole = head + body
    return whole[: rng.choice((len(whole), len(whole), 1, len(head), len(whole) - 1))]


def _garbage_for_disk(scene: Scene) -> bytes:
    """Its head almost makes sense; its packet is none that writes."""
    rng = scene.rng
    inline = rng.choice((0, 0, 8, 4096, 2**32 - 1))
    head = _HEAD.pack(
        rng.getrandbits(64),
        rng.choice((0, 4096, MESSAGE_DATA_BYTES_MAX + 1, 2**32 - 1)),
        inline,
        rng.choice((0, 1, 1, 2, 3, 0xFFFF)),
        rng.choice((0, PACKET_BYTES, PACKET_BYTES + 1, 48, 0xFFFF)),
        rng.choice((0, 1, 0xFFFF)),
        0,
    )
    packet = struct.pack("<I", rng.choice((0, 1, 2, 4, 5, 9, 10, 11, 12, 0xFFFF_FFFF))) + rng.randbytes(
        PACKET_BYTES - 4
    )
    whole = head + packet + bytes(min(inline, 4096))
    assert len(head) == HEAD_BYTES
    return whole[: rng.choice((len(whole), len(whole), 1, HEAD_BYTES, len(whole) - 1))]


_GARBAGE: Final[Mapping[str, Callable[[Scene], bytes]]] = {
    "disk": _garbage_for_disk,
    "custom": _garbage_for_custom,
    "net": _garbage_for_net,
    "serial": _garbage_for_serial,
}


def _good_calls(scene: Scene) -> tuple[bytes, ...]:
    """Each of which a server replies to: the first once, then one of the others again and again."""
    match scene.args["kind"]:
        case "disk":
            packet = struct.pack("<I", 9).ljust(PACKET_BYTES, b"\0")  # which version
            head = _HEAD.pack(scene.rng.getrandbits(62), 0, 0, 1, PACKET_BYTES, 1, 0)
            return head + packet, head + packet
        case "net":
            everything = int(PacketFilter.PROMISCUOUS)
            frames = [bytes(_FRAME_BYTES)] * 4
            return Open(1500, everything, 1 << 16).encode(), Transmit(frames).encode(), Receive().encode()
        case "serial":
            return Write(1, bytes(80)).encode(), Write(2, bytes(80)).encode(), Read(0).encode()
        case _:
            request = bytes(64) + bytes(MARK_BYTES)
            return request, request


def caller_that_does_not_listen(scene: Scene, tally: Tally) -> None:
    """Requests, until neither side's buffer has room for more; then it stands, and its connection with it."""
    first, *others = _good_calls(scene)
    with _connect(scene) as sock:
        sock.setblocking(False)
        request, again = first, scene.rng.choice(others)
        while scene.goes_on():
            try:
                sock.send(request, socket.MSG_NOSIGNAL)
                request = again
                tally.made += 1
            except BlockingIOError:
                tally.evidence = f"{tally.made} calls, no reply read: no room for more"
                tally.came_of_it("full")
                scene.sleep_out()
                return
            except OSError:
                tally.came_of_it("connection ended")
                return
        tally.came_of_it("full")
