"""Makes a failing schedule small: fewer faults first, then each as plain as it can be and still fail.

A trial in real time fails sometimes. A candidate counts as failing when one of a few tries does, so what is left at the
end may fail less often than what was there at first; how often it did is said beside it.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from runtime.chaos.delta_debugging import Minimizer, OutOfTries
from runtime.chaos.experiment.schedule import Injection, Schedule, renumbered
from runtime.chaos.faults.catalogue import FAULTS


@dataclass(slots=True)
class Shrunk:
    """What is left, and what it took."""

    schedule: Schedule
    runs: int  # trials
    failed: int  # of the last tries of what is left
    tried: int


class Shrinker:
    """For one schedule that fails."""

    def __init__(
        self,
        fails: Callable[[Schedule], bool],
        *,
        tries: int = 3,
        runs_max: int = 200,
        progress: Callable[[int, int], None] = lambda faults, runs: None,
    ) -> None:
        """
        Args:
            fails: runs one trial.
            tries: of a candidate, until it counts as one that passes.
            progress: told how many faults are left, and how many trials were run.
        """
        self._fails_once, self._tries, self._runs_max, self._progress = fails, tries, runs_max, progress
        self._shortest: Schedule = ()
        self.runs = 0

    def shrink(self, schedule: Schedule) -> Shrunk | None:
        """None: not even the whole fails any more."""
        if not self._fails(schedule):
            return None
        self._shortest = renumbered(Minimizer(schedule, self._fails).minimize())
        with contextlib.suppress(OutOfTries):
            self._make_plainer()
        failed = sum(self._once(self._shortest) for _ in range(self._tries))
        return Shrunk(self._shortest, self.runs, failed, self._tries)

    def _make_plainer(self) -> None:
        """One change at a time, as long as one helps."""
        index = 0
        while index < len(self._shortest):
            for candidate in _plainer_ones(self._shortest[index]):
                changed = (*self._shortest[:index], candidate, *self._shortest[index + 1 :])
                if self._fails(changed):
                    self._shortest = changed
                    break
            else:
                index += 1

    def _fails(self, injections: Sequence[Injection]) -> bool:
        if self.runs >= self._runs_max:
            raise OutOfTries
        failed = any(self._once(renumbered(injections)) for _ in range(self._tries))
        self._progress(len(injections), self.runs)
        return failed

    def _once(self, schedule: Schedule) -> bool:
        self.runs += 1
        return self._fails_once(schedule)


def _plainer_ones(injection: Injection) -> Iterator[Injection]:
    """Each with one thing less to it. Finitely many steps lead to one that has none."""
    order = injection.order
    for knobs in (
        replace(order.knobs, probability=100),
        replace(order.knobs, times=1),
        replace(order.knobs, interval=1),
        replace(order.knobs, space=order.knobs.space // 2),
    ):
        if knobs != order.knobs:
            yield replace(injection, order=replace(order, knobs=knobs))
    for parameter in FAULTS[order.kind].parameters if order.kind in FAULTS else ():
        if order.parameters.get(parameter.name) != parameter.default:
            parameters = {**order.parameters, parameter.name: parameter.default}
            yield replace(injection, order=replace(order, parameters=parameters))
    if injection.moment.after_ms:
        yield replace(injection, moment=replace(injection.moment, after_ms=0))
    if injection.moment.after_ms > 1:
        yield replace(injection, moment=replace(injection.moment, after_ms=injection.moment.after_ms // 2))
    if injection.moment.nth > 1:
        yield replace(injection, moment=replace(injection.moment, nth=1))
    if injection.for_ms is not None:
        yield replace(injection, for_ms=None)
