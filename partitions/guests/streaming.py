"""Stream sockets: one that sends back in capitals what comes, one that asks it, a partition's or the host's.

Args of `serve`: port, connections (how many; then it ends). Of `ask`: target ("host", or a partition), port, bytes, and
chunk, how many at a time; it reports how long it took, and whether what came back was right.
"""

import threading
import time
from typing import Final
from zlib import crc32

from partitions.child import Partition
from partitions.streams.guest import Stream, StreamError, StreamTimeout

PORT: Final = 5000
_PATIENCE_S: Final = 60.0


def serve(partition: Partition) -> int:
    args, threads = partition.args, list[threading.Thread]()
    with partition.listen_stream(int(args.get("port", PORT))) as listener:
        partition.report("stream_listens", port=args.get("port", PORT))
        for _ in range(int(args.get("connections", 1))):
            try:
                stream = listener.accept(float(args.get("seconds", _PATIENCE_S)))
            except StreamTimeout:
                break
            thread = threading.Thread(target=_answer, args=(partition, stream))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
    return 0


def _answer(partition: Partition, stream: Stream) -> None:
    try:
        with stream:
            while data := stream.receive_some(timeout_s=_PATIENCE_S):
                stream.send_all(data.upper(), _PATIENCE_S)
            stream.send_eof()
        partition.report("stream_served", received=stream.bytes_received, sent=stream.bytes_sent)
    except StreamError as error:
        partition.report("stream_broken", error=f"{type(error).__name__}: {error}")


def ask(partition: Partition) -> int:
    args = partition.args
    total, chunk = int(args.get("bytes", 1 << 20)), int(args.get("chunk", 1 << 16))
    stream = _connect(partition, str(args["target"]), int(args.get("port", PORT)))
    piece = (b"abcdefghijklmnopqrstuvwxyz012345" * (chunk // 32 + 1))[:chunk]
    began = time.monotonic()

    def send() -> None:
        left = total
        while left:
            stream.send_all(piece[:left], _PATIENCE_S)
            left -= min(left, chunk)
        stream.send_eof()

    sender = threading.Thread(target=send)
    sender.start()
    with stream:
        found = received = 0
        while data := stream.receive_some(timeout_s=_PATIENCE_S):
            found, received = crc32(data, found), received + len(data)
        sender.join()
    took = time.monotonic() - began
    wanted, left = 0, total
    while left:
        wanted = crc32(piece[:left].upper(), wanted)
        left -= min(left, chunk)
    is_right = (found, received) == (wanted, total)
    partition.report("stream_asked", bytes=received, seconds=took, right=is_right)
    return 0 if is_right else 1


def _connect(partition: Partition, target: str, port: int) -> Stream:
    """Once it listens."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return partition.connect_stream(target, port)
        except StreamError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
