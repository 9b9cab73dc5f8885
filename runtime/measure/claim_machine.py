"""The machine of `partvisor bench claim`: two guests, links and switches between them, told by files what to measure.

It is a child of this process, and dies with it.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64decode
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from bus.native import Histogram
from runtime.config import SignalRoute, WaitingKind
from runtime.exits import CommandError

BOOT_S: Final = 60.0
ANSWER_S: Final = 30.0  # beside the time that is measured
STOP_S: Final = 15.0
RING_BYTES: Final = 256 << 10
CLIENT: Final = "asker"
SERVER: Final = "answerer"
_READ_BYTES: Final = 1 << 16
_COMPLAINTS_KEPT: Final = 5

# Never executed anew, so that what ties its life to ours holds.
_START: Final = (
    "import sys; from runtime.lifeline import die_with_parent; die_with_parent(int(sys.argv[1]));"
    " from runtime.cli import main; sys.exit(main(['run', sys.argv[2], '--json']))"
)

# A switch has two threads of the root beside the two guests. Adaptive ones sleep when nothing comes, so that they take
# no CPU from other ways in their turn, and run on while something does.
DEVICES: Final = {
    "link-direct-block": ("link", SignalRoute.DIRECT, WaitingKind.BLOCK),
    "link-broker-block": ("link", SignalRoute.BROKER, WaitingKind.BLOCK),
    "switch-direct-block": ("switch", SignalRoute.DIRECT, WaitingKind.BLOCK),
    "link-direct-spin": ("link", SignalRoute.DIRECT, WaitingKind.SPIN),
    "switch-direct-adaptive": ("switch", SignalRoute.DIRECT, WaitingKind.ADAPTIVE),
}

_MACHINE: Final = '[machine]\nname = "bench-claim-{pid}"\nmemory = "256MiB"\n'
_DEVICE: Final = '\n[[root.device]]\nname = "{name}"\nkind = "{kind}"\n'
_GUEST: Final = """
[[partition]]
name = "{name}"
program = "partitions.guests.claim_load:main"
memory = "64MiB"
args = {{ role = "{role}", devices = [{devices}] }}
[[partition.file]]
name = "orders"
path = "{name}.orders"
mode = "read-write"
[[partition.file]]
name = "answers"
path = "{name}.answers"
mode = "read-write"
"""
_ATTACHMENT: Final = """
[[partition.device]]
name = "{name}"
ring_bytes = {ring_bytes}
signal_route = "{route}"
waiting = "{waiting}"
"""


class ClaimError(CommandError):
    """A guest could not be measured. One line."""


def machine_text() -> str:
    text = _MACHINE.format(pid=os.getpid())
    for name, (kind, _, _) in DEVICES.items():
        text += _DEVICE.format(name=name, kind=kind)
    devices = ", ".join(f'"{name}"' for name in DEVICES)
    for guest, role in ((CLIENT, "client"), (SERVER, "server")):
        text += _GUEST.format(name=guest, role=role, devices=devices)
        for name, (_, route, waiting) in DEVICES.items():
            text += _ATTACHMENT.format(name=name, ring_bytes=RING_BYTES, route=route, waiting=waiting)
    return text


class ClaimMachine:
    """Use it in a `with` block: it is booted at the beginning, and nothing of it is left afterwards."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._pids: dict[str, int] = {}
        self._complaints: list[str] = []
        self._fds: dict[str, tuple[int, int]] = {}  # orders and answers, by guest
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "ClaimMachine":
        """Raises ClaimError: it does not come up."""
        try:
            self._boot()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _boot(self) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="partvisor-bench-")))
        for guest in (CLIENT, SERVER):
            self._fds[guest] = (
                self._fifo(folder / f"{guest}.orders"),
                self._fifo(folder / f"{guest}.answers"),
            )
        config = folder / "machine.toml"
        config.write_text(machine_text())
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, str(os.getpid()), str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,  # Ctrl-C is ours; we end it in order
        )
        self._process = process
        reader = threading.Thread(target=self._read_events, args=(process,), daemon=True)
        reader.start()
        assert process.stdout is not None
        self._stack.callback(process.stdout.close)
        self._stack.callback(reader.join, STOP_S)  # it ends with the machine's output
        self._stack.callback(_end, process)
        for guest in (CLIENT, SERVER):
            self._await(guest, BOOT_S)

    def _fifo(self, path: Path) -> int:
        os.mkfifo(path, 0o600)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._stack.callback(os.close, fd)
        return fd

    def _read_events(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                event = json.loads(line)
                kind, fields = event["kind"], event["fields"]
            except (ValueError, KeyError):
                self._complain(line)
                continue
            if kind in ("root.started", "hypervisor.started"):
                self._pids[kind.partition(".")[0]] = fields["pid"]
            elif kind == "partition.started":
                self._pids[event["partition"]] = fields["pid"]
            elif kind in ("output", "machine.ending", "vmbus.open_refused"):
                self._complain(str(fields.get("text") or fields.get("reason") or fields.get("error")))

    def _complain(self, text: str) -> None:
        self._complaints.append(text.strip())
        del self._complaints[:-_COMPLAINTS_KEPT]

    def measure(
        self,
        device: str,
        payload_bytes: int,
        seconds: float,
        client_cpus: Collection[int],
        server_cpus: Collection[int],
        other_cpus: Collection[int] | None = None,
    ) -> Histogram:
        """Round trips in ns. Raises ClaimError.

        Args:
            other_cpus: for root and hypervisor; None: where the server is.
        """
        places = {CLIENT: client_cpus, SERVER: server_cpus}
        for name, pid in self._pids.items():
            _move(pid, places.get(name, other_cpus or server_cpus))
        self._order(SERVER, {"device": device})
        self._order(CLIENT, {"device": device, "payload_bytes": payload_bytes, "seconds": seconds})
        answer = self._await(CLIENT, 3 * seconds + ANSWER_S)
        self._await(SERVER, ANSWER_S)
        return Histogram.unpack(b64decode(answer["latency"]))

    def _order(self, guest: str, order: Mapping[str, Any]) -> None:
        os.write(self._fds[guest][0], (json.dumps(order) + "\n").encode())

    def _await(self, guest: str, patience_s: float) -> Mapping[str, Any]:
        deadline, data = time.monotonic() + patience_s, b""
        poller = select.poll()
        poller.register(self._fds[guest][1], select.POLLIN)
        while not data.endswith(b"\n"):
            if poller.poll(100):
                data += os.read(self._fds[guest][1], _READ_BYTES)
            elif self._process is None or self._process.poll() is not None:
                raise ClaimError(f"the machine ended: {self._said()}")
            elif time.monotonic() > deadline:
                raise ClaimError(f"guest {guest} did not answer within {patience_s:.0f} s: {self._said()}")
        answer: Mapping[str, Any] = json.loads(data)
        if "error" in answer:
            raise ClaimError(f"guest {guest}: {answer['error']}")
        return answer

    def _said(self) -> str:
        return " ".join(self._complaints) or "it said nothing"


def _move(pid: int, cpus: Collection[int]) -> None:
    """All its threads."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        for entry in os.scandir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(entry.name), cpus)


def _end(process: "subprocess.Popen[str]") -> None:
    """In order, and if it takes too long, at once."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
