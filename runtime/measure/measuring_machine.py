"""A machine whose guests measure as they are told by files: booted when it is first needed, told again and again.

It is a child of this process, and dies with it. A guest that measures has two files, `orders` and `answers`, with a
line of JSON each (partitions.guests.ladder_load). What is measured is its own affair; here are the boot, the orders,
where every process runs, and what each has used.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

from bus.native import Histogram
from runtime.measure.child_process import STOP_S, end
from runtime.measure.exchanges import Measured
from runtime.measure.process_usage import Usage
from runtime.measure.sample import Order, Sample, SampleFailed

BOOT_S: Final = 60.0
ANSWER_S: Final = 30.0  # beside the time that is measured
BOOTS_MAX: Final = 3  # of a run: a machine that keeps breaking fails its rows
ORDERS: Final = "orders"
ANSWERS: Final = "answers"
_COMPLAINTS_KEPT: Final = 5
_READ_BYTES: Final = 1 << 16
_ROOT: Final = "root"
_HYPERVISOR: Final = "hypervisor"

# Never executed anew, so that what ties its life to ours holds.
_START: Final = (
    "import sys; from runtime.machine.lifeline import die_with_parent; die_with_parent(int(sys.argv[1]));"
    " from runtime.cli import main; sys.exit(main(['run', sys.argv[2], '--json']))"
)
_FILES: Final = """
[[partition.file]]
name = "{file}"
path = "{guest}.{file}"
mode = "read-write"
"""

Config = Callable[[Collection[str]], str]
"""The config of a machine that has these guests."""


def files_of(guest: str) -> str:
    """What the config says of the files of a guest that measures; right behind its [[partition]]."""
    return "".join(_FILES.format(guest=guest, file=file) for file in (ORDERS, ANSWERS))


class MeasuringMachine:
    """Use it in a `with` block: afterwards nothing of it is left."""

    def __init__(
        self, config: Config, guests: Collection[str] = (), names: Mapping[str, str] | None = None
    ) -> None:
        """`guests`: those that measure. `names`: what events call those of them that are deeper in the tree."""
        self._config, self._guests, self._names = config, frozenset(guests), names or {}
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[str] | None = None
        self._pids: dict[str, int] = {}  # by what events call them
        self._complaints: list[str] = []
        self._fds: dict[str, tuple[int, int]] = {}  # orders and answers, by guest
        self._boots = 0
        self._failure = ""

    def need(self, guests: Collection[str]) -> None:
        """Which guests it is to have when it boots."""
        self._guests = frozenset(guests)

    def __enter__(self) -> Self:
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
                self._fifo(folder / f"{guest}.{ORDERS}"),
                self._fifo(folder / f"{guest}.{ANSWERS}"),
            )
        config = folder / "machine.toml"
        config.write_text(self._config(self._guests))
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
        self._stack.callback(end, process)
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
        wanted = {self._names.get(guest, guest) for guest in self._guests} | {_ROOT, _HYPERVISOR}
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
            elif kind in ("output", "machine.ending", "guest.build_failed", "vmbus.open_refused"):
                self._complain(str(fields.get("text") or fields.get("reason") or fields.get("error")))
            if wanted <= set(self._pids):
                ready.set()

    def _complain(self, text: str) -> None:
        self._complaints.append(text.strip())
        del self._complaints[:-_COMPLAINTS_KEPT]

    def _said(self) -> str:
        return " ".join(self._complaints) or "it said nothing"

    # -- measuring

    def measure(
        self, guest: str, what: Mapping[str, Any], order: Order, others_cpus: Collection[int] | None = None
    ) -> Sample:
        """One sample in `guest`. SampleFailed: it says what went wrong.

        Args:
            what: to measure, in the guest's words. One with a "partner" has that guest answer it meanwhile.
            others_cpus: for all but the guest and its partner; None: where the server is.
        """
        self._ensure()
        partner = what.get("partner")
        client = self._pids[self._names.get(guest, guest)]
        server = None if partner is None else self._pids[self._names.get(partner, partner)]
        others = [pid for pid in self._pids.values() if pid != client]
        _move(client, order.client_cpus)
        for pid in others:
            elsewhere = others_cpus is not None and pid != server
            _move(pid, others_cpus if elsewhere and others_cpus is not None else order.server_cpus)
        with self._answered(partner, what):
            self._ask(guest, {**what, "payload_bytes": order.payload_bytes}, ANSWER_S)
            before = Usage.of_process(client), _usage(others)
            how = {"seconds": order.seconds, "rate_per_s": order.rate_per_s}
            answer = self._ask(guest, how, 3 * order.seconds + ANSWER_S)
            after = Usage.of_process(client), _usage(others)
            self._ask(guest, {}, ANSWER_S)
        latency = Histogram.unpack(b64decode(answer["latency"]))
        measured = Measured(latency, answer["exchanges"], answer["seconds"])
        return Sample(measured, after[0].since(before[0]), after[1].since(before[1]))

    @contextlib.contextmanager
    def _answered(self, partner: str | None, what: Mapping[str, Any]) -> Iterator[None]:
        """The partner serves until the guest tells it that this sample is over, which it always does."""
        if partner is None:
            yield
            return
        self._tell(partner, what)
        try:
            yield
        except SampleFailed:
            if self._process is not None:
                with contextlib.suppress(SampleFailed):  # the first failure is the one to be told
                    self._await(partner, ANSWER_S)
            raise
        self._await(partner, ANSWER_S)

    def _ask(self, guest: str, order: Mapping[str, Any], patience_s: float) -> Mapping[str, Any]:
        self._tell(guest, order)
        return self._await(guest, patience_s)

    def _tell(self, guest: str, order: Mapping[str, Any]) -> None:
        os.write(self._fds[guest][0], (json.dumps(order) + "\n").encode())

    def _await(self, guest: str, patience_s: float) -> Mapping[str, Any]:
        answers = self._fds[guest][1]
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
        for entry in os.scandir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(entry.name), cpus)
