"""What a simulation stops at."""

from __future__ import annotations


class Violation(Exception):
    """The hypervisor broke one of its rules. `rule` names which: a shrunk schedule must break the same."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(f"{rule}: {what}")
        self.rule, self.what = rule, what


def hold(condition: bool, rule: str, what: object = "") -> None:
    """Raises: Violation. `what` costs nothing unless it is a formatted text: pass values."""
    if not condition:
        raise Violation(rule, str(what))
