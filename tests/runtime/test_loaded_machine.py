"""What is said of a machine by its events, in whatever order they came."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from runtime.chaos.loaded_machine import LoadedMachine

Told = Mapping[str, Any]


class _Heard(LoadedMachine):
    """One that was heard of, and never booted."""

    def __init__(self, told: Sequence[Told]) -> None:
        self._told = told

    def all_of(self, kind: str) -> list[Told]:
        return [event for event in self._told if event["kind"] == kind]


def event(kind: str, **fields: int) -> Told:
    return {"kind": kind, "fields": fields}


FIRST = event("root.started", pid=1)
DIES = event("root.exited", at_ns=100)
STARTS = event("root.started", pid=2, at_ns=110)
SERVES = event("root.restored", serving_ns=120)
DIES_AGAIN = event("root.exited", at_ns=130)


@pytest.mark.parametrize(
    ("told", "serves"),
    [
        ([FIRST], True),
        ([FIRST, DIES], False),
        ([FIRST, DIES, STARTS], False),
        ([FIRST, DIES, STARTS, SERVES], True),
        ([FIRST, DIES, STARTS, SERVES, DIES_AGAIN], False),
    ],
)
def test_whether_a_root_serves_does_not_depend_on_whose_word_came_first(
    told: list[Told], serves: bool
) -> None:
    """The platform, the hypervisor and each root tell for themselves."""
    for order in itertools.permutations(told):
        assert _Heard(order).root_serves == serves, [one["kind"] for one in order]
