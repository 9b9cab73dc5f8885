"""One order to inject a fault, as it travels from whoever wants it to whoever carries it out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, Self

from runtime.chaos.faults.kinds import Value
from runtime.chaos.faults.knobs import KnobError, Knobs

NAME_CHARACTERS_MAX: Final = 64
PARAMETERS_MAX: Final = 16
SEED_MAX: Final = (1 << 63) - 1
ARMED_MAX: Final = 64  # of one machine, at a time


class FaultRefused(Exception):
    """It cannot be injected here, or not with these parameters. One line, with what would help."""


class OrderError(ValueError):
    """What came is no order."""


@dataclass(frozen=True, slots=True)
class Order:
    number: int  # of this machine; 0: not given yet
    kind: str  # a name of the catalogue
    target: str  # a partition, or a device; what of the two is the kind's business
    parameters: Mapping[str, Value] = field(default_factory=dict)
    knobs: Knobs = field(default_factory=Knobs)
    seed: int = 0

    def to_table(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "kind": self.kind,
            "target": self.target,
            "parameters": dict(self.parameters),
            "knobs": self.knobs.to_table(),
            "seed": self.seed,
        }

    @classmethod
    def from_table(cls, table: object) -> Self:
        """Whether the kind exists and takes the parameters is not looked at. Raises OrderError."""
        match table:
            case {
                "number": int(number),
                "kind": str(kind),
                "target": str(target),
                "parameters": dict(parameters),
                "knobs": dict(knobs),
                "seed": int(seed),
            } if number >= 0 and 0 <= seed <= SEED_MAX:
                pass
            case _:
                raise OrderError("no order: want number, kind, target, parameters, knobs, seed")
        if max(len(kind), len(target)) > NAME_CHARACTERS_MAX or len(parameters) > PARAMETERS_MAX:
            raise OrderError(
                f"too long: want names of {NAME_CHARACTERS_MAX} characters, {PARAMETERS_MAX} parameters"
            )
        for name, value in parameters.items():
            if not isinstance(name, str) or not isinstance(value, int | float | str | bool):
                raise OrderError(f"parameter {name!r}: want a name, and a number, text or truth value")
        try:
            return cls(number, kind, target, parameters, Knobs.from_table(knobs), seed)
        except KnobError as error:
            raise OrderError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Counts:
    """How often a seam was passed with the fault armed, and how often it struck."""

    passes: int
    fired: int
    first_ns: int = field(default=0, compare=False)  # of the first strike, by CLOCK_MONOTONIC; 0: not known


class FaultAgent(Protocol):
    """Carries orders out, where it is."""

    def inject(self, order: Order) -> None:
        """Arm it. Raises FaultRefused; then nothing is armed."""

    def heal(self, number: int | None) -> None:
        """Disarm it and undo what can be undone; None: all. Never raises; what is not there is no matter."""

    def counts(self) -> Mapping[int, Counts]:
        """By number: of all that were injected and are not healed."""
