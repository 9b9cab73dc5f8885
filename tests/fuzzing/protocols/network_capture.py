"""A capture: what a client says first, and what a root sends it, which ends up in a file."""

import io
import socket
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import trio

from partitions.net.capture import Capture
from runtime.machine.capture_client import BrokenRecords, NoCapture, Recorder
from runtime.machine.capture_wire import (
    FILE_HEAD,
    HELLO_BYTES_MAX,
    PACKET_BYTES_MAX,
    RECORD_HEAD,
)
from runtime.machine.captures import _hand_over
from runtime.machine.management_client import RequestRefused
from runtime.machine.rundir import MachineFolder
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.targets import Side, declare, target

_NS_PER_S: Final = 1_000_000_000

declare("network-capture", Side.SERVER, Side.CLIENT)


def _hellos() -> list[bytes]:
    hellos: list[dict[str, Any]] = [
        {"name": "net0", "port": None, "snap_bytes": 96},
        {"name": "net0", "port": "one"},
        {"name": "net0", "snap_bytes": -1},
    ]
    return [join([msgspec.json.encode(hello)]) for hello in hellos]


@target("network-capture", Side.SERVER, _hellos)
def server(data: bytes) -> None:
    """What goes on to the root has the types that it counts on; whoever says something else is told so."""
    forwarded: list[Mapping[str, object]] = []

    async def forward(verb: str, values: Mapping[str, object], fds: Sequence[int]) -> None:
        assert verb == "capture"
        assert len(fds) == 1
        forwarded.append(values)

    async def main(said: bytes) -> bytes:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with trio.socket.from_stdlib_socket(ours) as client, theirs:
            theirs.send(said)
            theirs.setblocking(False)
            await _hand_over(client, forward)
            with suppress(BlockingIOError):
                return theirs.recv(PACKET_BYTES_MAX)
            return b""

    for piece in cut(data):
        if not piece or len(piece) > HELLO_BYTES_MAX:
            continue
        forwarded.clear()
        answer = trio.run(main, piece)
        assert bool(answer) is not bool(forwarded)
        if answer:
            assert msgspec.json.decode(answer)["ok"] is False
        for values in forwarded:
            assert isinstance(values["name"], str)
            assert isinstance(values["port"], str | None)
            assert isinstance(values["snap_bytes"], int)


def _packets() -> list[bytes]:
    """What a capture of ours says of a few frames."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        capture = Capture(ours, 96)
        for sizes in ((60,), (60, 1514, 14), (200,)):
            capture.saw([memoryview(bytes(size)) for size in sizes])
        said = [theirs.recv(PACKET_BYTES_MAX) for _ in range(3)]
    return [join([*said, capture.farewell()])]


@dataclass
class _Folder:
    """What of a MachineFolder a recorder looks at."""

    capture_path: Path
    name: str = "machine"
    pid: int = 1

    def is_alive(self) -> bool:
        return False


@target(
    "network-capture",
    Side.CLIENT,
    lambda: [join([b'{"ok": true}', *cut(one)]) for one in _packets()] + _noes(),
)
def client(data: bytes) -> None:
    """The first piece answers, the others are packets: the file is pcap up to the last good record, and no further."""
    with (
        tempfile.TemporaryDirectory() as place,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
    ):
        folder = _Folder(Path(place) / "capture")
        listener.bind(str(folder.capture_path))
        listener.listen(1)
        root = threading.Thread(target=_root, args=(listener, [one for one in cut(data) if one]))
        root.start()
        try:
            _record(folder)
        except (NoCapture, BrokenRecords, RequestRefused):
            pass
        finally:
            root.join()


def _record(folder: _Folder) -> None:
    out = io.BytesIO()
    recorder = Recorder(cast(MachineFolder, folder), "net0", None, 96)
    recorder.write_to(out)
    try:
        recorder.run(None, None, lambda captured: None)
    finally:
        with suppress(BrokenRecords):
            recorder.finish()
        said = out.getvalue()[FILE_HEAD.size :]
        records = kept_bytes = at = 0
        while at < len(said):
            _, nanoseconds, kept, whole = RECORD_HEAD.unpack_from(said, at)
            at += RECORD_HEAD.size + kept
            assert nanoseconds < _NS_PER_S
            assert kept <= whole
            assert at <= len(said)
            records, kept_bytes = records + 1, kept_bytes + kept
        # Those in front of a broken one in its packet were counted, and are not in the file.
        assert records <= recorder.captured.frames
        assert kept_bytes <= recorder.captured.bytes


def _root(listener: socket.socket, packets: Sequence[bytes]) -> None:
    sock, _ = listener.accept()
    with sock, suppress(OSError):
        sock.recv(HELLO_BYTES_MAX)
        for packet in packets:
            sock.send(packet, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)


def _noes() -> list[bytes]:
    return [
        join([b'{"ok": false, "status": "NOT_FOUND", "message": "no such network"}']),
        join([b'{"ok": false}']),
        join([b'{"ok": false, "status": "WHATEVER", "message": ""}']),
        join([b"[]"]),
    ]
