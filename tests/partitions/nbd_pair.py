"""An NBD export of a disk whose server is a thread of ours, and a tiny client, for tests."""

import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from partitions.nbd.export import NbdExport
from partitions.storage.backends import BlockBackend
from partitions.storage.disk import Disk
from tests.partitions.storage_pair import connected

PATIENCE_S = 20
POOL_PAGES = 8 * 64 + 1  # each connection may use 64 pages: a request has at most 256 KiB
READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE = 1, 2
OPTION_GO = 7
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
REQUEST_BYTES = _REQUEST.size


@dataclass
class Exported:
    path: str
    export: NbdExport
    reports: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def connect(self) -> "Client":
        return Client(self.path)

    @property
    def clients(self) -> int:
        return self.export._admitted

    def statistics(self) -> dict[str, int]:
        engine = self.export._engine
        assert engine is not None
        return engine.statistics()


@contextmanager
def exported(backend: BlockBackend, pool_pages: int = POOL_PAGES, ring_pages: int = 16) -> Iterator[Exported]:
    with (
        tempfile.TemporaryDirectory(prefix="pv-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
        connected(backend, ring_pages=ring_pages, data_pages=pool_pages) as pair,
        Disk(pair.guest, pair.data, pair.data_gpfn, timeout_s=PATIENCE_S) as disk,
    ):
        path = str(Path(folder) / "nbd")
        listener.bind(path)
        listener.listen(16)
        listener.setblocking(False)
        reports: list[tuple[str, dict[str, object]]] = []
        export = NbdExport(disk, listener, "disk", lambda kind, **fields: reports.append((kind, fields)))
        begun, ends = threading.Event(), []
        failure: list[BaseException] = []

        async def serve() -> None:
            stop, token = trio.Event(), trio.lowlevel.current_trio_token()
            ends.append(lambda: token.run_sync_soon(stop.set))
            begun.set()
            await export.serve(stop)

        def run() -> None:
            try:
                trio.run(serve)
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert begun.wait(PATIENCE_S)
        try:
            yield Exported(path, export, reports)
        finally:
            ends[0]()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
            assert not failure, failure


class Client:
    """A connection. Speaks the protocol, checks that replies are of its form, and nothing else."""

    def __init__(self, path: str, *, go: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(path)
        greeting = self.take(18)
        assert greeting[:16] == b"NBDMAGICIHAVEOPT"
        if go:
            self.send(struct.pack(">I", 3))
            self.size, self.flags, self.block_sizes = self.go()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def take(self, count: int) -> bytes:
        """EOFError: the server has closed."""
        data = b""
        while len(data) < count:
            try:
                piece = self.socket.recv(count - len(data))
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise EOFError(f"{len(data)} of {count} bytes")
            data += piece
        return data

    # -- the handshake

    def option(self, option: int, data: bytes = b"") -> None:
        self.send(struct.pack(">8sII", b"IHAVEOPT", option, len(data)) + data)

    def option_reply(self) -> tuple[int, int, bytes]:
        """(option, kind, data)"""
        magic, option, kind, length = struct.unpack(">QIII", self.take(20))
        assert magic == 0x3E889045565A9
        return option, kind, self.take(length)

    def go(self, name: bytes = b"", option: int = OPTION_GO) -> tuple[int, int, tuple[int, int, int]]:
        self.option(option, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
        size, flags, blocks = 0, 0, (0, 0, 0)
        while (reply := self.option_reply())[1] == 3:
            match int.from_bytes(reply[2][:2], "big"):
                case 0:
                    size, flags = struct.unpack(">QH", reply[2][2:])
                case 3:
                    blocks = struct.unpack(">III", reply[2][2:])
        assert reply[1] == 1, reply
        return size, flags, blocks

    # -- transmission

    def request(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        data: bytes = b"",
        *,
        cookie: int = 0,
        flags: int = 0,
    ) -> None:
        self.send(_REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, offset, length) + data)

    def reply(self, read_bytes: dict[int, int] | int = 0) -> tuple[int, int, bytes]:
        """(cookie, error, data); `read_bytes`: of the READ that this answers, or of each by its cookie."""
        magic, error, cookie = _REPLY.unpack(self.take(_REPLY.size))
        assert magic == REPLY_MAGIC
        length = read_bytes if isinstance(read_bytes, int) else read_bytes.get(cookie, 0)
        return cookie, error, b"" if error else self.take(length)

    def ask(
        self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", *, flags: int = 0
    ) -> int:
        """One request and its reply; the error."""
        self.request(command, offset, length, data, flags=flags)
        return self.reply()[1]

    def read(self, offset: int, length: int) -> bytes:
        self.request(READ, offset, length)
        cookie, error, data = self.reply(length)
        assert (cookie, error) == (0, 0)
        return data

    def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        assert self.ask(WRITE, offset, len(data), data, flags=flags) == 0
