"""Honest guests that work without pause, check every byte, and note in a file how far they were at each instant.

Each `main` of a device class sends what it can recognize again and compares what comes back. Who attacks beside them
can be held against their pace: the file says it for any window of time.

args: device. File: `samples`, records of {u64 ns of CLOCK_MONOTONIC, u64 exchanges}. SIGTERM: enough.
"""

import os
import signal
import struct
import time
from collections.abc import Callable
from typing import Final

from bus.native import RingClosed, RingError
from partitions.child import Partition
from partitions.guests.net_load import ETHERTYPE
from partitions.links.peer import borrow_link, lend_link
from partitions.net.adapter import NetAdapter
from partitions.vp.port_io import PortIo
from partitions.vsc.conversation import VmbusError

SAMPLE_NS: Final = 2_000_000
PATIENCE_S: Final = 20.0  # for any answer; a busy host is no finding
_SAMPLE: Final = struct.Struct("<QQ")
_HELLO, _ASK, _REPLY = b"h", b"q", b"r"
_REQUEST_BYTES: Final = 256
_FRAMES: Final = 8
_FRAME_BYTES: Final = 256
FORGED: Final = (
    b"hostile!"  # begins what a hostile guest sends in others' names: the switch lets none of it through
)
_LOST_S: Final = 0.1  # a frame that has not come back by then is lost
_PIECE_BYTES: Final = 256
_SCRATCH: Final = 0x3FF  # a UART's register that only keeps what it was told

Step = Callable[[int], tuple[int, int]]
"""One exchange, numbered: how many were done, and how many of them were wrong."""


def _work(partition: Partition, step: Step) -> int:
    """Until SIGTERM. 1: something was wrong."""
    samples, done, wrong, number, noted_ns = partition.files["samples"], 0, 0, 0, 0
    over: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: over.append(1))
    partition.report("neighbour_ready")
    while not over:
        number += 1
        exchanges, bad = step(number)
        done += exchanges
        wrong += bad
        now = time.monotonic_ns()
        if now - noted_ns >= SAMPLE_NS:
            os.write(samples, _SAMPLE.pack(now, done))
            noted_ns = now
    partition.report("neighbour_done", exchanges=done, wrong=wrong)
    return int(wrong > 0)


def _content(number: int, size: int) -> bytes:
    """Of exchange `number`: none is like another, and its first byte is 0, which an echo returns as it is."""
    return (b"\0" + number.to_bytes(7, "big")) * (size // 8)


def custom(partition: Partition) -> int:
    """With an echo device."""
    with partition.open_custom(str(partition.args["device"])) as device:

        def step(number: int) -> tuple[int, int]:
            request = _content(number, _REQUEST_BYTES)
            return 1, device.exchange(request) != request

        return _work(partition, step)


def serial(partition: Partition) -> int:
    """With a line that comes back to us."""
    with partition.open_serial(str(partition.args["device"])) as line:

        def step(number: int) -> tuple[int, int]:
            data = _content(number, _PIECE_BYTES)
            line.write(data, PATIENCE_S)
            back = b""
            while len(back) < len(data) and (piece := line.read(len(data) - len(back), PATIENCE_S)):
                back += piece
            return 1, back != data

        return _work(partition, step)


def ports(partition: Partition) -> int:
    """With the UART that our parent emulates for us."""
    with PortIo(partition) as io:

        def step(number: int) -> tuple[int, int]:
            value = number & 0xFF
            io.outb(_SCRATCH, value)
            return 2, io.inb(_SCRATCH) != value

        return _work(partition, step)


def net(partition: Partition) -> int:
    """With `net_mirror` on the same network. A frame may be lost; one that is not as it was sent is wrong."""
    with partition.open_net(str(partition.args["device"])) as nic:
        other = _find_mirror(nic)

        def step(number: int) -> tuple[int, int]:
            first = number * _FRAMES
            frames = {
                index: other + nic.mac + ETHERTYPE + _ASK + _content(index, _FRAME_BYTES)
                for index in range(first, first + _FRAMES)
            }
            nic.send(list(frames.values()), PATIENCE_S)
            wanted, back, wrong = len(frames), 0, 0
            ends = time.monotonic() + _LOST_S
            while wanted and (left := ends - time.monotonic()) > 0:
                for frame in nic.receive(_FRAMES, left):
                    wrong += frame[14:22] == FORGED
                    if frame[6:12] != other or frame[12:15] != ETHERTYPE + _REPLY:
                        continue  # whoever else is there
                    index = int.from_bytes(frame[16:23], "big")
                    sent = frames.pop(index, None)
                    if sent is None:  # after it was taken for lost; anything else is not a number of ours
                        wrong += not 0 < index < first
                        continue
                    wanted -= 1
                    back += 1
                    wrong += frame[15:] != sent[15:]
            return back, wrong

        return _work(partition, step)


def _find_mirror(nic: NetAdapter) -> bytes:
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        nic.send([b"\xff" * 6 + nic.mac + ETHERTYPE + _HELLO + bytes(45)], PATIENCE_S)
        for frame in nic.receive(16, _LOST_S):
            if frame[12:15] == ETHERTYPE + _REPLY and frame[:6] == nic.mac:
                return frame[6:12]
    raise TimeoutError("no mirror answers on this network")


def net_mirror(partition: Partition) -> None:
    """Sends back what is asked of it, and nothing that anybody else says."""
    with partition.open_net(str(partition.args["device"])) as nic:
        while True:
            back = [
                frame[6:12] + nic.mac + ETHERTYPE + _REPLY + frame[15:]
                for frame in nic.receive(64, None)
                if frame[12:14] == ETHERTYPE and frame[14:15] in (_HELLO, _ASK) and len(frame) >= 60
            ]
            if back:
                nic.send(back, PATIENCE_S)


def link(partition: Partition) -> int:
    """With `link_mirror` at the other end."""
    with lend_link(partition, str(partition.args["device"])) as channel:

        def step(number: int) -> tuple[int, int]:
            request = _content(number, _REQUEST_BYTES)
            return 1, channel.exchange(request, number) != request

        return _work(partition, step)


def link_mirror(partition: Partition) -> None:
    """Sends back what comes; takes the link again when the other end has lost it, as long as it is offered."""
    name = str(partition.args["device"])
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        try:
            with borrow_link(partition, name) as channel:
                ends = time.monotonic() + PATIENCE_S
                reply, identity = None, 0
                while (packet := channel.reply_and_receive(reply, identity)) is not None:
                    reply, identity = packet[3], packet[2]
                    ends = time.monotonic() + PATIENCE_S
        except RingClosed:
            continue
        except RingError as error:  # who is there breaks the ring; a channel of ours is lost, and no more
            partition.report("neighbour_channel_broken", reason=str(error)[:100])
        except VmbusError:
            time.sleep(0.01)
