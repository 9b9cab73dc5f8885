"""The client's end of a capture: records out of a socket, into a pcap file. Blocking."""

import contextlib
import io
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

import msgspec

from runtime.exits import CommandError, ExitCode
from runtime.machine.capture_wire import PACKET_BYTES_MAX, PACKET_HEAD, RECORD_HEAD, file_head
from runtime.machine.management_client import RequestRefused
from runtime.machine.management_wire import ManagementStatus
from runtime.machine.rundir import MachineFolder

ANSWER_SECONDS_MAX: Final = 5.0
RETURN_SECONDS_MAX: Final = 10.0  # for the successor of who had the switch, and died
_LOOK_S: Final = 0.2
_NS_PER_S: Final = 1_000_000_000


class NoCapture(CommandError):
    """The machine is there, and what captures does not answer."""

    exit_code = ExitCode.NO_ANSWER


class NoRoom(CommandError):
    """The file can't be written any further. What is in it is whole."""


class BrokenRecords(CommandError):
    """What came is no packet of records: another version's root, or a defect."""


@dataclass(slots=True)
class Captured:
    frames: int = 0
    bytes: int = 0
    dropped: int = 0  # that the socket had no room for
    interruptions: int = 0  # times that whoever has the switch died meanwhile
    lost: str = ""  # why it ended before anybody wanted it to


class _Answer(msgspec.Struct, frozen=True):
    ok: bool
    status: ManagementStatus = ManagementStatus.FAILED
    message: str = "it does not say why"


def connect(folder: MachineFolder, name: str, port: str | None, snap_bytes: int) -> socket.socket:
    """Raises RequestRefused, NoCapture."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(ANSWER_SECONDS_MAX)
        hello = {"name": name, "port": port, "snap_bytes": snap_bytes}
        try:
            sock.connect(str(folder.capture_path))
            sock.send(msgspec.json.encode(hello))
            answer = msgspec.json.decode(sock.recv(PACKET_BYTES_MAX), type=_Answer)
        except (OSError, ValueError, RecursionError) as error:
            raise NoCapture(f"machine {folder.name!r} (pid {folder.pid}) does not answer: {error}") from error
        if not answer.ok:
            raise RequestRefused(answer.status, answer.message)
    except BaseException:
        sock.close()
        raise
    return sock


def records_of(packet: bytes) -> Iterator[tuple[int, int]]:
    """(where it ends, bytes of the frame that were kept) of each record. BrokenRecords."""
    at = PACKET_HEAD.size
    while at < len(packet):
        if at + RECORD_HEAD.size > len(packet):
            raise BrokenRecords(f"{len(packet) - at} bytes behind the last record")
        _, nanoseconds, kept, whole = RECORD_HEAD.unpack_from(packet, at)
        at += RECORD_HEAD.size + kept
        if at > len(packet) or kept > whole or nanoseconds >= _NS_PER_S:
            raise BrokenRecords(f"a record of {kept} bytes of {whole} in a packet of {len(packet)}")
        yield at, kept


class Recorder:
    """One capture, over as many processes with the switch as there come to be."""

    def __init__(self, folder: MachineFolder, name: str, port: str | None, snap_bytes: int) -> None:
        """Begins; what comes waits in the socket until `run`. Raises as `connect`."""
        self._folder, self._wanted = folder, (name, port, snap_bytes)
        self._out: BinaryIO = io.BytesIO()
        self.captured: Final = Captured()
        self._dropped_before = 0
        self._socket = connect(folder, *self._wanted)

    def write_to(self, out: BinaryIO) -> None:
        """NoRoom."""
        self._out = out
        self._write(file_head(self._wanted[2]))

    def run(self, seconds: float | None, count: int | None, tick: Callable[[Captured], None]) -> None:
        """Until so many seconds or frames have passed, or the machine is gone. `tick` is called now and then."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while deadline is None or time.monotonic() < deadline:
            left = _LOOK_S if deadline is None else min(_LOOK_S, max(deadline - time.monotonic(), 0))
            if select.select([self._socket], [], [], left)[0]:
                packet = self._receive()
                if not packet and not self._come_back():
                    return
                self._take(packet, count)
                if count is not None and self.captured.frames >= count:
                    return
            tick(self.captured)

    def close(self) -> None:
        self._socket.close()

    def finish(self, count: int | None = None) -> Captured:
        """Take what is still on the way, and learn how much was dropped."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(ANSWER_SECONDS_MAX)
            while packet := self._receive():
                self._take(packet, self.captured.frames if count is None else count)
        except OSError:
            pass  # who has the switch is gone: what it had dropped last, nobody knows
        finally:
            self._socket.close()
        return self.captured

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(PACKET_BYTES_MAX)
        except ConnectionResetError:
            return b""

    def _take(self, packet: bytes, count: int | None) -> None:
        if not packet:
            return
        if len(packet) < PACKET_HEAD.size:
            raise BrokenRecords(f"a packet of {len(packet)} bytes")
        self.captured.dropped = self._dropped_before + PACKET_HEAD.unpack_from(packet)[0]
        end, frames, size = PACKET_HEAD.size, 0, 0
        for after, kept in records_of(packet):
            if count is not None and self.captured.frames + frames >= count:
                break
            frames, size, end = frames + 1, size + kept, after
        self._write(packet[PACKET_HEAD.size : end])
        self.captured.frames += frames
        self.captured.bytes += size

    def _write(self, data: bytes) -> None:
        """All of it, or nothing, where that can be undone. NoRoom."""
        try:
            begin = self._out.tell() if self._out.seekable() else None
            view = memoryview(data)
            while view:
                view = view[self._out.write(view) :]
            self._out.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            with contextlib.suppress(OSError):
                if begin is not None:
                    self._out.truncate(begin)
            problem = f"{error.strerror}: {self.captured.frames} whole frames are in it"
            raise NoRoom(f"{problem}; make room, or keep less of each with --snap") from error

    def _come_back(self) -> bool:
        """Whoever has the switch died. False: nobody else has it in time, or the machine ended."""
        self._socket.close()
        self._dropped_before = self.captured.dropped
        deadline, problem = time.monotonic() + RETURN_SECONDS_MAX, ""
        while self._folder.is_alive() and time.monotonic() < deadline:
            try:
                self._socket = connect(self._folder, *self._wanted)
            except (NoCapture, RequestRefused) as error:
                problem = str(error)
                time.sleep(_LOOK_S)
            else:
                self.captured.interruptions += 1
                return True
        self.captured.lost = problem if self._folder.is_alive() else "the machine ended"
        return False
