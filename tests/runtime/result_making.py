"""Made-up runs for tests: the same seed gives the same run, and every effect in it is known."""

import array
import math
import random
from collections.abc import Callable
from typing import Any, Final

from bus.native import Histogram
from runtime.config.model import WaitingKind
from runtime.measure.results import (
    Conditions,
    Hop,
    IdleCpus,
    Mode,
    Placement,
    Round,
    Row,
    Run,
    Status,
)

VALUES: Final = 600  # of a round


def latencies(rng: random.Random, middle_ns: float, values: int = VALUES, slow: float = 0.02) -> Histogram:
    """Spread by 10 %, and a slow share with a long tail."""
    drawn = [
        round(middle_ns * math.exp(rng.gauss(0, 0.1)))
        + (round(rng.expovariate(1 / (5 * middle_ns))) if rng.random() < slow else 0)
        for _ in range(values)
    ]
    histogram = Histogram()
    histogram.record_many(array.array("Q", drawn).tobytes())
    return histogram


def rounds(
    rng: random.Random,
    middle_ns: float,
    count: int,
    between: float = 0.05,
    limit_ns: Callable[[int], float] = lambda number: 120.0,
    values: int = VALUES,
) -> tuple[Round, ...]:
    """`between`: how far one round's middle lies from the next, as a standard deviation of the logarithm."""
    return tuple(
        Round(
            at_s=float(number),
            limit_ns=limit_ns(number) * math.exp(rng.gauss(0, 0.02)),
            latency=latencies(rng, middle_ns * math.exp(rng.gauss(0, between)), values),
            exchanges=values,
            seconds=values * middle_ns / 1e9,
            client_cpu_ns=round(values * middle_ns),
            server_cpu_ns=round(values * middle_ns),
            voluntary_switches=values,
            involuntary_switches=1,
            wake_ups=values,
        )
        for number in range(count)
    )


def row(transport: str = "pipe", **changes: Any) -> Row:
    fields: dict[str, Any] = {
        "transport": transport,
        "group": "kernel",
        "payload_bytes": 64,
        "waiting": WaitingKind.BLOCK,
        "placement": Placement.TWO_CPUS,
    }
    return Row(**(fields | changes))


def missing(transport: str, reason: str = "no such package", **changes: Any) -> Row:
    return row(transport, status=Status.NOT_INSTALLED, reason=reason, **changes)


def open_row(rng: random.Random, transport: str, per_s: float, middle_ns: float, **changes: Any) -> Row:
    return row(transport, mode=Mode.OPEN, offered_per_s=per_s, rounds=rounds(rng, middle_ns, 5), **changes)


def hops(rng: random.Random, **middles_ns: float) -> tuple[Hop, ...]:
    return tuple(
        Hop(name=name.replace("_", " "), latency=latencies(rng, middle_ns))
        for name, middle_ns in middles_ns.items()
    )


def conditions(**changes: Any) -> Conditions:
    fields: dict[str, Any] = {
        "machine": "host (x86_64)",
        "kernel": "6.1.0",
        "cpu_model": "Some CPU",
        "cpus": (0, 1),
        "governor": "none visible",
        "clock_source": "tsc",
        "scheduler_class": "SCHED_OTHER",
        "load_before": 0.25,
        "idle_cpus": IdleCpus.HALT,
    }
    return Conditions(**(fields | changes))


def run(*rows: Row, number: int = 1, **changes: Any) -> Run:
    """`number` makes the id and the time."""
    fields: dict[str, Any] = {
        "id": f"{number:012x}",
        "bench": "ladder",
        "started_unix_ns": 1_700_000_000_000_000_000 + number * 10**9,
        "revision": "0123456789ab",
        "versions": {"python": "3.11.7", "partvisor": "0.1.0"},
        "conditions": conditions(),
        "rows": rows,
    }
    return Run(**(fields | changes))
