"""A guest of `partvisor bench ladder`: measures one thing after the other, as it is told.

Two files: `orders`, a line of JSON each; `answers`, where it says what came of them. An order is carried out in three
steps, so that whoever asks can read what every process has used in between:

    {"what": "echo", "device": "echo0", "by": "ring", "payload_bytes": 64, ...}  ->  {"ready": true}
    {"seconds": 0.1, "rate_per_s": null}                           ->  {"latency": "...", "exchanges": 9, ...}
    {}                                                             ->  {"closed": true}

What went wrong comes back as {"error": "..."}, and the next order is waited for.

args: pair = [names] of links and switches to the guest that runs `ladder_partner`; all of them are opened first. The
partner is told of each order too, and serves until we send OVER.
"""

import contextlib
import json
import os
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from bus.native import Channel, Histogram
from partitions.child import Partition
from partitions.echo.driver import ECHO_KEY
from partitions.guests.ladder_parent import CHILD_SINT, CHILD_VP, MESSAGE_TYPE, TO_PARENT
from partitions.links.peer import lend_link, open_switch
from partitions.vp.machine_code import MachineCode
from partitions.vp.port_io import PortIo
from runtime.abi import HypercallError
from runtime.measure.exchanges import Client, Measured

_READ_BYTES: Final = 1 << 16
_SCRATCH: Final = 0x3FF  # a register of the first UART that keeps what is written to it
_LOAD_ADDRESS: Final = 0x7C00
# mov dx, 3FF; again: in al, dx; cmp al, 5A; jne stop; dec ecx; jnz again; stop: hlt
_LOOP: Final = bytes.fromhex("baff03 ec 3c5a 7504 6649 75f7 f4")
_SCRATCH_VALUE: Final = 0x5A
_CODE_BATCH: Final = 50  # accesses between two looks at the clock
_CODE_RAM_BYTES: Final = 1 << 20
_CONNECT_S_MAX: Final = 10.0
_CONNECT_POLL_S: Final = 0.01
OVER: Final = b"\xff" * 8  # to the partner: no request begins so

Order = Mapping[str, Any]


class Prepared(Protocol):
    """What measures, once everything is open."""

    def warm_up(self) -> None: ...
    def closed(self, seconds: float) -> Measured: ...
    def open(self, seconds: float, rate_per_s: float) -> Measured: ...


class _Calls(Client):
    """Without a payload that a server could prove to have seen: the result of each call is compared."""

    def __init__(self, call: Callable[[], bool]) -> None:
        super().__init__(lambda request: request if call() else b"", 32, 0)

    def check(self) -> None:
        """There is nothing to be answered but the result."""


class _Code:
    """IN by machine code: from one access to the next, with the few instructions between."""

    def __init__(self, partition: Partition, machine: MachineCode) -> None:
        self._machine, self._latency, self._last = machine, Histogram(), 0
        PortIo(partition).outb(_SCRATCH, _SCRATCH_VALUE)
        machine.memory[_LOAD_ADDRESS : _LOAD_ADDRESS + len(_LOOP)] = _LOOP
        machine.on_access = self._note

    def _note(self) -> None:
        now = time.monotonic_ns()
        if self._last:
            self._latency.record(now - self._last)
        self._last = now

    def warm_up(self) -> None:
        self.closed(0)

    def closed(self, seconds: float) -> Measured:
        self._latency, count = Histogram(), 0
        begin = time.monotonic()
        while not count or time.monotonic() - begin < seconds:
            self._last = 0  # the way into the loop is no access
            self._machine.set_register("ecx", _CODE_BATCH)
            self._machine.run(_LOAD_ADDRESS)
            if self._machine.register("ecx"):
                raise ValueError("an access did not read what the register holds")
            count += _CODE_BATCH
        return Measured(self._latency, count, time.monotonic() - begin)

    def open(self, seconds: float, rate_per_s: float) -> Measured:
        raise ValueError("machine code runs in a loop of its own")


class Orders:
    """Lines of JSON, and the answers to them."""

    def __init__(self, partition: Partition) -> None:
        self._orders, self._answers = partition.files["orders"], partition.files["answers"]
        self._unread = b""

    def next(self) -> Order:
        while b"\n" not in self._unread:
            self._unread += os.read(self._orders, _READ_BYTES)
        line, _, self._unread = self._unread.partition(b"\n")
        order: Order = json.loads(line)
        return order

    def answer(self, answer: Order) -> None:
        os.write(self._answers, (json.dumps(answer) + "\n").encode())

    def refuse(self, error: Exception) -> None:
        self.answer({"error": " ".join(f"{type(error).__name__}: {error}".split())})


class Load:
    def __init__(self, partition: Partition, pair: Mapping[str, Channel]) -> None:
        self._partition, self._pair = partition, pair
        self._code: MachineCode | None = None
        self._orders = Orders(partition)

    def run(self) -> None:
        while True:
            order = self._orders.next()
            try:
                with contextlib.ExitStack() as stack:
                    prepared = self._prepare(order, stack)
                    prepared.warm_up()
                    self._orders.answer({"ready": True})
                    how = self._orders.next()
                    rate = how["rate_per_s"]
                    seconds = how["seconds"]
                    done = prepared.closed(seconds) if rate is None else prepared.open(seconds, rate)
                    latency = b64encode(done.latency.pack()).decode()
                    self._orders.answer(
                        {"latency": latency, "exchanges": done.exchanges, "seconds": done.seconds}
                    )
                    self._orders.next()
            except Exception as error:  # whatever it is, the one who asked wants to know
                self._orders.refuse(error)
            else:
                self._orders.answer({"closed": True})

    # -- what can be measured

    def _prepare(self, order: Order, stack: contextlib.ExitStack) -> Prepared:
        size = int(order["payload_bytes"])
        match order["what"]:
            case "echo":
                echo = stack.enter_context(self._partition.open_echo(order["device"]))
                ways = {"ring": echo.exchange_in_band, "pages": echo.exchange_pages, "either": echo.exchange}
                return Client(ways[order["by"]], size, ECHO_KEY)
            case "pair":
                return Client(self._partner(stack, order["device"]), size, ECHO_KEY)
            case "disk":
                return self._disk(stack, order["device"], size)
            case "message":
                return Client(self._message(), size, ECHO_KEY)
            case "hypercall":
                call, mine = self._partition.hypercalls.get_partition_id, self._partition.id
                return _Calls(lambda: call() == mine)
            case "port":
                io = stack.enter_context(PortIo(self._partition))
                io.outb(_SCRATCH, _SCRATCH_VALUE)
                return _Calls(lambda: io.inb(_SCRATCH) == _SCRATCH_VALUE)
            case "machine code":
                if self._code is None:
                    self._code = MachineCode(self._partition, _CODE_RAM_BYTES)
                return _Code(self._partition, self._code)
            case what:
                raise ValueError(f"{what!r} cannot be measured")

    def _disk(self, stack: contextlib.ExitStack, device: str, size: int) -> Client:
        """Reads of one block. Every one is compared with what was written there at first."""
        disk = stack.enter_context(self._partition.open_disk(device))
        block = os.urandom(size)
        disk.write(0, block)
        queue = stack.enter_context(disk.open_queue(1, size))
        view, read = queue.views[0], queue.read

        def is_whole() -> bool:
            read(0)
            return bytes(view) == block

        return _Calls(is_whole)

    def _partner(self, stack: contextlib.ExitStack, device: str) -> Callable[[bytes], bytes]:
        """To the other guest and back. It is told when this is over, whatever becomes of it."""
        channel, identity = self._pair[device], 0
        stack.callback(channel.send, OVER)

        def exchange(request: bytes) -> bytes:
            nonlocal identity
            identity += 1
            return channel.exchange(request, identity)

        return exchange

    def _message(self) -> Callable[[bytes], bytes]:
        """To our parent and back: a message each way, through the hypervisor."""
        vp, call = self._partition.vps[CHILD_VP], self._partition.hypercalls
        vp.enable((CHILD_SINT,))
        messages = self._messages(CHILD_VP)

        def exchange(request: bytes) -> bytes:
            call.post_message(TO_PARENT, MESSAGE_TYPE, request)
            return next(messages)

        deadline = time.monotonic() + _CONNECT_S_MAX
        while True:
            try:
                exchange(b"")  # begin to count anew
                return exchange
            except HypercallError:  # our parent has not connected us yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(_CONNECT_POLL_S)

    def _messages(self, index: int) -> Iterator[bytes]:
        vp = self._partition.vps[index]
        while True:
            for _, _, payload in vp.take_messages(CHILD_SINT):
                yield payload
            vp.wait()


def main(partition: Partition) -> None:
    """Until it is told to end. Files: orders and answers."""
    with contextlib.ExitStack() as opened:
        pair = {}
        for name in partition.args.get("pair", ()):
            opening = open_switch if name.startswith("switch") else lend_link
            pair[name] = opened.enter_context(opening(partition, name))
        Load(partition, pair).run()
