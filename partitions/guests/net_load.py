"""Two guests on one network: one sends numbered frames, the other says what came of them.

Args of both: device. Of `send` also: seconds (or frames), frame_bytes, batch, verified. The receiver is found by a
broadcast; the last frames, sent until they are answered, say that there are no more.
"""

import struct
import time
from typing import Any, Final
from zlib import crc32

from partitions.child import Partition
from partitions.net.adapter import NetAdapter
from partitions.net.frames import ETHERNET_HEADER_BYTES

ETHERTYPE: Final = b"\x88\xb5"  # for experiments, by IEEE 802
_BROADCAST: Final = b"\xff" * 6
_HEAD: Final = struct.Struct("<cQI")  # what it is, its number, the checksum of the rest (0: none)
_HEADS: Final = ETHERNET_HEADER_BYTES + _HEAD.size
_ASK, _HERE, _NUMBERED, _END, _SUMMARY = b"?", b"!", b"#", b".", b"="
_PATIENCE_S: Final = 60.0
_AGAIN_S: Final = 0.1


def send(partition: Partition) -> int:
    """0: all that was asked for was sent, and the receiver has answered."""
    args = partition.args
    size, batch = int(args.get("frame_bytes", 64)), int(args.get("batch", 64))
    verified = bool(args.get("verified", True))
    with partition.open_net(str(args["device"]), **_buffers(args)) as nic:
        receiver = _exchange(nic, _BROADCAST, _ASK)[6:12]
        filler = bytes(range(256)) * (size // 256 + 1)
        body = filler[: size - _HEADS]
        head = receiver + nic.mac + ETHERTYPE
        number, limit = 0, int(args.get("frames", 1 << 62))
        began = time.monotonic()
        until = began + float(args.get("seconds", _PATIENCE_S))
        while number < limit and time.monotonic() < until:
            count = min(batch, limit - number)
            frames = [
                head + _HEAD.pack(_NUMBERED, index, crc32(body, index) if verified else 0) + body
                for index in range(number, number + count)
            ]
            if nic.send(frames, _PATIENCE_S) < count:
                return 1
            number += count
        nic.flush(_PATIENCE_S)
        took = time.monotonic() - began
        partition.report("net_sent", frames=number, bytes=number * size, seconds=took, **_counters(nic))
        _exchange(nic, receiver, _END)
    return 0


def receive(partition: Partition) -> int:
    """0: nothing that came was wrong, or came twice."""
    with partition.open_net(str(partition.args["device"]), **_buffers(partition.args)) as nic:
        partition.report("net_listens", mac=nic.mac.hex(":"))
        seen: set[int] = set()
        frames = total = wrong = twice = late = last = strangers = 0
        began = ended = 0.0
        highest = -1
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            for frame in nic.receive(1024, _AGAIN_S):
                if frame[12:14] != ETHERTYPE or len(frame) < _HEADS:
                    strangers += 1
                    continue
                kind, number, checksum = _HEAD.unpack_from(frame, ETHERNET_HEADER_BYTES)
                if kind == _NUMBERED:
                    ended = time.monotonic()
                    began = began or ended
                    frames += 1
                    total += len(frame)
                    if checksum and crc32(frame[_HEADS:], number) != checksum:
                        wrong += 1
                    if number > highest:
                        highest = number
                    elif number in seen:
                        twice += 1
                    else:
                        late += 1
                    seen.add(number)
                elif kind == _ASK:
                    nic.send([frame[6:12] + nic.mac + ETHERTYPE + _HEAD.pack(_HERE, 0, 0)], _PATIENCE_S)
                elif kind == _END:
                    nic.send([frame[6:12] + nic.mac + ETHERTYPE + _HEAD.pack(_SUMMARY, 0, 0)], _PATIENCE_S)
                    last += 1
            if last:
                break
        nic.flush(_PATIENCE_S)
        partition.report(
            "net_received",
            frames=frames,
            bytes=total,
            wrong=wrong,
            twice=twice,
            late=late,
            strangers=strangers,
            lost=highest + 1 - len(seen),
            seconds=ended - began,
            **_counters(nic),
        )
    return 1 if wrong or twice or not last else 0


def _buffers(args: Any) -> dict[str, Any]:
    return {key: int(args[key]) for key in ("receive_bytes", "send_bytes") if key in args}


def _counters(nic: NetAdapter) -> dict[str, int]:
    return {name: nic.statistics()[name] for name in ("errors", "dropped", "malformed", "unknown_ids")}


def _exchange(nic: NetAdapter, destination: bytes, kind: bytes) -> bytes:
    """Say it until somebody answers. TimeoutError: nobody does."""
    wanted = _HERE if kind == _ASK else _SUMMARY
    frame = destination + nic.mac + ETHERTYPE + _HEAD.pack(kind, 0, 0)
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        nic.send([frame], _PATIENCE_S)
        again = time.monotonic() + _AGAIN_S
        while (left := again - time.monotonic()) > 0:
            for answer in nic.receive(16, left):
                if answer[12:14] == ETHERTYPE and answer[14:15] == wanted:
                    return answer
    raise TimeoutError(f"nobody answers {kind!r}")
