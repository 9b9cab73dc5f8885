"""`partvisor bench goals`: the speeds that were promised, each a ratio of two figures of the same round.

What the ring alone does is measured as in `bench ring`, in blocks of exchanges; whatever stands on the ladder is
measured as it is there. No figure in microseconds is a goal.
"""

import contextlib
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from bus.native import Histogram, monotonic_ns
from runtime.config.model import SignalRoute, WaitingKind
from runtime.exits import ExitCode
from runtime.measure import one_way
from runtime.measure.bench_ring import LARGE_BYTES, Bench, stream_of_c
from runtime.measure.goals import Goal, Values, conditions, row_of
from runtime.measure.ladder_machine import LadderMachine
from runtime.measure.ladder_rows import PYTHON_PEERS, c_row, machine_rows
from runtime.measure.measured_cpus import two_cpus
from runtime.measure.reference_programs import ReferencePrograms, reference_programs
from runtime.measure.results import Placement
from runtime.measure.ring_peer import BATCH_PACKETS, SMALL_BYTES
from runtime.measure.sample import Contestant, Order
from runtime.measure.sampling import LIMIT_CHANGE_MAX, RETAKES_MAX, Take, take_sample
from runtime.measure.transport import Impossible, NotInstalled
from runtime.measure.transport_pair import TransportRow
from runtime.reports import print_json, print_record, print_table

ROUNDS: Final = 5
SECONDS: Final = 0.2
QUICK_SECONDS: Final = 0.05
RECORDS: Final = 100_000
RECORD_NS_MAX: Final = 100
_ONE_WAY_MESSAGES_PER_S: Final = 1_000_000  # how many are sent for each second that is to be measured

GOALS: Final = (
    Goal("raw ring, both spin", "raw_spin", "slot", "ns", at_most=2),
    Goal("full exchange, both spin", "full_spin", "slot", "ns", at_most=4),
    Goal("full exchange in a machine, both spin", "vmbus_spin", "fastest_peer", "ns", at_most=1),
    Goal("default wait, 2 CPUs", "full_adaptive", "full_spin", "ns", at_most=1.5),
    Goal("default wait, 1 CPU", "full_adaptive_one", "eventfd_one", "ns", at_most=1.6),
    Goal("blocking, 2 CPUs", "full_block", "eventfd", "ns", at_most=1.1),
    Goal("blocking in a machine, direct", "vmbus_block", "eventfd", "ns", at_most=1.1),
    Goal("blocking in a machine, by the broker", "vmbus_broker", "eventfd", "ns", at_most=2.1),
    Goal("hypercall", "hypercall", "c_seqpacket", "ns", at_most=3),
    Goal("PostMessage, until it is received", "message", "c_seqpacket", "ns", at_most=3),
    Goal("intercepted port access", "port", "vmbus_block", "ns", at_most=3),
    Goal("intercepted port access, direct way", "port_direct", "vmbus_block", "ns", at_most=3),
    Goal(
        f"one way, batches of {BATCH_PACKETS}, to peers", "batch", "one_way_peer", "M packets/s", at_least=1
    ),
    Goal(f"one way, batches of {BATCH_PACKETS}, to C", "batch", "c_batch", "M packets/s", at_least=0.5),
    Goal("64 KiB that the consumer reads", "copy", "c_copy", "GB/s", at_least=0.8),
    Goal("recording a latency", "record", "record_limit", "ns", at_most=1),
)
REFERENCES: Final = {
    "slot": "one 64-byte slot, in C",
    "fastest_peer": "the fastest Python peer",
    "full_spin": "the same, both spin",
    "eventfd": "bare eventfds, in Python, 2 CPUs",
    "eventfd_one": "bare eventfds, in Python, 1 CPU",
    "c_seqpacket": "a Unix seqpacket round trip, in C",
    "vmbus_block": "the blocking exchange, direct",
    "one_way_peer": "the fastest Python peer",
    "c_batch": "the same ring, in C, publishing every 64",
    "c_copy": "the same ring, in C",
    "record_limit": "the goal itself",
}


class _Rungs:
    """Rows of the ladder, measured at 64 bytes on two CPUs."""

    def __init__(
        self, programs: ReferencePrograms, machine: LadderMachine, cpus: tuple[int, int], seconds: float
    ) -> None:
        rows = machine_rows(machine)
        self._rows: dict[tuple[str, WaitingKind], Contestant] = {(row.name, row.waiting): row for row in rows}
        machine.need(
            {row.guest for row in rows if row.name in ("vmbus-direct", "post-message", "port-io-direct")}
        )
        self._seqpacket = c_row(programs, "c-unix-seqpacket")
        self._cpus, self._seconds = cpus, seconds

    def p50_ns(self, contestant: Contestant) -> float:
        fixed = contestant.fixed_payload
        order = Order(
            payload_bytes=SMALL_BYTES if fixed is None else fixed,
            seconds=self._seconds,
            placement=Placement.TWO_CPUS,
            client_cpus=frozenset({self._cpus[0]}),
            server_cpus=frozenset({self._cpus[1]}),
        )
        return max(contestant.measure(order).measured.latency.percentile(50), 1)

    def ours(self, name: str, waiting: WaitingKind = WaitingKind.BLOCK) -> float:
        return self.p50_ns(self._rows[name, waiting])

    def seqpacket(self) -> float:
        return self.p50_ns(self._seqpacket)

    def peers(self) -> dict[str, float]:
        """Those that are installed."""
        found = {}
        for peer in PYTHON_PEERS:
            with contextlib.suppress(NotInstalled, Impossible):
                found[peer.name] = self.p50_ns(TransportRow.of_class(peer))
        return found


def one_round(bench: Bench, rungs: _Rungs, slot_ns: float) -> Values:
    """Every figure beside its reference."""
    exchange, mega, giga = bench.exchange_ns, 1e6, 1e9
    values: Values = {
        "slot": slot_ns,
        "raw_spin": exchange("raw", "spin"),
        "full_spin": exchange("full", "spin"),
        "full_adaptive": exchange("full", "adaptive"),
        "eventfd_one": exchange("eventfd", "block", one_cpu=True),
        "full_adaptive_one": exchange("full", "adaptive", one_cpu=True),
        "eventfd": exchange("eventfd", "block"),
        "full_block": exchange("full", "block"),
    }
    values |= {
        "vmbus_block": rungs.ours(f"vmbus-{SignalRoute.DIRECT}"),
        "vmbus_broker": rungs.ours(f"vmbus-{SignalRoute.BROKER}"),
        "c_seqpacket": rungs.seqpacket(),
        "hypercall": rungs.ours("hypercall"),
        "message": rungs.ours("post-message") / 2,  # there and back are two
        "port": rungs.ours("port-io"),
        "port_direct": rungs.ours("port-io-direct"),
        "vmbus_spin": rungs.ours(f"vmbus-{SignalRoute.DIRECT}", WaitingKind.SPIN),
        "fastest_peer": min(rungs.peers().values()),
    }
    packets = int(20_000_000 * bench.seconds)
    messages = int(_ONE_WAY_MESSAGES_PER_S * bench.seconds)
    values |= {
        "batch": bench.stream("batch")["packets_per_s"] / mega,
        "c_batch": stream_of_c(bench, "stream", packets, SMALL_BYTES, 64)["packets_per_s"] / mega,
        "one_way_peer": max(one_way.messages_per_s(name, messages, bench.cpus) for name in one_way.WAYS)
        / mega,
        "copy": bench.stream("copy")["bytes_per_s"] / giga,
        "c_copy": stream_of_c(bench, "stream", int(100_000 * bench.seconds), LARGE_BYTES, 1)["bytes_per_s"]
        / giga,
        "record": record_ns(),
        "record_limit": RECORD_NS_MAX,
    }
    return values


def record_ns(records: int = RECORDS) -> float:
    """What one recorded latency costs, from Python, loop included; the best of three."""
    best = float("inf")
    for _ in range(3):
        record, values = Histogram().record, range(1000, 1000 + records)
        begin = monotonic_ns()
        for value in values:
            record(value)
        best = min(best, (monotonic_ns() - begin) / records)
    return best


def measure(
    cpus: tuple[int, int], rounds: int, seconds: float
) -> tuple[list[Take[Values]], Mapping[str, Any]]:
    """Rounds, each with the limit around it; one in which that changed is taken again."""
    found = conditions(cpus)
    taken: list[Take[Values]] = []
    with reference_programs() as programs, LadderMachine() as machine:
        bench = Bench(cpus, seconds, False, programs)
        rungs = _Rungs(programs, machine, cpus, seconds)
        exchanges = max(int(1_000_000 * seconds), 20_000)

        def slot_ns() -> float:
            return float(bench.reference("slot_pingpong", exchanges, *cpus)["p50_ns"])

        for number in range(rounds):
            begin = time.monotonic()
            takes = take_sample(slot_ns, lambda: one_round(bench, rungs, slot_ns()))
            taken += takes
            left = (rounds - number - 1) * (time.monotonic() - begin)
            again = f", taken {len(takes)} times" if len(takes) > 1 else ""
            print(
                f"round {number + 1} of {rounds}{again}, about {left:.0f} s to go",
                file=sys.stderr,
                flush=True,
            )
    return taken, found


def run(*, cpus: tuple[int, int] | None = None, quick: bool = False, as_json: bool = False) -> int:
    """Measure and print; the exit code says whether every goal was met."""
    taken, found = measure(cpus or two_cpus(), 1 if quick else ROUNDS, QUICK_SECONDS if quick else SECONDS)
    steady = [take.sample for take in taken if not take.changed]
    rounds = steady or [take.sample for take in taken]
    rows = rows_of(rounds)
    report = {
        **found,
        "rounds": len(rounds),
        "retaken": len(taken) - len(steady),
        "limit_changed_by_more_than": LIMIT_CHANGE_MAX,
        "retakes_at_most": RETAKES_MAX,
        "steady": bool(steady),
        "slot_ns": round(statistics.median(values["slot"] for values in rounds), 1),
    }
    if as_json:
        print_json({"rows": rows, "conditions": report, "rounds": rounds})
    else:
        print_table(rows, "nothing was measured")
        print()
        print_record(report)
    return ExitCode.DONE if all(row["met"] for row in rows) else ExitCode.FAILED


def rows_of(rounds: Sequence[Values]) -> list[dict[str, Any]]:
    """Measured and wanted, a row for each goal."""
    return [row_of(goal, REFERENCES, list(rounds)) for goal in GOALS]
