"""One client that is served by send, receive and reply: its sockets, one after the other, and the thread that serves.

The counterpart of `ServedChannel` for a partition that is reached without rings. A socket's other end may be closed,
by a client that ends or restarts, and another one takes its place; the client is the same: its record says where the
last one stood.
"""

import contextlib
import os
import select
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

from bus.native import ServiceBudget
from partitions.calls.endpoint import adopt_endpoint
from partitions.calls.endpoint_service import BEGUN, EndpointService
from partitions.stack.back_off import WORKER_RESTARTS, BackOff
from partitions.stack.paying_thread import PayingThread
from partitions.stack.served_channel import JOIN_MS_MAX, WorkerEnd
from partitions.stack.vmbus_ports import server_event_port
from runtime.abi import HvStatus, HypercallError, HypervisorGone
from runtime.hypercalls.caller import HypercallPort

RESEND_MS_MAX: Final = (
    1_000  # how long all others wait for a client to send again what a predecessor had begun
)
SETTLE_MS_MAX: Final = 2_000  # the same for one that stands for others, and died


class ServedEndpoint:
    """Made when the stack says so. Owns the port's doorbell and the service."""

    def __init__(
        self,
        call: HypercallPort,
        flag: int,
        service: EndpointService,
        *,
        proxy: bool = False,
        budget: ServiceBudget | None = None,
    ) -> None:
        """One client.

        Args:
            proxy: the client stands for others, and does again what it had begun before it died.
            budget: its guest's, with which our thread pays for its time.
        """
        self._call, self._port, self._service, self._proxy = call, server_event_port(flag), service, proxy
        self._budget = budget or ServiceBudget()
        self.was_executing: Final = service.phase == BEGUN
        self.back_off = BackOff(WORKER_RESTARTS)
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()  # of the socket, against `stop`
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._seen: tuple[int, float] = (0, time.monotonic())
        self._bell_fd = call.claim_port_doorbell(self._port).fd
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.epoll()
        # Nobody reads the doorbell: its client may hold it too, and empty it at the wrong moment.
        self._poll.register(self._bell_fd, select.EPOLLIN | select.EPOLLET)
        self._poll.register(self._stop_fd, select.EPOLLIN)

    def replay(self) -> bool:
        """Wait for the request that a predecessor had begun, and execute it, before anybody else is served. Bounded.

        Always True: nobody has to wait for us any more.
        """
        deadline = time.monotonic() + RESEND_MS_MAX / 1000
        while self.was_executing and self._service.phase == BEGUN and time.monotonic() < deadline:
            try:
                if self._socket is None and not self._connect(deadline):
                    continue
                if self._readable(deadline) and not self._serve_one():
                    self._disconnect()
            except HypervisorGone:
                return True
            except Exception:  # a backend's defect; whose request it was sends it again
                traceback.print_exc()
                self._disconnect()
                if self.back_off.failed(time.monotonic_ns()) is None:
                    break
        if self.was_executing and self._service.phase == BEGUN:
            self._service.refuses_resent = True
            self._service.let_go()
        return True

    def start(self, name: str, on_end: Callable[[WorkerEnd], None]) -> None:
        self._thread = threading.Thread(target=self._work, args=(on_end,), name=name, daemon=True)
        self._thread.start()

    def _work(self, on_end: Callable[[WorkerEnd], None]) -> None:
        paying = PayingThread(self._budget, self._stop.wait)  # no device is held where it rests
        paying.pace()
        with contextlib.suppress(HypervisorGone):
            while not self._stop.is_set():
                try:
                    if self._socket is None and not self._connect(None):
                        continue
                    assert self._socket is not None
                    if not self._service.serve(self._socket):
                        self._disconnect()
                        self._await_successor()
                    paying.pace()
                except Exception as error:  # of ours or of a backend; who ran into it sends it again
                    if isinstance(error, HypervisorGone):
                        raise
                    traceback.print_exc()
                    self._disconnect()
                    if (due_ns := self.back_off.failed(time.monotonic_ns())) is None:
                        self._service.let_go()
                        on_end(WorkerEnd(True, f"the service failed: {type(error).__name__}: {error}"))
                        return
                    self._stop.wait(max(due_ns - time.monotonic_ns(), 0) / 1e9)
        self._service.let_go()

    def _serve_one(self) -> bool:
        assert self._socket is not None
        return self._service.serve_one(self._socket)

    def _await_successor(self) -> None:
        """Of a client that stands for others: until it has done again what it had begun, nobody else is served."""
        if not self._proxy or self._service.settled or self._stop.is_set():
            return
        deadline = time.monotonic() + SETTLE_MS_MAX / 1000
        self._service.hold()
        try:
            while not self._service.settled and time.monotonic() < deadline and not self._stop.is_set():
                if self._socket is None and not self._connect(deadline):
                    continue
                if self._readable(deadline) and not self._serve_one():
                    self._disconnect()
        finally:
            self._service.let_go()

    # -- sockets

    def _connect(self, deadline: float | None) -> bool:
        """Take the socket that waits for us, once there is one. False: look again whether there is still time."""
        if (fd := self._claim()) is None:
            self._poll.poll(None if deadline is None else max(deadline - time.monotonic(), 0))
            if (fd := self._claim()) is None:
                return False
        with self._lock:
            self._socket = adopt_endpoint(fd)
            if self._stop.is_set():
                self._shut_down()
        return True

    def _claim(self) -> int | None:
        try:
            return self._call.claim_port_endpoint(self._port)
        except HypercallError as error:
            if error.status in (
                HvStatus.NO_DATA,
                HvStatus.INVALID_PORT_ID,
            ):  # the port goes shortly before we stop
                return None
            raise

    def _readable(self, deadline: float) -> bool:
        assert self._socket is not None
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(max(deadline - time.monotonic(), 0) * 1000))

    def _disconnect(self) -> None:
        with self._lock:
            sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def _shut_down(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    # -- as ServedChannel

    def is_stuck(self, stuck_ms: int) -> bool:
        served, now = self._service.served, time.monotonic()
        seen, since = self._seen
        if served != seen or not self._service.busy:
            self._seen = (served, now)
            return False
        return now - since > stuck_ms / 1000

    def stop(self) -> bool:
        """End the thread; True once nothing of it runs any more. Blocks up to JOIN_MS_MAX."""
        self._stop.set()
        os.eventfd_write(self._stop_fd, 1)
        with self._lock:
            self._shut_down()
        if self._thread is not None:
            self._thread.join(JOIN_MS_MAX / 1000)
            if self._thread.is_alive():
                return False
        self._disconnect()
        return True

    def release(self) -> None:
        """Only after `stop`."""
        self._poll.close()
        os.close(self._bell_fd)
        os.close(self._stop_fd)

    def statistics(self) -> dict[str, int]:
        return self._service.statistics()
