"""iceoryx2's publish-subscribe, one service each way, both sides polling. An extra: pip install iceoryx2.

It keeps its state in files below a root path and in shared memory with a prefix of its own; the two sides are killed,
so both are ours, and removed here.
"""

import ctypes
import importlib
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from runtime.config.model import WaitingKind
from runtime.measure.transport import Answer, NotInstalled, Transport

_CONNECT_S: Final = 10.0
_SHARED_MEMORY: Final = Path("/dev/shm")


class IceoryxTransport(Transport):
    name, group, waiting = "iceoryx2", "shared memory", WaitingKind.SPIN

    def open(self, payload_bytes: int) -> None:
        try:
            self._iox: Any = importlib.import_module("iceoryx2")
        except ImportError as error:
            raise NotInstalled("pip install iceoryx2") from error
        self._size = payload_bytes
        self._folder = tempfile.TemporaryDirectory(prefix="partvisor-bench-")
        self._prefix = f"pv{secrets.token_hex(6)}_"

    def _make_node(self) -> Any:
        """A node of our own, apart from the ones that this machine may run."""
        iox = self._iox
        iox.set_log_level(iox.LogLevel.Fatal)
        config = iox.config.default()
        config.global_cfg.root_path = iox.Path.new(self._folder.name)
        config.global_cfg.prefix = iox.FileName.new(self._prefix)
        return iox.NodeBuilder.new().config(config).create(iox.ServiceType.Ipc)

    def _service(self, node: Any, name: str) -> Any:
        iox = self._iox
        builder = node.service_builder(iox.ServiceName.new(name))
        return builder.publish_subscribe(iox.Slice[ctypes.c_uint8]).open_or_create()

    def _join(self, out: str, back: str) -> None:
        self._node = self._make_node()
        there, here = self._service(self._node, out), self._service(self._node, back)
        self._publisher = there.publisher_builder().initial_max_slice_len(self._size).create()
        self._subscriber = here.subscriber_builder().create()
        deadline = time.monotonic() + _CONNECT_S
        while not (self._subscribers(there) and self._publishers(here)):
            if time.monotonic() > deadline:
                raise TimeoutError("the other side does not join")
            time.sleep(0.001)

    @staticmethod
    def _subscribers(service: Any) -> int:
        return int(service.dynamic_config.number_of_subscribers)

    @staticmethod
    def _publishers(service: Any) -> int:
        return int(service.dynamic_config.number_of_publishers)

    def serve(self, answer: Answer) -> None:
        self._join("replies", "requests")
        while True:
            self._send(answer(self._receive()))

    def connect(self) -> None:
        self._join("requests", "replies")

    def exchange(self, request: bytes) -> bytes:
        self._send(request)
        return self._receive()

    def _send(self, data: bytes) -> None:
        loaned = self._publisher.loan_slice_uninit(len(data))
        ctypes.memmove(loaned.payload().as_ptr(), data, len(data))
        loaned.assume_init().send()

    def _receive(self) -> bytes:
        receive = self._subscriber.receive
        while (sample := receive()) is None:
            pass
        payload = sample.payload()
        return ctypes.string_at(payload.as_ptr(), payload.len())

    def close(self) -> None:
        self._folder.cleanup()
        for path in _SHARED_MEMORY.glob(f"{self._prefix}*"):
            path.unlink(missing_ok=True)
