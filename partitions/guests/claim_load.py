"""The two guests of `partvisor bench claim`: one asks, the other answers, over links and switches, as they are told.

Files: `orders`, a line of JSON each; `answers`. Who asks (role = "client") is told {"device", "payload_bytes",
"seconds"} and answers with its latencies; who answers is told {"device"} and serves there until the client says that
it is over.
"""

import contextlib
import json
import os
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final

from bus.native import Channel
from partitions.child import Partition
from partitions.links.peer import borrow_link, lend_link, open_switch
from runtime.measure.exchanges import Client, make_answer

KEY: Final = 0  # both ends are ours
_OVER: Final = b"\xff" * 8  # no request begins so
_READ_BYTES: Final = 1 << 16


class Orders:
    def __init__(self, partition: Partition) -> None:
        self._orders, self._answers = partition.files["orders"], partition.files["answers"]
        self._unread = b""

    def next(self) -> Mapping[str, Any]:
        while b"\n" not in self._unread:
            self._unread += os.read(self._orders, _READ_BYTES)
        line, _, self._unread = self._unread.partition(b"\n")
        order: Mapping[str, Any] = json.loads(line)
        return order

    def answer(self, **fields: object) -> None:
        os.write(self._answers, (json.dumps(fields) + "\n").encode())


def main(partition: Partition) -> None:
    """args: role, and devices = [names] that are all opened first, in this order."""
    is_client, orders = partition.args["role"] == "client", Orders(partition)
    with contextlib.ExitStack() as opened:
        channels: dict[str, Channel] = {}
        for name in partition.args["devices"]:
            if name.startswith("switch"):
                opening = open_switch(partition, name)
            else:
                opening = lend_link(partition, name) if is_client else borrow_link(partition, name)
            channels[name] = opened.enter_context(opening)
        orders.answer(ready=True)
        while True:
            order = orders.next()
            channel = channels[order["device"]]
            try:
                answer = _ask(channel, order) if is_client else _serve(channel)
            except Exception as error:  # whatever it is, the one who asked wants to know
                answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
            orders.answer(**answer)


def _ask(channel: Channel, order: Mapping[str, Any]) -> dict[str, Any]:
    identity = 0

    def exchange(request: bytes) -> bytes:
        nonlocal identity
        identity += 1
        return channel.exchange(request, identity)

    client = Client(exchange, order["payload_bytes"], KEY)
    try:
        client.warm_up()
        measured = client.closed(order["seconds"])
    finally:
        channel.send(_OVER)
    latency = b64encode(measured.latency.pack()).decode()
    return {"latency": latency, "exchanges": measured.exchanges}


def _serve(channel: Channel) -> dict[str, Any]:
    answer, reply, identity, count = make_answer(KEY), None, 0, 0
    while True:
        packet = channel.reply_and_receive(reply, identity)
        assert packet is not None  # no timeout was given
        _, _, identity, request = packet
        if request == _OVER:
            channel.release()
            return {"served": count}
        reply = answer(request)
        count += 1
