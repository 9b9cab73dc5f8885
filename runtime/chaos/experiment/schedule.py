"""What one trial does, drawn from its seed: a list of injections, each with its moment. Plain data, without I/O.

The same experiment and the same seed give the same schedule. A schedule is complete by itself: replaying one asks
nothing of the experiment but its machine and its checks.
"""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from runtime.chaos.experiment.model import INJECTIONS_MAX, Experiment, FaultPlan
from runtime.chaos.faults.kinds import FaultKind, ParameterError, Value
from runtime.chaos.faults.knobs import FOR_EVER, Knobs
from runtime.chaos.faults.orders import SEED_MAX, Order


class ScheduleError(ValueError):
    """An experiment from which no schedule can be drawn. The text names the fault and what is allowed."""

    def __init__(self, text: str, fault: int = 0) -> None:
        super().__init__(text)
        self.fault = fault  # its place in the file


@dataclass(frozen=True, slots=True)
class Moment:
    """When to inject: so long after the steady state, or so long after an event."""

    after_ms: int
    on: str = ""  # the event's kind; "": after the steady state
    nth: int = 1  # such event since the steady state

    def to_table(self) -> dict[str, Any]:
        return {"after_ms": self.after_ms, "on": self.on, "nth": self.nth}


@dataclass(frozen=True, slots=True)
class Injection:
    """One fault of one trial. Its order's number is its place in the schedule, from 1."""

    order: Order
    moment: Moment
    for_ms: int | None  # None: until the end

    def to_table(self) -> dict[str, Any]:
        return {"order": self.order.to_table(), "moment": self.moment.to_table(), "for_ms": self.for_ms}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """Raises ValueError, TypeError, KeyError: it is none."""
        return cls(Order.from_table(table["order"]), Moment(**table["moment"]), table["for_ms"])


Schedule = tuple[Injection, ...]


def draw(
    experiment: Experiment, seed: int, catalogue: Mapping[str, FaultKind], left_out: Collection[str] = ()
) -> Schedule:
    """The schedule of the trial with that seed. Raises ScheduleError.

    Args:
        left_out: kinds that are not drawn; the others are, just as they would be beside them.
    """
    drawn: list[Injection] = []
    for index, plan in enumerate(experiment.faults):
        if plan.kind in left_out:
            continue
        rng = random.Random(f"{seed}/{index}")  # a fault that is added or left out changes no other one
        if rng.randrange(100) >= plan.chance:
            continue
        try:
            for place in range(plan.count):
                order = _order(plan, len(drawn) + 1, rng, catalogue)
                drawn.append(Injection(order, _moment(plan, place, rng), plan.for_ms))
        except ValueError as error:
            raise ScheduleError(f"fault[{index}]: {error}", index) from None
        if len(drawn) > INJECTIONS_MAX:
            raise ScheduleError(f"fault[{index}]: more than {INJECTIONS_MAX} in one trial", index)
    return tuple(drawn)


def renumbered(injections: Sequence[Injection]) -> Schedule:
    """The same, numbered from 1 without gaps. Their seeds stay, so each does what it did."""
    return tuple(
        Injection(_with_number(injection.order, number), injection.moment, injection.for_ms)
        for number, injection in enumerate(injections, 1)
    )


def _with_number(order: Order, number: int) -> Order:
    return Order(number, order.kind, order.target, order.parameters, order.knobs, order.seed)


def _order(plan: FaultPlan, number: int, rng: random.Random, catalogue: Mapping[str, FaultKind]) -> Order:
    if plan.kind not in catalogue:
        raise ScheduleError(f"no fault is named {plan.kind!r}; see: partvisor faults")
    given = {name: _one_of(name, value, rng) for name, value in plan.parameters.items()}
    knobs = {"times": FOR_EVER} | {name: _one_of(name, value, rng) for name, value in plan.knobs.items()}
    parameters: Mapping[str, Value] = catalogue[plan.kind].settle(given)
    return Order(
        number, plan.kind, plan.target, parameters, Knobs.from_table(knobs), rng.randint(0, SEED_MAX)
    )


def _one_of(name: str, value: object, rng: random.Random) -> object:
    match value:
        case {"from": int(low), "to": int(high)} if low <= high:
            return rng.randint(low, high)
        case {"from": float() | int() as low, "to": float() | int() as high} if low <= high:
            return rng.uniform(low, high)
        case {"any": [*choices]} if choices:
            return rng.choice(choices)
        case dict():
            raise ParameterError(f"{name}: want a value, {{ from = 1, to = 9 }} or {{ any = [1, 2] }}")
    return value


def _moment(plan: FaultPlan, place: int, rng: random.Random) -> Moment:
    later = place * plan.every_ms
    if plan.on:
        if plan.at_ms:
            raise ScheduleError("at_ms and on exclude each other")
        return Moment(plan.delay_ms + later, plan.on, plan.nth)
    match plan.at_ms:
        case (low, high) if low <= high:
            return Moment(rng.randint(low, high) + later)
        case (at,):
            return Moment(at + later)
        case ():
            return Moment(later)
    raise ScheduleError(f"at_ms = {list(plan.at_ms)}: want [at] or [earliest, latest]")
