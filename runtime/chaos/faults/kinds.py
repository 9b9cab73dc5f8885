"""What a kind of fault is: its name, where it strikes, who carries it out, what can be set, and what it needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Value = int | float | str | bool


class Group(StrEnum):
    """What a fault is a fault of."""

    PROCESS = "process"
    RING = "ring"
    MEMORY = "memory"
    INTERRUPT = "interrupt"
    MESSAGE = "message"
    STORAGE = "storage"
    TIME = "time"
    RESOURCE = "resource"
    AUTHORITY = "authority"
    COMPOUND = "compound"


class Carrier(StrEnum):
    """Who makes it happen."""

    PROCESS = "process"  # somebody outside, who knows the victim's pid: signals, limits, priorities
    SERVER = "server"  # an agent in the process that serves the target device
    STACK = "stack"  # the root's control plane: channel messages, offers, rescinds
    HYPERVISOR = "hypervisor"  # the broker: interrupts, messages, clocks
    GUEST = "guest"  # a hostile program in the target partition
    COMPOUND = "compound"  # several others, one after the other


class Need(StrEnum):
    """What a host or a machine must have for it."""

    USERFAULTFD = "userfaultfd"  # vm.unprivileged_userfaultfd, or root privileges
    ROOT = "root privileges"
    SUCCESSOR = 'on_root_failure = "restart" or "standby"'
    BROKER_ROUTE = 'signal_route = "broker"'
    DRIVER_PARTITION = "an architecture with driver partitions"


class ParameterError(ValueError):
    """A parameter that a fault does not have, or a value that it does not take. The text says what is allowed."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """Something that can be set. Its type is that of its default."""

    name: str
    default: Value
    meaning: str
    unit: str = ""
    minimum: int | float | None = None
    maximum: int | float | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: object) -> Value:
        """The value as its type. Raises ParameterError."""
        kind = type(self.default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ParameterError(f"{self.name} = {value!r}: want {self.allowed}")
        if self.choices and value not in self.choices:
            raise ParameterError(f"{self.name} = {value!r}: want {self.allowed}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            below = self.minimum is not None and value < self.minimum
            if below or (self.maximum is not None and value > self.maximum):
                raise ParameterError(f"{self.name} = {value!r}: want {self.allowed}")
        return value

    def parse(self, text: str) -> Value:
        """From a command line. Raises ParameterError."""
        try:
            match self.default:
                case bool():
                    return self.check({"true": True, "false": False}.get(text, text))
                case int():
                    return self.check(int(text, 0))
                case float():
                    return self.check(float(text))
                case _:
                    return self.check(text)
        except ValueError as error:
            if isinstance(error, ParameterError):
                raise
            raise ParameterError(f"{self.name} = {text}: want {self.allowed}") from None

    @property
    def allowed(self) -> str:
        """For error texts and tables."""
        if self.choices:
            return " or ".join(self.choices)
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, str):
            return "a text"
        unit = f" {self.unit}" if self.unit else ""
        if self.minimum is not None and self.maximum is not None:
            return f"{self.minimum} to {self.maximum}{unit}"
        return f"at least {self.minimum}{unit}" if self.minimum is not None else f"a number{unit}"


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One row of the catalogue."""

    name: str
    group: Group
    summary: str  # what happens, in one line
    seam: str  # where: what is passed when it strikes
    carrier: Carrier
    parameters: tuple[Parameter, ...] = ()
    needs: tuple[Need, ...] = ()
    strikes_once: bool = False  # whatever its knobs say: afterwards it is over by itself
    strikes: str = ""  # the parameter that says how often it strikes at most, whatever its knobs say

    def settle(self, given: Mapping[str, object]) -> dict[str, Value]:
        """Every parameter, checked, with its default where nothing is given. Raises ParameterError."""
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in given:
            if name not in known:
                there = ", ".join(known) or "none"
                raise ParameterError(f"{self.name} has no parameter {name!r}; there is: {there}")
        return {
            name: parameter.check(given.get(name, parameter.default)) for name, parameter in known.items()
        }

    def to_table(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "name": self.name,
            "group": self.group.value,
            "summary": self.summary,
            "seam": self.seam,
            "carrier": self.carrier.value,
            "needs": [need.value for need in self.needs],
            "parameters": [
                {
                    "name": parameter.name,
                    "default": parameter.default,
                    "allowed": parameter.allowed,
                    "meaning": parameter.meaning,
                }
                for parameter in self.parameters
            ],
        }
