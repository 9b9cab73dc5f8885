"""One trial as a picture: latency over time, below it a bar for each fault, and below those who was alive when."""

from collections.abc import Sequence
from typing import Final

from runtime.chaos.experiment.journal import Fate, Trial
from runtime.chaos.experiment.schedule import Injection
from runtime.drawing.lanes import Lane, Mark, Span, lane_chart
from runtime.drawing.lines import Axis, Series, line_chart
from runtime.drawing.markup import Markup, joined, tag
from runtime.drawing.scales import LinearScale, LogScale, log_scale_around, three_digits

_LATENCY_COLOUR: Final = 0
_FAULT_COLOUR: Final = 1
_ALIVE_COLOUR: Final = 8
_GOOD: Final = 2
_BAD: Final = 4
_LANES_MAX: Final = 40
_ENDS: Final = ("partition.exited", "root.exited")
_STARTS: Final = ("partition.started", "root.started")


def trial_picture(trial: Trial) -> Markup:
    """All three drawings over the same time, in ms since the steady state."""
    end = _end_of(trial)
    scale = LinearScale(min([0.0, *(at for at, _ in trial.completions)]), end)
    return joined(
        _latency(trial, scale),
        tag("h3", "Faults"),
        lane_chart([_fault_lane(one, fate, end) for one, fate in _pairs(trial)], scale, _ms, "faults"),
        tag("h3", "Processes"),
        lane_chart(_process_lanes(trial, scale.low, end), scale, _ms, "processes"),
    )


def _latency(trial: Trial, scale: LinearScale) -> Markup:
    values = [took for _, took in trial.completions]
    if not values:
        return tag("p", "No request completed.", class_="soft")
    latency: LogScale = log_scale_around(values)
    series = Series("slowest", trial.completions, _LATENCY_COLOUR, tip="the slowest answer of each 20 ms")
    return line_chart(
        [series],
        Axis(scale, "ms since the steady state", _ms),
        Axis(latency, "slowest answer, ms", three_digits),
        "latency over time",
    )


def _pairs(trial: Trial) -> list[tuple[Injection, Fate]]:
    fates = {fate.number: fate for fate in trial.fates}
    pairs = [(one, fates[one.order.number]) for one in trial.schedule if one.order.number in fates]
    return pairs[:_LANES_MAX]


def _fault_lane(injection: Injection, fate: Fate, end: float) -> Lane:
    order = injection.order
    parameters = "".join(f" {name}={value}" for name, value in order.parameters.items())
    name = f"{order.number}. {order.kind} of {order.target}{parameters}"
    if fate.error or fate.injected_ms is None:
        return Lane(f"{name}: {fate.error or 'not injected'}")
    span = Span(
        fate.injected_ms,
        fate.healed_ms or end,
        _FAULT_COLOUR,
        f"{name}\nstruck {fate.fired} of {fate.passes} passes",
    )
    marks = [
        Mark(at, colour, f"{word} at {at:.1f} ms")
        for word, at, colour in (
            ("struck", fate.fired_ms, _BAD),
            ("noticed", fate.detected_ms, _ALIVE_COLOUR),
            ("went on", fate.recovered_ms, _GOOD),
        )
        if at is not None
    ]
    return Lane(name, [span], marks)


def _process_lanes(trial: Trial, begin: float, end: float) -> list[Lane]:
    """A lane for each partition: a bar for each of its processes."""
    alive: dict[str, float] = {}
    spans: dict[str, list[Span]] = {}
    marks: dict[str, list[Mark]] = {}
    for at, kind, who in trial.timeline:
        if not who:
            continue
        lane = spans.setdefault(who, [])
        if kind in _STARTS:
            alive[who] = max(at, begin)
        elif kind in _ENDS and who in alive:
            lane.append(
                Span(alive.pop(who), min(max(at, begin), end), _ALIVE_COLOUR, f"{who}, until {at:.1f} ms")
            )
        elif begin <= at <= end:
            marks.setdefault(who, []).append(Mark(at, _BAD, f"{kind} at {at:.1f} ms"))
    for who, since in alive.items():
        spans[who].append(Span(since, end, _ALIVE_COLOUR, f"{who}, to the end"))
    return [Lane(who, lane, marks.get(who, ())) for who, lane in list(spans.items())[:_LANES_MAX]]


def _end_of(trial: Trial) -> float:
    moments: Sequence[float] = [
        *(at for at, _ in trial.completions),
        *(fate.healed_ms for fate in trial.fates if fate.healed_ms is not None),
        1.0,
    ]
    return max(moments)


def _ms(value: float) -> str:
    return f"{value:g}"
