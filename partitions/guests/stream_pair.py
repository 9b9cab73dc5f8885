"""Two guests and streams between them, measured: one asks, the other sends back what comes or takes it in.

    asker:    args = { target = "answerer", loads = [{ bytes = 64 }, { bytes = 65536, flow = true }], seconds = 0.3 }
    answerer: no args; both have streams = true

A load has a connection of its own, whose first byte says what it is. An exchange is a piece there and the same back,
compared. A flow goes one way, and the answerer says at its end how many bytes arrived.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

from bus.native import monotonic_ns
from bus.trace import Hop
from partitions.child import Partition
from partitions.measuring import Load, stamps_of
from partitions.streams.guest import Stream, StreamError

PORT: Final = 5000
SECONDS: Final = 0.3
_EXCHANGES, _FLOWS, _OVER = b"x", b"f", b"."
_COUNT_BYTES: Final = 8
_PATIENCE_S: Final = 60.0
_AGAIN_S: Final = 0.05


def name_of(plan: Mapping[str, Any]) -> str:
    return f"{plan['bytes']}-byte pieces of a stream, {'one way' if plan.get('flow') else 'there and back'}"


def _connect(partition: Partition, kind: bytes) -> Stream:
    """Once the other guest listens."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            stream = partition.connect_stream(str(partition.args["target"]), PORT)
            stream.send_all(kind, _PATIENCE_S)
            return stream
        except StreamError:
            if time.monotonic() > until:
                raise
            time.sleep(_AGAIN_S)


def _whole(stream: Stream, size: int) -> bytes:
    """So many bytes, or fewer at the end of the stream."""
    data = stream.receive_some(size, _PATIENCE_S)
    while data and len(data) < size and (more := stream.receive_some(size - len(data), _PATIENCE_S)):
        data += more
    return data


def _exchange(stream: Stream, size: int, seconds: float, load: Load) -> None:
    now, record, number, stamp = monotonic_ns, load.latency.record, 0, stamps_of(stream)
    deadline = now() + int(seconds * 1e9)
    while now() < deadline:
        number += 1
        piece = number.to_bytes(size, "little")
        begun = now()
        if stamp is not None:
            stamp(Hop.CALL)
        stream.send_all(piece, _PATIENCE_S)
        answer = _whole(stream, size)
        if stamp is not None:
            stamp(Hop.RETURN)
        record(now() - begun)
        load.mismatches += answer != piece


def _flow(stream: Stream, size: int, seconds: float, load: Load) -> None:
    now, record = monotonic_ns, load.latency.record
    piece = bytes(range(256)) * (size // 256)
    deadline = now() + int(seconds * 1e9)
    while (begun := now()) < deadline:
        stream.send_all(piece, _PATIENCE_S)
        record(now() - begun)
    stream.send_eof(_PATIENCE_S)
    arrived = int.from_bytes(_whole(stream, _COUNT_BYTES), "little")
    load.mismatches += arrived != stream.bytes_sent - len(_FLOWS)
    load.operations = arrived // size


def ask(partition: Partition) -> int:
    """args: target (a partition), loads (tables: bytes; of a flow, a multiple of 256), seconds (of each)."""
    args = partition.args
    seconds, mismatches = float(args.get("seconds", SECONDS)), 0
    for plan in args["loads"]:
        size, flows = int(plan["bytes"]), bool(plan.get("flow"))
        if size < 8 or (flows and size % 256):
            raise ValueError(f"bytes = {size}: at least 8, and of a flow a multiple of 256, is wanted")
        with _connect(partition, _FLOWS if flows else _EXCHANGES) as stream:
            with partition.measuring(name_of(plan), transfer_bytes=size) as load:
                (_flow if flows else _exchange)(stream, size, seconds, load)
            mismatches += load.mismatches
    _connect(partition, _OVER).close()
    return 1 if mismatches else 0


def answer(partition: Partition) -> int:
    """Until the asker says that it is over."""
    with partition.listen_stream(PORT) as listener:
        while True:
            with listener.accept(_PATIENCE_S) as stream:
                match stream.receive_some(1, _PATIENCE_S):
                    case b"x":
                        while data := stream.receive_some(timeout_s=_PATIENCE_S):
                            stream.send_all(data, _PATIENCE_S)
                    case b"f":
                        count = 0
                        while data := stream.receive_some(timeout_s=_PATIENCE_S):
                            count += len(data)
                        stream.send_all(count.to_bytes(_COUNT_BYTES, "little"), _PATIENCE_S)
                    case _:
                        return 0
