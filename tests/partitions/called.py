"""A server and its client on sockets, without a machine: what `ServedEndpoint` and the hypervisor do, in this process.

The server may die, as a process does: its sockets end, what it keeps outside of its record is gone, and the next one
finds the socket that the client has asked for meanwhile.
"""

import queue
import socket
import threading
from collections.abc import Callable

from partitions.calls.endpoint_service import EndpointService

JOIN_S = 30.0


class Died(BaseException):
    """As after SIGKILL: nothing more of it happens."""


class Endpoint:
    """One connection, and who serves it."""

    def __init__(self, make: Callable[[], EndpointService]) -> None:
        self._make = make
        self._waiting: queue.SimpleQueue[socket.socket | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._serving: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self.is_gone = False
        self._ends = False
        self.failures: list[BaseException] = []

    def connect(self) -> int:
        """For the client."""
        if self.is_gone:
            raise ConnectionError("there is no server any more")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._waiting.put(ours)
        return theirs.detach()

    def start(self) -> EndpointService:
        service = self._make()
        self._thread = threading.Thread(target=self._serve, args=(service,), daemon=True)
        self._thread.start()
        return service

    def _serve(self, service: EndpointService) -> None:
        while (sock := self._waiting.get()) is not None:
            with self._lock:
                self._serving = sock
                if self._ends:
                    sock.shutdown(socket.SHUT_RDWR)
            try:
                while service.serve_one(sock):
                    pass
            except Died:
                return
            except Exception as error:
                self.failures.append(error)
            finally:
                with self._lock:
                    self._serving = None
                sock.close()
        service.let_go()

    def end(self) -> None:
        """Its thread; sockets that wait stay for the next one."""
        if self._thread is None:
            return
        self._waiting.put(None)
        with self._lock:
            self._ends = True
            if self._serving is not None:
                self._serving.shutdown(socket.SHUT_RDWR)
        self._thread.join(JOIN_S)
        assert not self._thread.is_alive()
        self._thread, self._ends = None, False
        left = []
        while not self._waiting.empty():
            left.append(self._waiting.get())
        for sock in left:
            if sock is not None:
                self._waiting.put(sock)

    def close(self) -> None:
        self.is_gone = True
        self.end()
        while not self._waiting.empty():
            if (sock := self._waiting.get()) is not None:
                sock.close()
