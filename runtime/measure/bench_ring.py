"""`partvisor bench ring`: what a ring costs, each figure beside a reference measured in the same round.

One round measures every figure and every reference once, in turn, so that what drifts (frequency, placement by a
hypervisor below us, neighbours) drifts for both. Ratios are taken within a round; the median over the rounds is given.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from json import loads
from typing import Any, Final

from bus.native import PAGE_BYTES
from runtime.exits import CommandError, ExitCode
from runtime.measure.goals import Goal, Values, conditions, row_of
from runtime.measure.measured_cpus import two_cpus
from runtime.measure.reference_programs import ReferencePrograms, reference_programs
from runtime.measure.ring_peer import BATCH_PACKETS, SMALL_BYTES, PeerTask
from runtime.reports import print_json, print_record, print_table

ROUNDS: Final = 5
SECONDS: Final = 0.4  # of exchanges, for each figure and round
RING_BYTES: Final = 262_144  # data area, each way; the C reference has the same
LARGE_BYTES: Final = 65_536
PATIENCE_S: Final = 300
QUIET_SHARE: Final = 0.05  # a process that stood longer than this in the run queue was disturbed

_PACKETS_A_SECOND: Final = {
    "one_by_one": 8_000_000,
    "batch": 20_000_000,
    "copy": 100_000,
    "checksum": 100_000,
}


GOALS: Final = (
    Goal("raw exchange, both spin, 2 CPUs", "raw_spin", "slot", "ns", at_most=2),
    Goal("full exchange, both spin, 2 CPUs", "full_spin", "slot", "ns", at_most=5),
    Goal("full exchange, adaptive, 2 CPUs", "full_adaptive", "full_spin", "ns", at_most=2),
    Goal("full exchange, adaptive, 1 CPU", "full_adaptive_one", "eventfd_one", "ns", at_most=1.6),
    Goal("full exchange, block, 1 CPU", "full_block_one", "eventfd_one", "ns", at_most=1.1),
    Goal("full exchange, block, 2 CPUs", "full_block", "eventfd", "ns", at_most=1.1),
    Goal("write + read in C, 1 thread", "write_read", "locked_add", "ns", at_most=5),
    Goal("one way, one by one", "one_by_one", "c_one_by_one", "M packets/s", value_at_least=10, at_least=0.5),
    Goal(
        f"one way, batches of {BATCH_PACKETS}",
        "batch",
        "c_batch",
        "M packets/s",
        value_at_least=25,
        at_least=0.5,
    ),
    Goal("64 KiB, receive_into", "copy", "c_copy", "GB/s", at_least=0.8),
    Goal("64 KiB, crc32c over peek_views", "checksum", "c_checksum", "GB/s", at_least=0.8),
)

REFERENCES: Final = {
    "slot": "one 64-byte slot, in C",
    "full_spin": "the same, both spin",
    "eventfd": "bare eventfds, in Python, 2 CPUs",
    "eventfd_one": "bare eventfds, in Python, 1 CPU",
    "locked_add": "a locked add",
    "c_one_by_one": "the same ring, in C",
    "c_batch": "the same ring, in C, publishing every 64",
    "c_copy": "the same ring, in C",
    "c_checksum": "the same ring, in C",
}


@dataclass(slots=True)
class Bench:
    """Where and how the measurements run."""

    cpus: tuple[int, int]
    seconds: float
    realtime: bool
    programs: ReferencePrograms
    queued_shares: list[float] = field(default_factory=list)

    def exchange_ns(self, kind: str, waiting: str, one_cpu: bool = False) -> float:
        return self._pair(kind, waiting, one_cpu)["p50_ns"]

    def stream(self, kind: str) -> Values:
        return self._pair(kind, "adaptive", False)

    def _pair(self, kind: str, waiting: str, one_cpu: bool) -> Values:
        """Run a client and a server; the answer is that of the side that took the time."""
        is_stream = kind in _PACKETS_A_SECOND
        packets = int(_PACKETS_A_SECOND.get(kind, 0) * self.seconds) + 1
        with (
            _shared_memory(2 * (PAGE_BYTES + RING_BYTES)) as memory_fd,
            _doorbells(kind != "eventfd") as bells,
        ):
            processes = []
            try:
                for role, cpu in (("server", self.cpus[not one_cpu]), ("client", self.cpus[0])):
                    task = PeerTask(
                        role=role,
                        kind=kind,
                        waiting=waiting,
                        cpu=cpu,
                        realtime=self.realtime and not one_cpu,  # it changes whom a wake-up lets run first
                        memory_fd=memory_fd,
                        ring_bytes=RING_BYTES,
                        bells=bells,
                        seconds=self.seconds,
                        packets=packets,
                        payload_bytes=LARGE_BYTES if kind in ("copy", "checksum") else SMALL_BYTES,
                    )
                    processes.append(_start(task))
                answers = [_answer_of(process) for process in processes]
            finally:
                for process in processes:
                    process.kill()
                    process.wait()
        if not one_cpu:
            self.queued_shares.extend(answer["queued_share"] for answer in answers)
        return answers[0 if is_stream else 1]

    def reference(self, *arguments: object) -> dict[str, Any]:
        return self.programs.run(*map(str, arguments))


@contextmanager
def _shared_memory(size_bytes: int) -> Iterator[int]:
    """New memory is zero, which is an empty ring: nobody has to reset it."""
    fd = os.memfd_create("bench-ring", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size_bytes)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _doorbells(nonblocking: bool) -> Iterator[tuple[int, int]]:
    flags = os.EFD_CLOEXEC | (os.EFD_NONBLOCK if nonblocking else 0)
    first, second = os.eventfd(0, flags), os.eventfd(0, flags)
    try:
        yield first, second
    finally:
        os.close(first)
        os.close(second)


def _start(task: PeerTask) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "runtime.measure.ring_peer", task.argument()],
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[task.memory_fd, *task.bells],
    )


def _answer_of(process: subprocess.Popen[str]) -> Values:
    output, _ = process.communicate(timeout=PATIENCE_S)
    if process.returncode != 0:
        raise CommandError("a measuring process failed; its own message is above")
    answer: Values = loads(output)
    return answer


def one_round(bench: Bench) -> Values:
    """Every figure and every reference once; figures beside their references."""
    first, second = bench.cpus
    exchanges = int(2_000_000 * bench.seconds)
    overhead = bench.reference("ring_c", "overhead", int(10_000_000 * bench.seconds))
    small = {kind: int(_PACKETS_A_SECOND[kind] * bench.seconds) for kind in ("one_by_one", "batch")}
    large = int(_PACKETS_A_SECOND["copy"] * bench.seconds)
    giga, mega = 1e9, 1e6
    return {
        "slot": bench.reference("slot_pingpong", exchanges, first, second)["p50_ns"],
        "raw_spin": bench.exchange_ns("raw", "spin"),
        "full_spin": bench.exchange_ns("full", "spin"),
        "full_adaptive": bench.exchange_ns("full", "adaptive"),
        "eventfd_one": bench.exchange_ns("eventfd", "block", one_cpu=True),
        "full_adaptive_one": bench.exchange_ns("full", "adaptive", one_cpu=True),
        "full_block_one": bench.exchange_ns("full", "block", one_cpu=True),
        "eventfd": bench.exchange_ns("eventfd", "block"),
        "full_block": bench.exchange_ns("full", "block"),
        "write_read": overhead["write_read_ns"],
        "locked_add": overhead["locked_add_ns"],
        "c_one_by_one": stream_of_c(bench, "stream", small["one_by_one"], SMALL_BYTES, 1)["packets_per_s"]
        / mega,
        "one_by_one": bench.stream("one_by_one")["packets_per_s"] / mega,
        "c_batch": stream_of_c(bench, "stream", small["batch"], SMALL_BYTES, 64)["packets_per_s"] / mega,
        "batch": bench.stream("batch")["packets_per_s"] / mega,
        "c_copy": stream_of_c(bench, "stream", large, LARGE_BYTES, 1)["bytes_per_s"] / giga,
        "copy": bench.stream("copy")["bytes_per_s"] / giga,
        "c_checksum": stream_of_c(bench, "checksum", large, LARGE_BYTES)["bytes_per_s"] / giga,
        "checksum": bench.stream("checksum")["bytes_per_s"] / giga,
    }


def stream_of_c(bench: Bench, what: str, packets: int, *sizes: int) -> dict[str, Any]:
    """One way through the same ring, driven by C."""
    return bench.reference("ring_c", what, packets, *sizes, *bench.cpus)


def measure(
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    cpus: tuple[int, int] | None = None,
    realtime: bool = False,
) -> dict[str, Any]:
    """Measure everything `rounds` times.

    Args:
        seconds: how long exchanges are timed, for each figure and round; streams are about as long.
        cpus: of the client and the server; default: the first two that this process may use.
        realtime: run what has a CPU for each side under SCHED_FIFO, which keeps other processes out; needs the right.

    Returns:
        "rows": a list of {name, value, unit, reference, ratio, goal, met}; "rounds": each round's raw values;
        "conditions": what they were measured under.

    Raises:
        CommandError: no C compiler, no second CPU, or no right to SCHED_FIFO.
    """
    cpus = two_cpus(cpus)
    found = conditions(cpus)
    with reference_programs(realtime) as programs:
        bench = Bench(cpus, seconds, realtime, programs)
        measured = [one_round(bench) for _ in range(rounds)]
    queued = max(bench.queued_shares)
    return {
        "rows": [row_of(goal, REFERENCES, measured) for goal in GOALS],
        "conditions": {
            **found,
            "scheduler_class": "SCHED_FIFO on 2 CPUs, SCHED_OTHER on 1" if realtime else "SCHED_OTHER",
            "rounds": rounds,
            "seconds": seconds,
            "ring_bytes": RING_BYTES,
            "longest_share_in_run_queue": round(queued, 3),
            "undisturbed": queued <= QUIET_SHARE,
        },
        "rounds": measured,
    }


def run(*, cpus: tuple[int, int] | None = None, quick: bool = False, as_json: bool = False) -> int:
    """Measure and print; the exit code says whether every goal was met."""
    report = measure(1 if quick else ROUNDS, SECONDS / 4 if quick else SECONDS, cpus)
    if as_json:
        print_json(report)
    else:
        print_table(report["rows"], "nothing was measured")
        print()
        print_record(report["conditions"])
    return ExitCode.DONE if all(row["met"] for row in report["rows"]) else ExitCode.FAILED
