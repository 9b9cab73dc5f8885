"""Who asks for a console, and a server that says anything: an answer, a refusal, or one error of a known type."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from runtime.machine import console_client
from runtime.machine.console_client import ANSWER_BYTES_MAX, NoConsole, connect
from runtime.machine.management_client import RequestRefused
from runtime.machine.management_wire import ManagementStatus
from runtime.machine.rundir import MachineFolder

Say = Callable[..., MachineFolder]
GARBAGE = [
    b"\n",
    b"[]\n",
    b"3\n",
    b"null\n",
    b"{}\n",
    b'{"ok": 1}\n',
    b'{"ok": false, "status": "WHATEVER", "message": "x"}\n',
    b'{"ok": false, "status": 3, "message": "x"}\n',
    b'{"ok": false, "status": "BUSY", "message": 7}\n',
    b"\xff\xfe\n",
    b"[" * (ANSWER_BYTES_MAX - 1) + b"\n",
    b'{"ok": true',  # and no more
    b"",
    b'"' + b"x" * 2 * ANSWER_BYTES_MAX,  # and so on, without an end
]


@pytest.fixture
def say(runtime_dir: Path) -> Iterator[Say]:
    """A server that reads one request, and says that."""
    runtime_dir.mkdir()
    folder = MachineFolder(runtime_dir, "machine", 1, 0)
    threads = []

    def serve(listener: socket.socket, data: bytes, pause_s: float | None) -> None:
        sock, _ = listener.accept()
        with listener, sock, suppress(BrokenPipeError, ConnectionResetError):
            assert sock.recv(1 << 16).endswith(b"\n")
            for piece in (data,) if pause_s is None else (bytes([byte]) for byte in data):
                sock.sendall(piece)
                time.sleep(pause_s or 0)

    def start(data: bytes, *, pause_s: float | None = None) -> MachineFolder:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(folder.console_path))
        listener.listen(1)
        threads.append(threading.Thread(target=serve, args=(listener, data, pause_s)))
        threads[-1].start()
        return folder

    yield start
    for thread in threads:
        thread.join()
    folder.console_path.unlink(missing_ok=True)
    runtime_dir.rmdir()


@pytest.mark.parametrize("data", GARBAGE, ids=lambda data: repr(bytes(data[:12])))
def test_what_is_no_answer_is_one_error_that_names_the_machine(say: Say, data: bytes) -> None:
    with pytest.raises(NoConsole, match="machine 'machine'"):
        connect(say(data), "guest", log=False)


def test_a_server_that_never_comes_to_an_end_is_given_up(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, all of them do not: what counts is the whole answer."""
    monkeypatch.setattr(console_client, "ANSWER_SECONDS_MAX", 0.1)
    with pytest.raises(NoConsole, match="timed out"):
        connect(say(b" " * (ANSWER_BYTES_MAX - 1), pause_s=0.02), "guest", log=False)


def test_a_refusal_says_why_even_where_the_server_does_not(say: Say) -> None:
    with pytest.raises(RequestRefused) as refused:
        connect(say(b'{"ok": false, "status": "BUSY", "message": "in use"}\n'), "guest", log=False)
    assert (refused.value.status, str(refused.value)) == (ManagementStatus.BUSY, "in use")


def test_a_refusal_without_a_reason_is_one_still(say: Say) -> None:
    with pytest.raises(RequestRefused) as refused:
        connect(say(b'{"ok": false}\n'), "guest", log=False)
    assert refused.value.status is ManagementStatus.FAILED


def test_what_comes_behind_the_answer_belongs_to_the_console(say: Say) -> None:
    with closing(connect(say(b'{"ok": true, "line": "uart:guest"}\nlogin: '), "guest", log=False)) as line:
        assert line.recv(100) == b"login: "
