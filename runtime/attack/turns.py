"""How often each attack is made, and in which order; and the controls among them. Pure.

A turn is a window in which a hostile guest does something, and a quiet one beside it. Short ones, and many: what
disturbs the host mostly lasts longer than both, so it disturbs both; and an interval gets narrow with their number.

Beside attacks there are controls, in turns of their own among the others: nothing at all, which shows what the host's
noise makes of the figure; the hostile guest's share, burned to the end, which shows what its cap costs the neighbours
though it asks nobody for anything; and its honest work with the device that is attacked, as fast as its cap lets it.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from runtime.attack.catalogue import Attack, Keeping

WINDOW_S: Final = 0.08  # of an attack, and of the quiet beside it
LEAD_S: Final = (
    0.12  # that an attack is under way before its window: what its cap had saved up is spent by then
)
SETTLE_S: Final = 0.03  # between the two: what servers still owe of a window that is over
TURN_S: Final = LEAD_S + 2 * (WINDOW_S + SETTLE_S)
LONGEST: Final = (
    2.0  # times the seconds asked for: some attacks take longer than a turn, and are made less often
)
WINDOWS_MAX: Final = 400  # of one attack
BREAKS_PER_GUEST: Final = (
    12  # channels that a guest may lose before it gets no more: sixteen, and some in reserve
)
CONTROLS: Final[Mapping[str, float]] = {  # and their parts of all turns
    "idle": 0.1,
    "share": 0.1,
    "honest": 0.2,
}
CONTROL_PART: Final = sum(CONTROLS.values())


def lead_of(attack: Attack | None) -> float:
    """Seconds. None: of a control. One that breaks something and waits for its end is all in its first moments."""
    return 0.0 if attack is not None and attack.keeping is Keeping.BREAKS else LEAD_S


def windows_of(attack: Attack, attacks: int, seconds: float) -> int:
    """How often it is made, of so many."""
    windows = min(max(round(seconds * (1 - CONTROL_PART) / (attacks * TURN_S)), 1), WINDOWS_MAX)
    return min(windows, BREAKS_PER_GUEST) if attack.keeping is Keeping.BREAKS else windows


def control_windows(control: str, seconds: float) -> int:
    return round(seconds * CONTROLS[control] / TURN_S)


def turns_of(attacks: Sequence[Attack], seconds: float, rng: random.Random) -> list[str]:
    """Names of attacks and of controls, in a random order, each once before any comes again: time may be over early.

    Attacks by which a guest ends are not among them.
    """
    repeated = [each for each in attacks if each.keeping is not Keeping.LAST]
    turns = [each.name for each in repeated for _ in range(windows_of(each, len(repeated), seconds))]
    if repeated:
        turns += [control for control in CONTROLS for _ in range(control_windows(control, seconds))]
    rng.shuffle(turns)
    first = list(dict.fromkeys(turns))
    rest = list((Counter(turns) - Counter(first)).elements())
    rng.shuffle(rest)
    return first + rest
