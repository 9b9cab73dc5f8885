"""What an experiment file says. docs/chaos.md explains each key.

[experiment]
name = "root-dies-twice"
machine = "machine.toml"       # left out: a machine with one disk, made for this

[workload]                     # of that machine: guests that verify every block
guests = 2

[[fault]]
kind = "kill"
target = "root"
at_ms = [200, 900]             # after the steady state; a range is drawn from the trial's seed

[[fault]]
kind = "kill"
target = "root"
on = "root.started"            # an event of the machine
nth = 2

[[check]]
kind = "history"
"""

import enum
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from runtime.config.architecture import Architecture
from runtime.config.model import OnRootFailure
from runtime.config.shape import Name, Shape

MILLISECONDS_MAX: Final = 3_600_000
FAULTS_MAX: Final = 64
CHECKS_MAX: Final = 32
GUESTS_MAX: Final = 8
INJECTIONS_MAX: Final = 256  # of one trial

Milliseconds = Annotated[int, Meta(ge=0, le=MILLISECONDS_MAX)]
Text = Annotated[str, Meta(min_length=1, max_length=400)]


class Table(Shape, frozen=True, kw_only=True):
    """One table of an experiment: no part of a machine's configuration."""


class ExperimentSettings(Table, frozen=True, kw_only=True):
    """[experiment]"""

    name: Annotated[Name, Meta(description="Of the reports.")]
    description: Annotated[str, Meta(description="A sentence for its readers.", max_length=400)] = ""
    machine: Annotated[
        Path | None,
        Meta(description="A configuration, relative to this file. Left out: one is made for [workload]."),
    ] = None
    set: Annotated[tuple[Text, ...], Meta(description="As `partvisor run --set`.", max_length=64)] = ()
    architectures: Annotated[
        tuple[Architecture, ...],
        Meta(description="Every trial once under each. Left out: as the configuration says.", max_length=5),
    ] = ()
    seconds: Annotated[int, Meta(ge=1, le=3600, description="Of load, at most, in each trial.")] = 5
    settle_ms: Annotated[
        Milliseconds,
        Meta(
            description="The load goes on for so long when no fault can strike any more; then the trial ends."
        ),
    ] = 500
    drain_ms: Annotated[
        Milliseconds, Meta(description="After the last fault was healed, until the load has to have ended.")
    ] = 30_000


class Workload(Table, frozen=True, kw_only=True):
    """[workload]: guests on one disk. With `machine`, its own partitions are the load, and this is left out."""

    guests: Annotated[int, Meta(ge=1, le=GUESTS_MAX)] = 1
    depth: Annotated[int, Meta(ge=1, le=128, description="Requests in flight, of each guest.")] = 32
    blocks: Annotated[int, Meta(ge=8, le=3072, description="Of 4 KiB, that all guests share.")] = 512
    operations: Annotated[int, Meta(ge=1, le=1_000_000, description="Of each guest, at most.")] = 400_000
    on_root_failure: OnRootFailure = OnRootFailure.STANDBY
    reopening: Annotated[
        bool, Meta(description="One more guest, which opens and closes its channel all the time.")
    ] = False
    sequenced: Annotated[
        bool,
        Meta(
            description="One more guest, which exchanges numbered messages with a device of its own, echo0."
        ),
    ] = False
    bystander: Annotated[
        bool, Meta(description="One more guest, on a disk of its own that no fault is aimed at.")
    ] = False


class Steady(Table, frozen=True, kw_only=True):
    """[steady]: what must hold before the first fault. Otherwise the trial is inconclusive."""

    operations: Annotated[int, Meta(ge=1, le=1_000_000, description="Completed by each verifying guest.")] = (
        200
    )
    within_ms: Milliseconds = 30_000


Microseconds = Annotated[int, Meta(ge=0, le=MILLISECONDS_MAX * 1000)]


class Simulated(Table, frozen=True, kw_only=True):
    """[simulated]: of the deterministic mode alone. How long things take there, and how the load thinks."""

    seconds: Annotated[
        int, Meta(ge=1, le=86_400, description="Of load, in the place of [experiment] seconds.")
    ] = 30
    think_ms: Annotated[
        int, Meta(ge=1, le=MILLISECONDS_MAX, description="Between two bursts of a guest, on average.")
    ] = 2_000
    burst: Annotated[
        int, Meta(ge=1, le=128, description="Requests that a guest begins at once, at most.")
    ] = 8
    operations: Annotated[
        int, Meta(ge=1, le=1_000_000, description="In the place of [steady] operations: here they cost time.")
    ] = 10
    boot_ms: Annotated[Milliseconds, Meta(description="Until the root has booted.")] = 150
    spawn_ms: Annotated[Milliseconds, Meta(description="Of a guest, until its program runs.")] = 60
    restart_ms: Annotated[
        Milliseconds, Meta(description="Of a root or a driver, until it can take over.")
    ] = 12
    take_over_ms: Annotated[Milliseconds, Meta(description="The same of a root that waits: standby.")] = 2
    medium_us: Annotated[Microseconds, Meta(description="Of one request at the medium, on average.")] = 2_000
    request_us: Annotated[Microseconds, Meta(description="Of a server, for one request.")] = 20
    wake_us: Annotated[Microseconds, Meta(description="From a doorbell or a message to whoever sleeps.")] = 30


class FaultPlan(Table, frozen=True, kw_only=True):
    """[[fault]]. A number in `parameters` may be { from = 1, to = 9 }, any value { any = [...] }: the seed draws."""

    kind: Annotated[str, Meta(description="A name of `partvisor faults`.", max_length=64)]
    target: Annotated[str, Meta(description="A partition, a device, 'root' or 'hypervisor'.", max_length=64)]
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    knobs: Annotated[
        dict[str, Any], Meta(description="probability, interval, times, space: at its seam.")
    ] = msgspec.field(default_factory=dict)
    at_ms: Annotated[
        tuple[Milliseconds, ...],
        Meta(description="When, after the steady state: [at], or [earliest, latest].", max_length=2),
    ] = ()
    on: Annotated[str, Meta(description="Or: at an event of that kind.", max_length=64)] = ""
    nth: Annotated[
        int, Meta(ge=1, le=10_000, description="The n-th such event from the steady state on.")
    ] = 1
    delay_ms: Annotated[Milliseconds, Meta(description="After the event.")] = 0
    for_ms: Annotated[
        Milliseconds | None, Meta(description="Healed after so long. Left out: at the end of the trial.")
    ] = None
    count: Annotated[int, Meta(ge=1, le=64, description="So many of it, each drawn anew.")] = 1
    every_ms: Annotated[Milliseconds, Meta(description="From one to the next.")] = 0
    chance: Annotated[int, Meta(ge=1, le=100, description="Percent of the trials that have it at all.")] = 100


class CheckPlan(Table, frozen=True, kw_only=True):
    """[[check]]"""

    kind: Annotated[str, Meta(description="A name of `partvisor chaos checks`.", max_length=64)]
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)


class Statistic(enum.StrEnum):
    """What a threshold can be about."""

    OUTAGE_P50_MS = "outage-p50-ms"  # longest wait of a guest, over all faults that fired
    OUTAGE_P99_MS = "outage-p99-ms"
    OUTAGE_MAX_MS = "outage-max-ms"
    VIOLATED = "violated"  # trials
    INCONCLUSIVE = "inconclusive"


class Threshold(Table, frozen=True, kw_only=True):
    """[[threshold]]: over all trials."""

    of: Statistic
    at_most: Annotated[int, Meta(ge=0, le=1_000_000_000)]


class Experiment(Table, frozen=True, kw_only=True):
    """A whole file. Paths are absolute."""

    experiment: ExperimentSettings
    workload: Workload = Workload()
    steady: Steady = Steady()
    simulated: Simulated = Simulated()
    faults: Annotated[tuple[FaultPlan, ...], Meta(max_length=FAULTS_MAX)] = msgspec.field(
        name="fault", default=()
    )
    checks: Annotated[tuple[CheckPlan, ...], Meta(max_length=CHECKS_MAX)] = msgspec.field(
        name="check", default=()
    )
    thresholds: Annotated[tuple[Threshold, ...], Meta(max_length=16)] = msgspec.field(
        name="threshold", default=()
    )

    @property
    def name(self) -> str:
        return self.experiment.name
