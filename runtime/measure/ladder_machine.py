"""The machine that the ladder's own rows run on: booted once a run, told by files what to measure.

It is a child of this process, and dies with it. Its guests are `partitions.guests.ladder_load`.
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
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from bus.native import Histogram
from runtime.config import SignalRoute, WaitingKind
from runtime.measure.exchanges import Measured
from runtime.measure.process_usage import Usage
from runtime.measure.sample import Order, Sample, SampleFailed

BOOT_S: Final = 60.0
ANSWER_S: Final = 30.0  # beside the time that is measured
STOP_S: Final = 15.0
BOOTS_MAX: Final = 3  # of a run: a machine that keeps breaking fails its rows
_COMPLAINTS_KEPT: Final = 5
_READ_BYTES: Final = 1 << 16
_ROOT: Final = "root"
_HYPERVISOR: Final = "hypervisor"

# Never executed anew, so that what ties its life to ours holds.
_START: Final = (
    "import sys; from runtime.lifeline import die_with_parent; die_with_parent(int(sys.argv[1]));"
    " from runtime.cli import main; sys.exit(main(['run', sys.argv[2], '--json']))"
)

LOAD: Final = "load"
DIRECT: Final = "direct"  # its port accesses take the direct way
DEPTHS: Final = {1: LOAD, 2: "depth2", 3: "depth3"}  # a guest at each depth of the tree
_PARENTS: Final = {2: "parent1", 3: "parent2"}  # of the guest at that depth
_NAMES_OF_EVENTS: Final = {"depth2": "parent1/depth2", "depth3": "parent1/parent2/depth3"}

_MACHINE: Final = """
[machine]
name = "bench-ladder-{pid}"
memory = "640MiB"
"""
_DISK: Final = """
[[root.device]]
name = "disk0"
kind = "disk"
backend = "memory"
size = "16MiB"
"""
_GUEST: Final = """
[[partition]]
name = "{name}"
parent = "{parent}"
program = "partitions.guests.{program}:main"
memory = "{memory}MiB"
vps = 2
{more}
"""
_FILES: Final = """
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
ring_bytes = "{ring}KiB"
signal_route = "{route}"
waiting = "{waiting}"
"""
_UART: Final = '\n[[partition.emulated]]\nkind = "uart"\n'
_ROUTED: Final = [(route, waiting) for route in SignalRoute for waiting in WaitingKind]


def echo_name(route: SignalRoute, waiting: WaitingKind) -> str:
    return f"echo-{route}-{waiting}"


def machine_text(guests: Collection[str]) -> str:
    """A config with these guests, and the parents that they need."""
    text = _MACHINE.format(pid=os.getpid()) + _DISK
    for route, waiting in _ROUTED:
        text += f'\n[[root.device]]\nname = "{echo_name(route, waiting)}"\nkind = "echo"\n'
    disk = _ATTACHMENT.format(name="disk0", ring=64, route=SignalRoute.DIRECT, waiting=WaitingKind.ADAPTIVE)
    if LOAD in guests:
        text += _guest(LOAD, "root", "ladder_load", 64) + _FILES.format(name=LOAD) + _UART + disk
        for route, waiting in _ROUTED:
            text += _ATTACHMENT.format(name=echo_name(route, waiting), ring=256, route=route, waiting=waiting)
    if DIRECT in guests:
        direct = _guest(DIRECT, "root", "ladder_load", 32, 'intercepts = "direct"')
        text += direct + _FILES.format(name=DIRECT) + _UART
    parent = "root"
    deepest = max((depth for depth, name in DEPTHS.items() if name in guests), default=0)
    for depth in range(2, deepest + 1):
        program = "ladder_parent" if DEPTHS[depth] in guests else "parent"
        text += _guest(_PARENTS[depth], parent, program, 64 * (deepest - depth) + 80) + disk
        parent = _PARENTS[depth]
        if DEPTHS[depth] in guests:
            text += (
                _guest(DEPTHS[depth], parent, "ladder_load", 32) + _FILES.format(name=DEPTHS[depth]) + disk
            )
    return text


def _guest(name: str, parent: str, program: str, memory: int, more: str = "") -> str:
    return _GUEST.format(name=name, parent=parent, program=program, memory=memory, more=more)


class LadderMachine:
    """Use it in a `with` block: afterwards nothing of it is left."""

    def __init__(self, guests: Collection[str] = ()) -> None:
        self._guests = frozenset(guests)
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[str] | None = None
        self._pids: dict[str, int] = {}  # by what the machine calls them
        self._complaints: list[str] = []
        self._fds: dict[str, tuple[int, int]] = {}  # orders and answers, by guest
        self._boots = 0
        self._failure = ""

    def need(self, guests: Collection[str]) -> None:
        """Which guests it is to have when it boots."""
        self._guests = frozenset(guests)

    def __enter__(self) -> "LadderMachine":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stack.close()
        self._process = None
        self._fds.clear()
        self._pids.clear()

    # -- booting

    def _ensure(self) -> None:
        """Boot it unless it runs. SampleFailed: it does not come up."""
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        if self._boots >= BOOTS_MAX:
            raise SampleFailed(f"the machine broke {BOOTS_MAX} times: {self._failure}")
        self._boots += 1
        try:
            self._boot()
        except SampleFailed as error:
            self._failure = str(error)
            self.stop()
            raise

    def _boot(self) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="partvisor-bench-")))
        for guest in self._guests:
            self._fds[guest] = (
                self._fifo(folder / f"{guest}.orders"),
                self._fifo(folder / f"{guest}.answers"),
            )
        config = folder / "machine.toml"
        config.write_text(machine_text(self._guests))
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, str(os.getpid()), str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,  # Ctrl-C is ours; we end it in order
        )
        assert process.stdout is not None
        self._process = process
        self._complaints.clear()
        ready = threading.Event()
        reader = threading.Thread(target=self._read_events, args=(process, ready), daemon=True)
        reader.start()
        self._stack.callback(process.stdout.close)
        self._stack.callback(reader.join, STOP_S)  # it ends with the machine's output
        self._stack.callback(_end, process)
        deadline = time.monotonic() + BOOT_S
        while not ready.wait(0.05):
            if process.poll() is not None or time.monotonic() > deadline:
                reader.join(1)
                raise SampleFailed(f"the machine does not boot: {self._said()}")

    def _fifo(self, path: Path) -> int:
        os.mkfifo(path, 0o600)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._stack.callback(os.close, fd)
        return fd

    def _read_events(self, process: "subprocess.Popen[str]", ready: threading.Event) -> None:
        assert process.stdout is not None
        wanted = {_NAMES_OF_EVENTS.get(guest, guest) for guest in self._guests} | {_ROOT, _HYPERVISOR}
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
            elif kind in ("output", "machine.ending", "guest.build_failed"):
                self._complain(str(fields.get("text") or fields.get("reason")))
            if wanted <= set(self._pids):
                ready.set()

    def _complain(self, text: str) -> None:
        self._complaints.append(text.strip())
        del self._complaints[:-_COMPLAINTS_KEPT]

    def _said(self) -> str:
        return " ".join(self._complaints) or "it said nothing"

    # -- measuring

    def measure(self, guest: str, what: Mapping[str, Any], order: Order) -> Sample:
        """One sample in `guest`. SampleFailed: it says what went wrong."""
        self._ensure()
        client = self._pids[_NAMES_OF_EVENTS.get(guest, guest)]
        others = [pid for pid in self._pids.values() if pid != client]
        _move(client, order.client_cpus)
        for pid in others:
            _move(pid, order.server_cpus)
        self._ask(guest, {**what, "payload_bytes": order.payload_bytes}, ANSWER_S)
        before = Usage.of_process(client), _usage(others)
        how = {"seconds": order.seconds, "rate_per_s": order.rate_per_s}
        answer = self._ask(guest, how, 3 * order.seconds + ANSWER_S)
        after = Usage.of_process(client), _usage(others)
        self._ask(guest, {}, ANSWER_S)
        latency = Histogram.unpack(b64decode(answer["latency"]))
        measured = Measured(latency, answer["exchanges"], answer["seconds"])
        return Sample(measured, after[0].since(before[0]), after[1].since(before[1]))

    def _ask(self, guest: str, order: Mapping[str, Any], patience_s: float) -> Mapping[str, Any]:
        orders, answers = self._fds[guest]
        os.write(orders, (json.dumps(order) + "\n").encode())
        deadline, data = time.monotonic() + patience_s, b""
        poller = select.poll()
        poller.register(answers, select.POLLIN)
        while not data.endswith(b"\n"):
            if poller.poll(200):
                data += os.read(answers, _READ_BYTES)
            elif self._process is None or self._process.poll() is not None:
                raise self._broken(f"the machine ended: {self._said()}")
            elif time.monotonic() > deadline:
                raise self._broken(f"guest {guest} did not answer within {patience_s:.0f} s: {self._said()}")
        answer: Mapping[str, Any] = json.loads(data)
        if "error" in answer:
            raise SampleFailed(str(answer["error"]))
        return answer

    def _broken(self, text: str) -> SampleFailed:
        """Nobody knows what it is at: the next sample gets a new one."""
        self._failure = text
        self.stop()
        return SampleFailed(text)


def _usage(pids: Collection[int]) -> Usage:
    whole = Usage()
    for pid in pids:
        whole += Usage.of_process(pid)
    return whole


def _move(pid: int, cpus: Collection[int]) -> None:
    """All its threads; those that it makes later are where their maker is."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        for thread in _threads(pid):
            os.sched_setaffinity(thread, cpus)


def _threads(pid: int) -> Iterator[int]:
    return (int(entry.name) for entry in os.scandir(f"/proc/{pid}/task"))


def _end(process: "subprocess.Popen[str]") -> None:
    """In order, and if it takes too long, at once."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
