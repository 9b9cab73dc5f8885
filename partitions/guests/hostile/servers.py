"""Attacks on a server that is called by messages: what it receives is no message, or nobody takes what it sends."""

import os
import socket
import struct
from typing import Final

from partitions.custom.wire import MARK_BYTES
from partitions.guests.hostile.scene import Scene
from partitions.guests.hostile.tally import Tally
from partitions.stack.vmbus_ports import message_connection
from partitions.storage.message_wire import HEAD_BYTES, MESSAGE_DATA_BYTES_MAX
from partitions.storage.protocol import PACKET_BYTES

_ANSWER_S: Final = 0.02
_DESCRIPTORS: Final = 16
_HEAD: Final = struct.Struct("<QIIHHHH")


def _connect(scene: Scene) -> socket.socket:
    """A connection of our own to the server, in the place of the one before."""
    number = list(scene.partition.devices).index(str(scene.args["device"]))
    return socket.socket(
        fileno=scene.partition.hypercalls.claim_connection_endpoint(message_connection(number))
    )


def garbage_to_a_server(scene: Scene, tally: Tally) -> None:
    rng, kind = scene.rng, scene.args["kind"]
    sock = _connect(scene)
    eventfds = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(_DESCRIPTORS)]
    try:
        while scene.goes_on():
            sock.settimeout(_ANSWER_S)
            data = _garbage_for_disk(scene) if kind == "disk" else rng.randbytes(rng.choice((0, 1, 9, 300)))
            fds = eventfds if rng.random() < 0.3 else []
            try:
                if fds:
                    socket.send_fds(sock, [data], fds)
                else:
                    sock.send(data, socket.MSG_NOSIGNAL)
                tally.made += 1
                tally.evidence = f"{len(data)} bytes with {len(fds)} descriptors were taken"
                tally.came_of_it("answered" if sock.recv(1 << 16) else "connection ended")
                if not data:
                    raise ConnectionResetError
            except TimeoutError:
                tally.came_of_it("not taken")
            except OSError:
                tally.came_of_it("connection ended")
                sock.close()
                sock = _connect(scene)
    finally:
        sock.close()
        for fd in eventfds:
            os.close(fd)


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


def caller_that_does_not_listen(scene: Scene, tally: Tally) -> None:
    """Requests, until neither side's buffer has room for more; then it stands, and its connection with it."""
    rng, kind = scene.rng, scene.args["kind"]
    with _connect(scene) as sock:
        sock.setblocking(False)
        if kind == "disk":
            packet = struct.pack("<I", 9).ljust(PACKET_BYTES, b"\0")  # which version
            request = _HEAD.pack(rng.getrandbits(62), 0, 0, 1, PACKET_BYTES, 1, 0) + packet
        else:
            request = bytes(64) + bytes(MARK_BYTES)
        while scene.goes_on():
            try:
                sock.send(request, socket.MSG_NOSIGNAL)
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
