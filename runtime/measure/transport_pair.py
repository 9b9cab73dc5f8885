"""Measures a transport: opens it, forks its two sides, pins them, times their exchanges, kills both, closes it.

The sides are forks of this process, so that they inherit what `open` made. They die with it. Whatever goes wrong on
either side comes back as one line.
"""

import contextlib
import json
import os
import secrets
import select
import signal
import sys
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, NoReturn

from bus.native import Histogram
from runtime.config.model import WaitingKind
from runtime.machine.lifeline import die_with_parent
from runtime.measure.exchanges import Client, Measured, make_answer
from runtime.measure.process_usage import Usage
from runtime.measure.sample import Order, Sample, SampleFailed
from runtime.measure.transport import Impossible, NotInstalled, Transport, TransportMaker

PATIENCE_S: Final = (
    30.0  # beside the time that is measured: for connecting, warming up, and one slow exchange
)
_LOOK_MS: Final = 200  # how often it is seen whether both sides live, while they say nothing
_ANSWER_BYTES_MAX: Final = 1 << 20
_READ_BYTES: Final = 1 << 16

Say = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class TransportRow:
    """A Contestant made of a transport."""

    make: TransportMaker
    name: str
    group: str
    waiting: WaitingKind
    fixed_payload: int | None = None

    @classmethod
    def of_class(cls, transport: type[Transport]) -> "TransportRow":
        return cls(transport, transport.name, transport.group, transport.waiting)

    def measure(self, order: Order) -> Sample:
        return measure_pair(self.make, order)


def measure_pair(make: TransportMaker, order: Order) -> Sample:
    """One sample. NotInstalled, Impossible: `open` said so. SampleFailed: a side failed, hung, or cheated."""
    transport = make()
    try:
        transport.open(order.payload_bytes)
    except (NotInstalled, Impossible):
        raise
    except Exception as error:
        raise SampleFailed(f"{transport.name}: {type(error).__name__}: {error}") from error
    sides: list[int] = []
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    try:
        key = secrets.randbits(32)
        server = 0
        if not transport.one_process:
            server = _fork(write_fd, order.server_cpus, lambda say: _serve(transport, key, say))
            sides.append(server)
        sides.append(
            _fork(write_fd, order.client_cpus, lambda say: _measure(transport, key, order, server, say))
        )
        os.close(write_fd)
        write_fd = -1
        return _sample_of(_await_answer(read_fd, sides, transport.name, order.seconds))
    finally:
        _end(sides)
        for fd in (read_fd, write_fd):
            if fd >= 0:
                os.close(fd)
        transport.close()


def _fork(report_fd: int, cpus: Collection[int], body: Callable[[Say], None]) -> int:
    """A process that runs `body`, and never returns."""
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _live(report_fd, parent, cpus, body)
    return pid


def _live(report_fd: int, parent: int, cpus: Collection[int], body: Callable[[Say], None]) -> NoReturn:
    def say(answer: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            os.write(report_fd, (json.dumps(answer) + "\n").encode())

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        die_with_parent(parent)
        os.setpgid(0, 0)  # whatever a user's transport starts can be found again
        os.dup2(2, 1)  # what it prints is no part of our report
        os.sched_setaffinity(0, cpus)
        body(say)
    except BaseException as error:
        say(_error(error))
    os._exit(0)


def _error(error: BaseException) -> Mapping[str, Any]:
    return {"error": " ".join(f"{type(error).__name__}: {error}".split())}


def _serve(transport: Transport, key: int, say: Say) -> None:
    transport.serve(make_answer(key))
    say({"error": "serve returned: it has to go on for ever"})


def _measure(transport: Transport, key: int, order: Order, server: int, say: Say) -> None:
    ours, theirs = _meters(transport, key, order, server, say)
    transport.connect()
    client = Client(transport.exchange, order.payload_bytes, key)
    client.warm_up()
    before = ours(), theirs()
    if order.rate_per_s is None:
        measured = client.closed(order.seconds)
    else:
        measured = client.open(order.seconds, order.rate_per_s)
    after = ours(), theirs()
    say(
        {
            "latency": b64encode(measured.latency.pack()).decode(),
            "exchanges": measured.exchanges,
            "seconds": measured.seconds,
            "client": asdict(after[0].since(before[0])),
            "server": asdict(after[1].since(before[1])),
        }
    )


def _meters(
    transport: Transport, key: int, order: Order, server: int, say: Say
) -> tuple[Callable[[], Usage], Callable[[], Usage]]:
    """How to read what client and server have used: each its process, or its thread of this one."""
    pid = os.getpid()
    if not transport.one_process:
        return lambda: Usage.of_process(pid), lambda: Usage.of_process(server)

    def serve() -> None:
        try:
            os.sched_setaffinity(0, order.server_cpus)
            _serve(transport, key, say)
        except BaseException as error:
            say(_error(error))
        os._exit(0)  # the client would wait for a reply that does not come

    thread = threading.Thread(target=serve, name="server", daemon=True)
    thread.start()
    while thread.native_id is None:
        time.sleep(0.001)
    client_thread, server_thread = threading.get_native_id(), thread.native_id
    return lambda: Usage.of_thread(client_thread), lambda: Usage.of_thread(server_thread)


def _await_answer(read_fd: int, sides: Collection[int], name: str, seconds: float) -> Mapping[str, Any]:
    """The first line that either side says. SampleFailed: both are silent, or one died without a word."""
    deadline = time.monotonic() + 3 * seconds + PATIENCE_S
    data = bytearray()
    poller = select.poll()
    poller.register(read_fd, select.POLLIN)
    while b"\n" not in data:
        if poller.poll(_LOOK_MS):
            if not (piece := os.read(read_fd, _READ_BYTES)) or len(data) > _ANSWER_BYTES_MAX:
                raise SampleFailed(f"{name}: its processes ended without an answer")
            data += piece
        elif any(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) for pid in sides):
            raise SampleFailed(f"{name}: one of its processes died without a word")
        elif time.monotonic() > deadline:
            raise SampleFailed(f"{name}: no reply within {PATIENCE_S:.0f} s")
    answer: Mapping[str, Any] = json.loads(data.partition(b"\n")[0])
    if "error" in answer:
        raise SampleFailed(f"{name}: {answer['error']}")
    return answer


def _sample_of(answer: Mapping[str, Any]) -> Sample:
    latency = Histogram.unpack(b64decode(answer["latency"]))
    measured = Measured(latency, answer["exchanges"], answer["seconds"])
    return Sample(measured, Usage(**answer["client"]), Usage(**answer["server"]))


def _end(sides: list[int]) -> None:
    """Kill both and all that they started, and reap them."""
    for pid in sides:
        for kill in (os.killpg, os.kill):  # before it has a group of its own there is only itself
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)
    for pid in sides:
        os.waitpid(pid, 0)
