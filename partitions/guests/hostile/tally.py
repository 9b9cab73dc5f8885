"""What came of one attack: that it was really made, what it met, and what must not have happened."""

from collections import Counter
from collections.abc import Callable
from errno import errorcode
from typing import Final

from runtime.abi import HypercallError

BREACHES_KEPT: Final = 5


class Tally:
    __slots__ = ("breaches", "evidence", "made", "outcomes")

    def __init__(self) -> None:
        self.made = 0  # how often, counted where the thing attacked has taken it
        self.outcomes: Counter[str] = Counter()
        self.breaches: list[str] = []
        self.evidence = ""  # what shows that it was made: the last of it

    def met(self, outcome: str, count: int = 1) -> None:
        """It was made, and this is what it met."""
        self.made += count
        self.outcomes[outcome] += count

    def came_of_it(self, outcome: str) -> None:
        """Of what was counted already."""
        self.outcomes[outcome] += 1

    def breach(self, what: str) -> None:
        self.outcomes["BREACH"] += 1
        if len(self.breaches) < BREACHES_KEPT:
            self.breaches.append(what)

    def call(self, what: str, attempt: Callable[[], object]) -> None:
        """A hypercall that must be refused."""
        try:
            attempt()
        except HypercallError as error:
            self.met(error.status.name)
        else:
            self.made += 1
            self.breach(f"{what} was allowed")

    def system_call(self, what: str, attempt: Callable[[], object]) -> None:
        """One that must be refused."""
        try:
            attempt()
        except OSError as error:
            self.met(errorcode.get(error.errno or 0, str(error)))
            self.evidence = f"{what}: {errorcode.get(error.errno or 0, str(error))}"
        else:
            self.made += 1
            self.breach(f"{what} was allowed")

    def to_json(self) -> dict[str, object]:
        return {
            "made": self.made,
            "outcomes": dict(self.outcomes),
            "breaches": self.breaches,
            "evidence": self.evidence,
        }
