"""A sample beside its own limit, taken again where the machine changed under it.

Two virtual CPUs may stop sharing a cache for minutes: then everything in shared memory is two to four times slower,
the limit too. So the limit is measured just before each sample and just after it; if the two differ by more than
LIMIT_CHANGE_MAX, the sample says nothing, is marked, and is taken again, at most RETAKES_MAX times. A change is
believed when the limit says so twice: such times last, and somebody else's work of a few milliseconds is none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

LIMIT_CHANGE_MAX: Final = 1.5
RETAKES_MAX: Final = 2

_Sample = TypeVar("_Sample")


@dataclass(frozen=True, slots=True)
class Take(Generic[_Sample]):
    limit_ns: float  # just before
    sample: _Sample
    changed: bool  # it counts in no figure


def has_changed(before_ns: float, after_ns: float) -> bool:
    """Whether the limit moved so far that what lies between says nothing."""
    return max(before_ns, after_ns) > LIMIT_CHANGE_MAX * min(before_ns, after_ns)


def take_sample(
    measure_limit: Callable[[], float], measure: Callable[[], _Sample], retakes_max: int = RETAKES_MAX
) -> list[Take[_Sample]]:
    """Takes of one sample, in order of time: the last one counts unless it is marked, those before it are marked."""
    takes: list[Take[_Sample]] = []
    before_ns = measure_limit()
    while True:
        sample = measure()
        after_ns = measure_limit()
        if has_changed(before_ns, after_ns):
            after_ns = measure_limit()
        changed = has_changed(before_ns, after_ns)
        takes.append(Take(before_ns, sample, changed))
        if not changed or len(takes) > retakes_max:
            return takes
        before_ns = after_ns
