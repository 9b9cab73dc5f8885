"""Makes a failing schedule short: whatever can be left out without losing the failure is left out.

Delta debugging (Zeller, Hildebrandt: "Simplifying and Isolating Failure-Inducing Input"), after a first cut: a failure
about some partitions mostly needs only what was done by them, to them, and to those above them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from runtime.simulation.actions import ROOT_LABEL, Action
from runtime.simulation.seeded_run import replay
from runtime.simulation.violation import Violation

REPLAYS_MAX: Final = 20_000  # then what there is must do
_CIRCLES: Final = 4  # of acquaintance, from those whom the failing action names outwards


class Shrinker:
    """Looks for less of a schedule that breaks the same rule."""

    def __init__(
        self,
        actions: Sequence[Action],
        rule: str,
        progress: Callable[[int, int], None] = lambda length, replays: None,
    ) -> None:
        """`progress` is told the length so far and how many replays it took."""
        self._rule: Final = rule
        self._progress: Final = progress
        self.replays = 0
        self.shortest: list[Action] = list(actions)
        self.violation: Violation | None = None  # of `shortest`, once it was replayed

    def shrink(self) -> list[Action]:
        """The shortest found. It breaks the rule, unless not even the whole does: then `violation` is None."""
        if not self._try(self.shortest):
            return self.shortest
        for circle in range(_CIRCLES):
            if self._try(_about(self.shortest, circle)):
                break
        size = len(self.shortest) // 2
        while size:
            if not self._leave_out(size):
                size //= 2
            if self.replays >= REPLAYS_MAX:
                break
        return self.shortest

    def _leave_out(self, size: int) -> bool:
        """Each stretch of this many actions in turn, the last first. True: one alone was gone, look again."""
        before = len(self.shortest)
        end = before
        while end > 0 and self.replays < REPLAYS_MAX:
            start = max(end - size, 0)
            self._try(self.shortest[:start] + self.shortest[end:])
            end = min(start, len(self.shortest))
        return size == 1 and len(self.shortest) < before

    def _try(self, actions: list[Action]) -> bool:
        self.replays += 1
        outcome = replay(actions)
        if outcome.violation is None or outcome.violation.rule != self._rule:
            return False
        self.shortest, self.violation = actions[: outcome.performed], outcome.violation
        self._progress(len(self.shortest), self.replays)
        return True


def _about(actions: list[Action], circles: int) -> list[Action]:
    """Those in which nobody acts or is named but acquaintances of whom the last action is about."""
    above = {action.label: action.who for action in actions if action.label}
    known = _named(actions[-1])
    for _ in range(circles):
        for action in actions:
            named = _named(action)
            if not known.isdisjoint(named - {ROOT_LABEL}):
                known |= named
    for label in list(known):
        while (label := above.get(label, ROOT_LABEL)) not in known:
            known.add(label)
    known.add(ROOT_LABEL)
    return [
        action
        for action in actions
        if known.issuperset(_named(action)) and (not action.label or action.label in known)
    ]


def _named(action: Action) -> set[str]:
    args = action.args if type(action.args) is dict else {}
    return {action.who, *(value for value in args.values() if type(value) is str)}
