"""What is written for the user: a full file system, an impatient user, and a name that is no file's."""

import errno
import io
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

from runtime.commands import screen
from runtime.machine import backup, saved_file
from runtime.machine.capture_client import NoRoom, Recorder
from runtime.machine.capture_wire import PACKET_HEAD, RECORD_HEAD, file_head
from runtime.machine.rundir import MachineFolder, machine_folder
from runtime.machine.saved_partition import SavedPartitionError, SavedSlot
from tests.runtime import saved_making

FRAME: Final = b"x" * 100
RECORD: Final = RECORD_HEAD.pack(1, 2, len(FRAME), len(FRAME)) + FRAME


class SmallFile(io.FileIO):
    """On a file system with room for so many bytes: the last write is a part, the next one fails."""

    def __init__(self, path: Path, room: int) -> None:
        super().__init__(path, "w")
        self._room = room

    def write(self, data: object) -> int:
        view = memoryview(data)[: self._room - self.tell()]  # type: ignore[arg-type]
        if not view:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(view)


@pytest.fixture
def folder(runtime_base: object) -> Iterator[MachineFolder]:
    """A machine whose capture sends three packets of two frames, and then waits for its client to leave."""
    with (
        machine_folder("m") as found,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
    ):
        listener.bind(str(found.capture_path))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as client:
                client.recv(1 << 16)
                client.send(msgspec.json.encode({"ok": True}))
                for _ in range(3):
                    client.send(PACKET_HEAD.pack(0) + RECORD * 2)
                client.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield found
        finally:
            thread.join()
            found.capture_path.unlink()


@pytest.mark.parametrize("room", [len(file_head(96)) + len(RECORD) * 4 + extra for extra in (0, 1, 200)])
def test_a_capture_that_the_disk_has_no_room_for_ends_with_whole_frames(
    folder: MachineFolder, tmp_path: Path, room: int
) -> None:
    recorder = Recorder(folder, "net0", None, 96)
    with SmallFile(tmp_path / "out.pcap", room) as file:
        recorder.write_to(file)
        with pytest.raises(NoRoom, match="No space left on device: 4 whole frames"):
            recorder.run(None, None, lambda captured: None)
    recorder.close()
    assert (tmp_path / "out.pcap").read_bytes() == file_head(96) + RECORD * 4
    assert (recorder.captured.frames, recorder.captured.bytes) == (4, 400)


def test_ctrl_c_waits_for_the_guest_and_a_second_one_does_not() -> None:
    passed: list[int] = []

    def interrupted(number: signal.Signals, times: int) -> None:
        with backup._interrupted_later():
            for _ in range(times):
                signal.raise_signal(number)
            passed.append(times)

    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        for times in (1, 2):
            with pytest.raises(KeyboardInterrupt):
                interrupted(number, times)
            assert signal.getsignal(number) is before
    assert passed == [1, 1]


def test_a_save_replaces_no_device(tmp_path: Path) -> None:
    """As root a terminal or a disk would be gone."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    memory = saved_making.memory_fd({}, 8)
    try:
        with pytest.raises(SavedPartitionError, match="no file"):
            saved_file.write(pipe, saved_making.description(SavedSlot(0, 8, True, True)), b"", [memory])
    finally:
        os.close(memory)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_picture_is_replaced_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "screen.png"
    screen._replace(picture, b"first")
    write: Callable[[Path, bytes], int] = Path.write_bytes

    def fail(path: Path, data: bytes) -> int:
        write(path, data[:2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space left"):
        screen._replace(picture, b"second")
    assert picture.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [picture]
