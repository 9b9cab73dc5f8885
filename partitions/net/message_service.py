"""The server's ends of a client that has a network without rings: one for its calls, one for what is to reach it.

The first opens the port at the switch, and closes it when its client leaves. What the client transmits is forwarded in
its own thread, as with rings; a call without a reply is not made again, so a frame may be lost, and never comes twice.
"""

import socket

from bus.seam import Seam, Step
from partitions.calls.call_service import CallService
from partitions.calls.serving import reply, wait_beside
from partitions.net.frames import ETHERNET_HEADER_BYTES
from partitions.net.message_port import MessagePort
from partitions.net.message_wire import (
    MESSAGE_BYTES_MAX,
    Call,
    MalformedCall,
    Open,
    Opened,
    Receive,
    Refusal,
    Refused,
    Transmit,
    Transmitted,
    decode_call,
)
from partitions.net.switch import LearningSwitch


class _Service(CallService[Call]):
    """Nothing that it is told is ever half done."""

    def __init__(self, port: MessagePort, seam: Seam) -> None:
        super().__init__(MESSAGE_BYTES_MAX, decode_call, MalformedCall)
        self._port, self._seam = port, seam


class TransmitService(_Service):
    """Of a client's first connection."""

    def __init__(self, port: MessagePort, switch: LearningSwitch, seam: Seam) -> None:
        super().__init__(port, seam)
        self._switch = switch
        self.frames_in = self.errors = 0

    def serve_one(self, sock: socket.socket) -> bool:
        call = self._take(sock)
        answer: Opened | Transmitted | Refused
        match call:
            case Open():
                answer = self._open(call)
            case Transmit():
                answer = self._transmit(call)
            case _:
                self.malformed += call is not None
                self.let_go()
                return False
        if reply(sock, answer.encode()):
            return True
        self.let_go()
        return False

    def _open(self, call: Open) -> Opened:
        mtu, link_up = self._port.open(call)
        self._switch.join(self._port)
        return Opened(self._port.mac, link_up, mtu)

    def _transmit(self, call: Transmit) -> Transmitted | Refused:
        if not self._port.is_open:
            return Refused(Refusal.NOT_OPEN)
        longest, good = self._port.frame_bytes_max, []
        for frame in call.frames:
            if not ETHERNET_HEADER_BYTES <= len(frame) <= longest:
                break
            good.append(memoryview(frame))
        self.busy = True
        try:
            self._seam.passing(Step.TAKE)
            if good:
                self.frames_in += len(good)
                self._switch.forward(self._port, good)
            self._seam.passing(Step.EXECUTE)
        finally:
            self.busy = False
        if len(good) == len(call.frames):
            return Transmitted()
        self.errors += 1
        return Refused(Refusal.INVALID_FRAME)

    def let_go(self) -> None:
        """The client has left, or is left: its port goes."""
        self._switch.leave(self._port)
        self._port.close()

    def statistics(self) -> dict[str, int]:
        return {
            "requests": self.served,
            "errors": self.errors + self.malformed,
            "dropped": self._port.dropped,
            "frames_in": self.frames_in,
            "frames_out": self._port.frames,
        }


class ReceiveService(_Service):
    """Of a client's second connection."""

    def serve_one(self, sock: socket.socket) -> bool:
        call = self._take(sock)
        if not isinstance(call, Receive):
            self.malformed += call is not None
            return False
        while True:
            if not self._port.is_open:
                return reply(sock, Refused(Refusal.NOT_OPEN).encode())
            if (received := self._port.take()) is not None:
                return reply(sock, received.encode())
            if not wait_beside(sock, self._port.ready_fd, None):
                return False

    def statistics(self) -> dict[str, int]:
        return {"requests": self.served, "errors": self.malformed}
