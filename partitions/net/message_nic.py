"""The guest's network adapter without rings: the same methods as `partitions.net.nic.Nic`. One thread.

Frames go to the server by calls, many in each, and wait there until we ask: one RECEIVE is always on its way.
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from partitions.calls.call_socket import Connect
from partitions.net.errors import NetClosedError, NetTimeoutError
from partitions.net.frames import ETHERNET_HEADER_BYTES, MTU_MAX, Frame
from partitions.net.handshake import USUAL_FILTER
from partitions.net.message_calls import Receiving, Transmitting
from partitions.net.message_wire import VLAN_TAG_BYTES, Open, Received, how_many_fit
from partitions.net.nic import SET_UP_TIMEOUT_S
from partitions.net.rndis import PacketFilter

_NS_PER_S: Final = 1_000_000_000


class MessageNic:
    """A NetAdapter: open, and at the switch."""

    def __init__(
        self,
        calls: Connect,
        receives: Connect,
        receive_bytes: int,
        *,
        mtu: int = MTU_MAX,
        promiscuous: bool = False,
        set_up_timeout_s: float = SET_UP_TIMEOUT_S,
    ) -> None:
        """NetClosedError: there is no server. NetTimeoutError: it does not answer.

        Args:
            calls, receives: the two connections.
            receive_bytes: of frames that the server keeps for us.
            mtu: the most that is wanted; there may be less.
        """
        wanted = PacketFilter.PROMISCUOUS if promiscuous else USUAL_FILTER
        asked = Open(min(mtu, MTU_MAX), int(wanted), receive_bytes)
        self._transmitting = Transmitting(calls, asked, set_up_timeout_s)
        try:
            self._receiving = Receiving(receives)
        except BaseException:
            self._transmitting.socket.destroy()
            raise
        self._frame_bytes_max = self.mtu + ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES
        self._received: deque[bytes] = deque()
        self.link_up = self._transmitting.opened.link_up
        self.frames_sent = self.frames_received = self.bytes_sent = self.bytes_received = 0
        self.link_changes = 0
        self._receiving.begin()

    @property
    def mac(self) -> bytes:
        return self._transmitting.opened.mac

    @property
    def mtu(self) -> int:
        """Bytes of a frame behind its Ethernet header."""
        return self._transmitting.opened.mtu

    @property
    def in_flight(self) -> int:
        return self._transmitting.in_flight

    def send(self, frames: Sequence[Frame], timeout_s: float | None = None) -> int:
        """See NetAdapter. A message whose reply did not come in time counts as handed over."""
        deadline = _deadline(timeout_s)
        good = len(frames)
        for index, frame in enumerate(frames):
            if not ETHERNET_HEADER_BYTES <= len(frame) <= self._frame_bytes_max:
                good = index
                break
        done = 0
        while done < good and self._transmitting.settle(deadline):
            message = frames[done : min(done + how_many_fit(frames, done), good)]
            self._transmitting.transmit(message)
            done += len(message)
            self.frames_sent += len(message)
            self.bytes_sent += sum(map(len, message))
        if done == good and self._transmitting.settle(deadline) and good < len(frames):
            allowed = f"{ETHERNET_HEADER_BYTES} to {self._frame_bytes_max}"
            raise ValueError(f"a frame of {len(frames[good])} bytes: want {allowed}")
        return done

    def receive(self, limit: int = 256, timeout_s: float | None = None) -> list[bytes]:
        deadline = _deadline(timeout_s)
        while not self._received:
            if not self._take(deadline):
                return []
        received = self._received
        if limit >= len(received):
            frames = list(received)
            received.clear()
            return frames
        return [received.popleft() for _ in range(limit)]

    def _take(self, deadline: int | None) -> bool:
        """One answer, or wait for it. False: none came in time."""
        try:
            answer = self._receiving.take(deadline)
        except ConnectionError as error:
            raise NetClosedError(str(error)) from error
        match answer:
            case None:
                return False
            case Received(frames, link_up):
                self._received += map(bytes, frames)
                self.frames_received += len(frames)
                self.bytes_received += sum(map(len, frames))
                self._see_link(up=link_up)
            case _:  # another server than the one that we said OPEN to
                self._transmitting.reopen(deadline)
                self._see_link(up=self._transmitting.opened.link_up)
        self._receiving.begin()
        return True

    def _see_link(self, *, up: bool) -> None:
        self.link_changes += up != self.link_up
        self.link_up = up

    def fileno(self) -> int:
        return self._receiving.socket.fileno()

    def arm(self) -> bool:
        return not self._received

    def disarm(self) -> None:
        """A reply rings whether anybody waits or not."""

    def flush(self, timeout_s: float | None = None) -> None:
        if not self._transmitting.settle(_deadline(timeout_s)):
            raise NetTimeoutError("a message is not completed")

    def close(self) -> None:
        """The server sees that we have left."""
        self._transmitting.socket.destroy()
        self._receiving.socket.destroy()

    def statistics(self) -> dict[str, int]:
        """The same names as with rings; `unknown_ids` and `dropped` are what rings alone can have."""
        return {
            "frames_sent": self.frames_sent,
            "frames_received": self.frames_received,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "errors": self._transmitting.errors,
            "dropped": 0,
            "malformed": self._transmitting.socket.malformed + self._receiving.socket.malformed,
            "unknown_ids": 0,
            "link_changes": self.link_changes,
            "in_flight": self.in_flight,
        }


def _deadline(timeout_s: float | None) -> int | None:
    return None if timeout_s is None else time.monotonic_ns() + int(timeout_s * _NS_PER_S)
