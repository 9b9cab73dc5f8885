"""A message server of a memory disk that can die at each of its steps, and its clients' connections, for tests."""

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bus.seam import Seam, Step
from partitions.calls.endpoint import adopt_endpoint
from partitions.calls.endpoint_service import BEGUN
from partitions.storage._blockio import DeviceLock
from partitions.storage.backends import MemoryBackend
from partitions.storage.message_channel import MessageChannel
from partitions.storage.message_service import MessageService
from partitions.storage.message_wire import MESSAGE_BYTES_MAX

DISK_BYTES = 1 << 20
DATA_BYTES = 1 << 20
GPFN = 0x700
JOIN_S = 20


class Died(BaseException):
    """Where a test has the server's process die: nothing of it is cleaned up but what the kernel cleans up."""


class Crash(Exception):
    """Of a backend, in the middle of a request. The service goes on, as `ServedEndpoint` has it."""


class CountingBackend(MemoryBackend):
    """Notes each write that was executed. So nothing is left to C, which would not ask it."""

    @property
    def descriptor(self) -> int | None:
        return None

    def __init__(self) -> None:
        super().__init__(DISK_BYTES)
        self.writes: list[tuple[int, bytes]] = []
        self.fail: Callable[[], None] = lambda: None

    def writev(self, views: "object", offset: int) -> None:
        self.fail()
        data = b"".join(bytes(view) for view in views)  # type: ignore[attr-defined]
        self.writes.append((offset, data))
        super().writev([memoryview(data)], offset)


class Passing(Seam):
    """Calls somebody where a process might have died."""

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__()
        self._call = call

    def passing(self, step: Step) -> None:
        self._call()


class MessageServer:
    """One client's server. `record` outlives its generations, each of which is a thread."""

    def __init__(self, backend: CountingBackend, lock: DeviceLock | None = None) -> None:
        self.backend, self.lock = backend, lock or DeviceLock()
        self.record = memoryview(bytearray(64))
        self.ends: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.die_after: Callable[[int], bool] = lambda served: False  # between execution and reply
        self.on_crash: Callable[[MessageService], None] = lambda service: None
        self.generations = 0
        self.gone = False
        self.service: MessageService | None = None
        self._thread: threading.Thread | None = None

    def connect(self) -> int:
        """For a MessageChannel."""
        if self.gone:
            raise ConnectionError("there is no server")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ends.put(theirs.detach())
        return ours.detach()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            self.generations += 1
            served = 0

            def passing() -> None:
                nonlocal served
                served += 1
                if self.die_after(served):
                    raise Died

            service = self.service = MessageService(
                self.backend, self.record, serial="messages", lock=self.lock, seam=Passing(passing)
            )
            while True:
                fd = self.ends.get()
                if fd is None:
                    return
                sock = adopt_endpoint(fd)
                try:
                    while service.serve(sock):
                        pass
                except Crash:
                    assert service.phase == BEGUN
                    self.on_crash(service)
                except Died:
                    service.let_go()  # as the lock goes with a process
                    break
                finally:
                    sock.close()

    def stop(self) -> None:
        self.ends.put(None)
        assert self._thread is not None
        self._thread.join(JOIN_S)
        assert not self._thread.is_alive()


class PlainBackend(CountingBackend):
    """Counts nothing: its plain reads and writes are C's."""

    @property
    def descriptor(self) -> int | None:
        return self._descriptor


@contextlib.contextmanager
def message_server(backend_type: type[CountingBackend] = CountingBackend) -> Iterator[MessageServer]:
    backend = backend_type()
    server = MessageServer(backend)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        backend.close()


@contextlib.contextmanager
def message_channel(connect: Callable[[], int]) -> Iterator[tuple[MessageChannel, memoryview]]:
    """A client's channel and its data area. Nothing of it may be left open."""
    before = _descriptors()
    area = memoryview(bytearray(DATA_BYTES))
    channel = MessageChannel(connect, area, GPFN)
    try:
        yield channel, area
    finally:
        channel.destroy()
    deadline = time.monotonic() + JOIN_S
    while (
        _descriptors() > before and time.monotonic() < deadline
    ):  # a server's end, until it sees ours closed
        time.sleep(0.001)
    assert _descriptors() <= before


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def hostile(answer: Callable[[bytes], list[bytes] | None]) -> Callable[[], int]:
    """A server that replies to each request with these packets; None: it closes the socket."""

    def connect() -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def serve() -> None:
            with theirs, contextlib.suppress(ConnectionResetError):
                while request := theirs.recv(MESSAGE_BYTES_MAX):
                    if (packets := answer(request)) is None:
                        return
                    with contextlib.suppress(OSError):
                        for packet in packets:
                            theirs.send(packet)

        threading.Thread(target=serve, daemon=True).start()
        return ours.detach()

    return connect
