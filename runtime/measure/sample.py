"""One sample of one row: what is asked for, and what came of it."""

from dataclasses import dataclass
from typing import Protocol

from runtime.config.model import WaitingKind
from runtime.exits import CommandError
from runtime.measure.exchanges import Measured
from runtime.measure.process_usage import Usage
from runtime.measure.results import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How to measure."""

    payload_bytes: int
    seconds: float
    placement: Placement
    client_cpus: frozenset[int]  # where the client may run, by the placement
    server_cpus: frozenset[int]
    rate_per_s: float | None = None  # open loop; None: closed


@dataclass(frozen=True, slots=True)
class Sample:
    """What one turn of a row gave."""

    measured: Measured
    client: Usage | None = None  # while it was measured; None: nobody could tell
    server: Usage | None = None


class SampleFailed(CommandError):
    """A sample came to nothing. One line; it says why."""


class Contestant(Protocol):
    """A row of the ladder, whatever stands behind it: a transport, a C program, a machine."""

    @property
    def name(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def waiting(self) -> WaitingKind: ...
    @property
    def fixed_payload(self) -> int | None:
        """It carries just so many bytes, whatever is asked for; None: as many as asked for."""

    def measure(self, order: Order) -> Sample:
        """Raises NotInstalled, Impossible, SampleFailed. Nothing of it is left afterwards, whatever happens."""
