"""Our own ring between two processes, with no machine around it."""

import mmap
import os
from typing import Final

from bus.native import PAGE_BYTES, Channel, Waiting
from runtime.config.model import WaitingKind
from runtime.measure.transport import Answer, Transport

RING_BYTES: Final = 256 << 10  # data area, each way
_SPAN: Final = PAGE_BYTES + RING_BYTES


class RingTransport(Transport):
    """A packet out, a packet back: no ids, no completions, no dispatch."""

    name, group = "ring", "partvisor rings"

    def __init__(self, waiting: WaitingKind) -> None:
        self.waiting = waiting

    def open(self, payload_bytes: int) -> None:
        self._memory = mmap.mmap(-1, 2 * _SPAN)  # shared, and zero: an empty ring each way
        self._bells = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)

    def _channel(self, mine: int) -> Channel:
        return Channel(
            self._memory,
            outgoing_offset=mine * _SPAN,
            outgoing_bytes=RING_BYTES,
            incoming_offset=(1 - mine) * _SPAN,
            incoming_bytes=RING_BYTES,
            signal_fd=self._bells[1 - mine],
            wait_fd=self._bells[mine],
            waiting=Waiting(self.waiting),
        )

    def connect(self) -> None:
        self._client = self._channel(0)

    def serve(self, answer: Answer) -> None:
        channel = self._channel(1)
        while True:
            packet = channel.receive()
            assert packet is not None  # no timeout was given
            channel.send(answer(packet[3]))

    def exchange(self, request: bytes) -> bytes:
        self._client.send(request)
        packet = self._client.receive()
        assert packet is not None
        return packet[3]

    def close(self) -> None:
        for fd in self._bells:
            os.close(fd)


class RingExchangeTransport(RingTransport):
    """A request with its own id, and its completion: what a VMBus device does, without the device's protocol."""

    name = "ring-exchange"

    def __init__(self, waiting: WaitingKind) -> None:
        super().__init__(waiting)
        self._id = 0

    def serve(self, answer: Answer) -> None:
        reply_and_receive = self._channel(1).reply_and_receive
        packet = reply_and_receive(None, 0)
        while True:
            assert packet is not None
            packet = reply_and_receive(answer(packet[3]), packet[2])

    def exchange(self, request: bytes) -> bytes:
        self._id += 1
        return self._client.exchange(request, self._id)
