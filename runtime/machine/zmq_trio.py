"""ZeroMQ sockets under trio.

A zmq socket has one descriptor that becomes readable when *something* may have changed: a message came, room
was made, a peer connected. It is edge-triggered, and any operation on the socket may swallow the edge. Hence:

  1. One task (`pump`) alone waits on the descriptor; tasks that want a message are parked.
  2. After every operation, whether it succeeded or not, EVENTS is read and parked tasks are woken, because
     that operation may have eaten the edge which they were waiting for.

Without the second rule a busy socket goes quiet while messages lie in its queue.

Source: zmq_getsockopt(3), ZMQ_FD and ZMQ_EVENTS.
"""

import errno
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

import trio
import zmq

FRAMES_MAX: Final = 64  # of one message that we send


class PeerGone(Exception):
    """A ROUTER has nobody of that identity. Nothing was sent."""


class TrioSocket:
    """One zmq socket of one trio thread. Run `pump` in a nursery as long as the socket is used."""

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self._socket = socket
        self._fd = int(socket.getsockopt(zmq.FD))
        self._receivers = trio.lowlevel.ParkingLot()
        self._senders = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return bool(self._socket.closed)

    async def pump(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wake parked tasks whenever the socket has news. Returns when the socket is closed."""
        task_status.started()
        while not self.closed:
            self._look()
            try:
                await trio.lowlevel.wait_readable(self._fd)
            except trio.ClosedResourceError:
                return

    async def receive(self) -> list[bytes]:
        """The frames of the next message. trio.ClosedResourceError: the socket was closed, here, by us."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            self._check_open()
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                if self._look() & zmq.POLLIN:  # it came between the two
                    continue
                await self._receivers.park()
            else:
                self._look()
                await trio.lowlevel.cancel_shielded_checkpoint()
                return frames

    async def send(self, frames: Sequence[bytes]) -> None:
        """Send one message; wait while the queue is full.

        Raises:
            PeerGone: ROUTER with router_mandatory only.
            trio.ClosedResourceError: the socket was closed, here, by us.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self.try_send(frames):
            if self._look() & zmq.POLLOUT == 0:
                await self._senders.park()
            else:  # a ROUTER is writable while any peer is: room for this one shows by trying only
                await trio.sleep(0.001)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def try_send(self, frames: Sequence[bytes]) -> bool:
        """Send one message if that needs no waiting. False: no room, nothing was sent. Else as `send`."""
        self._check_open()
        if len(frames) > FRAMES_MAX:
            raise ValueError(f"{len(frames)} frames; at most {FRAMES_MAX}")
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == errno.EHOSTUNREACH:
                raise PeerGone from error
            raise
        finally:
            self._look()
        return True

    def close(self, linger_ms: int = 0) -> None:
        """Close the socket. Tasks parked on it raise trio.ClosedResourceError. Harmless if repeated."""
        if self.closed:
            return
        trio.lowlevel.notify_closing(self._fd)
        self._socket.close(linger_ms)
        self._receivers.unpark_all()
        self._senders.unpark_all()

    def statistics(self) -> dict[str, Any]:
        return {
            "closed": self.closed,
            "tasks_receiving": len(self._receivers),
            "tasks_sending": len(self._senders),
        }

    def _look(self) -> int:
        """Rule 2. Returns what the socket is ready for."""
        if self.closed:
            return 0
        events = int(self._socket.getsockopt(zmq.EVENTS))
        if events & zmq.POLLIN:
            self._receivers.unpark_all()
        if events & zmq.POLLOUT:
            self._senders.unpark_all()
        return events

    def _check_open(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError("the zmq socket is closed")
