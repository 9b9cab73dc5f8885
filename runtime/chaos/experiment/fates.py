"""What became of each fault of a trial, read from the machine's events and its guests' histories. No I/O.

injected    its order was taken
fired       its seam was passed and it struck, first
detected    the machine said, between that and its healing, that something is wrong: an event of DETECTIONS
recovered   the first request that a guest saw completed after that; where nothing was detected, after it fired
"""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from runtime.chaos.experiment.evidence import NS_PER_MS
from runtime.chaos.experiment.journal import Fate
from runtime.chaos.experiment.schedule import Schedule
from runtime.chaos.history import History
from runtime.chaos.liveness import gaps_around
from runtime.chaos.running_machine import Event

# What a machine tells when it notices a fault.
DETECTIONS: Final = frozenset(
    {
        "root.exited",
        "root.hung",
        "root.stuck",
        "root.protocol_error",
        "driver.exited",
        "driver.failed",
        "driver.protocol_error",
        "guest.driver_stuck",
        "guest.driver_channel_stuck",
        "partition.exited",
        "partition.crashed",
        "vmbus.channel_broken",
        "vmbus.channel_failed",
        "vmbus.channel_stuck",
        "vmbus.guest_does_not_read",
        "vmbus.protocol_error",
        "storage.error",
        "guest.verified_suspect",
        "machine.ending",
    }
)
_BUCKET_MS: Final = 20.0
POINTS_MAX: Final = 4_000  # of one trial's picture
TIMELINE_MAX: Final = 1_000


def fates_of(
    schedule: Schedule,
    refused: Mapping[int, str],
    events: Sequence[Event],
    counts: Mapping[int, tuple[int, int]],
    histories: Collection[History],
    began_ns: int,
) -> tuple[Fate, ...]:
    """One for each injection.

    Args:
        refused: number to reason, of those that could not be injected.
        counts: number to (passes, fired), as last asked for; events of healed ones count, too.
    """

    def since(instant: int | None) -> float | None:
        return None if instant is None else (instant - began_ns) / NS_PER_MS

    completions = sorted(
        operation.completed_ns
        for history in histories
        for operation in history.operations
        if operation.completed_ns is not None
    )
    fates = []
    for injection in schedule:
        number = injection.order.number
        told = {
            event["kind"].removeprefix("fault."): event
            for event in reversed(events)  # so that the first of a kind stays
            if event["kind"].startswith("fault.") and event["fields"].get("number") == number
        }
        injected, fired, healed = (_instant(told.get(name)) for name in ("injected", "fired", "healed"))
        passes, times = counts.get(number, (0, 0))
        if "healed" in told:
            passes = max(passes, int(told["healed"]["fields"].get("passes", 0)))
            times = max(times, int(told["healed"]["fields"].get("fired", 0)))
        detected = recovered = None
        if fired is not None:
            times = max(times, 1)
            detected = min(
                (
                    event["monotonic_ns"]
                    for event in events
                    if event["kind"] in DETECTIONS
                    and fired <= event["monotonic_ns"]
                    and (healed is None or event["monotonic_ns"] <= healed)
                ),
                default=None,
            )
            later = bisect_right(completions, detected or fired)
            recovered = completions[later] if later < len(completions) else None
        fates.append(
            Fate(
                number,
                since(injected),
                since(fired),
                passes,
                times,
                since(healed),
                since(detected),
                since(recovered),
                refused.get(number, ""),
            )
        )
    return tuple(fates)


def outages_ms(fates: Sequence[Fate], histories: Collection[History], began_ns: int) -> tuple[float, ...]:
    """For each fault that fired and each guest, the wait that includes its moment, where there was one."""
    instants = [began_ns + round(fate.fired_ms * NS_PER_MS) for fate in fates if fate.fired_ms is not None]
    return tuple(
        gap.length_ns / NS_PER_MS
        for history in histories
        for gap in gaps_around(history, instants)
        if gap is not None
    )


def latency_points(histories: Collection[History], began_ns: int) -> tuple[tuple[float, float], ...]:
    """The slowest completion of each stretch of _BUCKET_MS, as (ms since the steady state, ms that it took)."""
    slowest: dict[int, float] = {}
    for history in histories:
        for operation in history.operations:
            if operation.completed_ns is None:
                continue
            bucket = int((operation.completed_ns - began_ns) / NS_PER_MS // _BUCKET_MS)
            took = (operation.completed_ns - operation.invoked_ns) / NS_PER_MS
            slowest[bucket] = max(took, slowest.get(bucket, 0))
    points = [(bucket * _BUCKET_MS, took) for bucket, took in sorted(slowest.items())]
    return tuple(points[:POINTS_MAX])


def timeline_of(events: Sequence[Event], began_ns: int) -> tuple[tuple[float, str, str], ...]:
    """Starts, ends, faults and what was noticed, in order: for the picture of processes."""
    wanted = [
        event
        for event in events
        if event["kind"] in DETECTIONS
        or event["kind"].startswith(("fault.", "root.", "driver."))
        or event["kind"] in ("partition.started", "machine.stopped", "hypervisor.started")
    ]
    return tuple(
        ((event["monotonic_ns"] - began_ns) / NS_PER_MS, event["kind"], event["partition"] or "")
        for event in wanted[:TIMELINE_MAX]
    )


def _instant(event: Event | None) -> int | None:
    if event is None:
        return None
    return int(event["fields"].get("at_ns") or event["monotonic_ns"])
