"""One of the two processes of a ring measurement: `python -m runtime.measure.ring_peer JSON`; prints JSON at the end.

Exchanges are timed in blocks of EXCHANGES_A_BLOCK, so that reading the clock does not count. Loops are written out
where a call a round would be part of what is measured, and begin with `while True`: CPython 3.11 specializes a function
that is entered once only when its loop ends in an unconditional jump, which a `while condition` does not. That is a
fifth of an exchange.
"""

import json
import mmap
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Final, TypeAlias

from bus.native import PAGE_BYTES, Channel, RingFull, Waiting, crc32c

EXCHANGES_A_BLOCK: Final = 16
WARM_UP_NS: Final = 50_000_000
SMALL_BYTES: Final = 64
BATCH_PACKETS: Final = 256
IN_BAND: Final = 6
STOP_ID: Final = 2**64 - 1
PACKET_OVERHEAD_BYTES: Final = 24

Answer: TypeAlias = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTask:
    """What one process is to do, as it travels on its command line."""

    role: str  # "client" begins; "server" answers, or receives
    kind: str  # see _CLIENTS
    waiting: str
    cpu: int
    realtime: bool
    memory_fd: int
    ring_bytes: int  # data area, each way
    bells: tuple[int, int]  # the client's doorbell, the server's
    seconds: float  # how long exchanges are timed
    packets: int  # how many packets a stream has
    payload_bytes: int

    def argument(self) -> str:
        return json.dumps(asdict(self))


def channel_of(task: PeerTask) -> Channel:
    header_and_data = PAGE_BYTES + task.ring_bytes
    memory = mmap.mmap(task.memory_fd, 2 * header_and_data)
    is_client = task.role == "client"
    mine, theirs = task.bells if is_client else task.bells[::-1]
    return Channel(
        memory,
        outgoing_offset=0 if is_client else header_and_data,
        outgoing_bytes=task.ring_bytes,
        incoming_offset=header_and_data if is_client else 0,
        incoming_bytes=task.ring_bytes,
        signal_fd=theirs,
        wait_fd=mine,
        waiting=Waiting(task.waiting),
    )


def timed_blocks(seconds: float, block: Callable[[], None]) -> Answer:
    """Percentiles of the time one exchange takes, each sample being the mean of a block."""
    end = perf_counter_ns() + WARM_UP_NS
    while perf_counter_ns() < end:
        block()
    samples: list[int] = []
    end = perf_counter_ns() + int(seconds * 1e9)
    before = perf_counter_ns()
    while before < end:
        block()
        after = perf_counter_ns()
        samples.append(after - before)
        before = after
    samples.sort()
    answer: Answer = {"exchanges": len(samples) * EXCHANGES_A_BLOCK}
    for percent in (10, 50, 90, 99):
        answer[f"p{percent}_ns"] = samples[(len(samples) - 1) * percent // 100] / EXCHANGES_A_BLOCK
    return answer


def raw_client(task: PeerTask) -> Answer:
    """A 64-byte packet out and one back: no completion, no dispatch."""
    channel = channel_of(task)
    send, receive_into = channel.send, channel.receive_into
    payload, buffer, rounds = bytes(SMALL_BYTES), bytearray(SMALL_BYTES), range(EXCHANGES_A_BLOCK)

    def block() -> None:
        for _ in rounds:
            send(payload)
            receive_into(buffer)

    answer = timed_blocks(task.seconds, block)
    channel.send(b"", STOP_ID)
    return answer


def raw_server(task: PeerTask) -> Answer:
    channel = channel_of(task)
    send, receive_into = channel.send, channel.receive_into
    buffer = bytearray(SMALL_BYTES)
    while True:
        if not receive_into(buffer):  # the last packet is empty
            return {}
        send(buffer)


def full_client(task: PeerTask) -> Answer:
    """A request with its own id, a Python function found by packet type on the other side, and its completion."""
    channel = channel_of(task)
    exchange, payload = channel.exchange, bytes(SMALL_BYTES)
    next_id = 0

    def block() -> None:
        nonlocal next_id
        for transaction_id in range(next_id, next_id + EXCHANGES_A_BLOCK):
            exchange(payload, transaction_id)
        next_id += EXCHANGES_A_BLOCK

    answer = timed_blocks(task.seconds, block)
    channel.send(b"", STOP_ID)
    return answer


def full_server(task: PeerTask) -> Answer:
    channel = channel_of(task)

    def handle(data: bytes) -> bytes:
        return data

    handlers = {IN_BAND: handle}
    answer = channel.reply_and_receive
    packet = answer(None, 0)
    while True:
        assert packet is not None
        kind, _, transaction_id, data = packet
        if transaction_id == STOP_ID:
            return {}
        packet = answer(handlers[kind](data), transaction_id)


def eventfd_client(task: PeerTask) -> Answer:
    """Nothing but doorbells: two blocking eventfds, from Python."""
    mine, theirs = task.bells
    read, write, rounds = os.eventfd_read, os.eventfd_write, range(EXCHANGES_A_BLOCK)

    def block() -> None:
        for _ in rounds:
            write(theirs, 1)
            read(mine)

    answer = timed_blocks(task.seconds, block)
    write(theirs, 2)
    return answer


def eventfd_server(task: PeerTask) -> Answer:
    theirs, mine = task.bells
    read, write = os.eventfd_read, os.eventfd_write
    while True:
        if read(mine) != 1:
            return {}
        write(theirs, 1)


def _send_one(channel: Channel, task: PeerTask, payload: bytes) -> None:
    """Send one packet into a full ring: sleep until a good part of it is free, not for each packet."""
    room_bytes = max(PACKET_OVERHEAD_BYTES + len(payload), task.ring_bytes // 4)
    while True:
        channel.wait_writable(room_bytes)
        try:
            channel.send(payload)
            return
        except RingFull:
            continue


def one_by_one_client(task: PeerTask) -> Answer:
    channel = channel_of(task)
    send, payload, left = channel.send, bytes(task.payload_bytes), iter(range(task.packets))
    while True:
        try:
            for _ in left:
                send(payload)
        except RingFull:
            _send_one(channel, task, payload)
        else:
            return {}


def one_by_one_server(task: PeerTask) -> Answer:
    channel = channel_of(task)
    receive = channel.receive
    receive()
    start = perf_counter_ns()
    for _ in range(task.packets - 1):
        receive()
    return _stream_answer(channel, task, start)


def batch_client(task: PeerTask) -> Answer:
    channel = channel_of(task)
    batch = [bytes(task.payload_bytes)] * BATCH_PACKETS
    left = task.packets
    while True:
        sent = channel.send_many(batch if left >= BATCH_PACKETS else batch[:left])
        left -= sent
        if not left:
            return {}
        if sent < BATCH_PACKETS:
            channel.wait_writable(task.ring_bytes // 4)


def batch_server(task: PeerTask) -> Answer:
    channel = channel_of(task)
    receive, left = channel.receive_payloads, task.packets - 1
    receive(1)
    start = perf_counter_ns()
    while True:
        left -= len(receive(BATCH_PACKETS))
        if not left:
            return _stream_answer(channel, task, start)


def copy_server(task: PeerTask) -> Answer:
    channel = channel_of(task)
    receive_into, buffer = channel.receive_into, bytearray(task.payload_bytes)
    receive_into(buffer)
    start = perf_counter_ns()
    for _ in range(task.packets - 1):
        receive_into(buffer)
    return _stream_answer(channel, task, start)


def checksum_server(task: PeerTask) -> Answer:
    channel = channel_of(task)
    channel.receive_into(bytearray(task.payload_bytes))
    start = perf_counter_ns()
    for _ in range(task.packets - 1):
        channel.wait_readable()
        value = 0
        for view in channel.peek_views():
            value = crc32c(view, value)
        channel.release()
    return _stream_answer(channel, task, start)


def _stream_answer(channel: Channel, task: PeerTask, start_ns: int) -> Answer:
    seconds = (perf_counter_ns() - start_ns) / 1e9
    channel.release()
    packets = task.packets - 1
    return {"packets_per_s": packets / seconds, "bytes_per_s": packets * task.payload_bytes / seconds}


_CLIENTS: Final = {
    "raw": raw_client,
    "full": full_client,
    "eventfd": eventfd_client,
    "one_by_one": one_by_one_client,
    "batch": batch_client,
    "copy": one_by_one_client,
    "checksum": one_by_one_client,
}
_SERVERS: Final = {
    "raw": raw_server,
    "full": full_server,
    "eventfd": eventfd_server,
    "one_by_one": one_by_one_server,
    "batch": batch_server,
    "copy": copy_server,
    "checksum": checksum_server,
}


def queued_ns() -> int:
    """How long this process has stood in the run queue. Source: Linux Documentation/scheduler/sched-stats.rst."""
    return int(Path("/proc/self/schedstat").read_text().split()[1])


def main() -> None:
    values = json.loads(sys.argv[1])
    task = PeerTask(**{**values, "bells": tuple(values["bells"])})
    os.sched_setaffinity(0, {task.cpu})
    if task.realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    queued_before, start_ns = queued_ns(), perf_counter_ns()
    answer = (_CLIENTS if task.role == "client" else _SERVERS)[task.kind](task)
    answer["queued_share"] = (queued_ns() - queued_before) / (perf_counter_ns() - start_ns)
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
