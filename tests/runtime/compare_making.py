"""Made-up comparisons: the same seed gives the same one, and every effect in it is known."""

import random
from collections.abc import Sequence
from typing import Final

from runtime.config.architecture import Architecture
from runtime.config.model import SignalRoute
from runtime.measure.architectures import Boot, Findings, LoadFigures
from runtime.measure.compare_matrix import Terms, Variant
from runtime.measure.compare_run import Entry, Result, Turn
from runtime.measure.data_access import Survey
from runtime.measure.process_usage import Usage
from runtime.measure.results import Placement, Status
from runtime.measure.trusted_code import CodeBytes
from tests.runtime.result_making import conditions, latencies

LOADS: Final = ("4 KiB reads", "64 KiB writes, 4 at a time")
VALUES: Final = 400  # requests of a load and turn


def load_figures(rng: random.Random, name: str, factor: float, server: str) -> LoadFigures:
    """A load whose requests take 10 us times `factor`, and cost twice that."""
    latency = latencies(rng, 10_000 * factor, VALUES)
    seconds = VALUES * 10e-6 * factor
    cpu_ns = round(VALUES * 10_000 * factor)
    usage = {"guest": Usage(cpu_ns, VALUES, 0), server: Usage(cpu_ns, VALUES, 7), "hypervisor": Usage()}
    return LoadFigures(name, ("guest",), 4096, 1, VALUES, seconds, latency, usage)


def findings(server: str, *, whole: bool = True) -> Findings:
    trusted = tuple(dict.fromkeys(("hypervisor", "root", server)))
    code = {name: CodeBytes(500_000, 6_000_000) for name in trusted}
    survey = Survey({server: ("maps guest pages",)}, ("hypervisor",), () if whole else (server,))
    return Findings(
        survey, trusted, CodeBytes(1_234_567, 11_000_000) if whole else None, code, code if whole else {}
    )


def entry(
    rng: random.Random,
    variant: Variant,
    terms: Terms,
    factor: float,
    rounds: int,
    server: str,
    whole: bool = True,
) -> Entry:
    turns = [
        Turn(
            at_s=float(number),
            limit_ns=120.0,
            boot=Boot(
                tuple(load_figures(rng, name, factor * rng.uniform(0.98, 1.02), server) for name in LOADS),
                {"guest": 20 << 20, server: 30 << 20},
                findings(server, whole=whole) if number == 0 else None,
            ),
        )
        for number in range(rounds)
    ]
    return Entry(variant, terms, turns=turns)


def comparison(
    factors: Sequence[float] = (1.0, 3.0), rounds: int = 6, seed: int = 1, label: str = "", whole: bool = True
) -> Result:
    """The own variant, others that take so many times as long, one that does not exist and one that failed."""
    rng = random.Random(seed)
    kinds = [
        Architecture.MICROKERNELIZED,
        Architecture.HOSTED,
        Architecture.DISAGGREGATED,
        Architecture.MONOLITHIC,
    ]
    entries = [
        entry(
            rng, Variant(kind), Terms(kind.value, "direct", "block"), factor, rounds, f"server{number}", whole
        )
        for number, (kind, factor) in enumerate(zip(kinds, factors, strict=False))
    ]
    microkernel = Variant(Architecture.MICROKERNEL, SignalRoute.BROKER)
    absent = Entry(
        microkernel, Terms("microkernel", "broker", "block"), Status.NOT_POSSIBLE, "no <rings> & bells"
    )
    failed = Entry(
        Variant(Architecture.MICROKERNEL), Terms("microkernel", "-", "-"), Status.FAILED, "it died"
    )
    return Result(
        id="0123456789ab",
        source="some.toml",
        started_unix_ns=1_700_000_000_000_000_000,
        seconds=12.0,
        seed=seed,
        rounds=rounds,
        label=label,
        conditions=conditions(),
        placement=Placement.UNPINNED,
        entries=(*entries, absent, failed),
    )
