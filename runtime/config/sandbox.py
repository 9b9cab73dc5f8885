"""How strictly partitions are sandboxed: what the config says, as the zygote is told."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self


class SandboxMode(enum.StrEnum):
    ON = "on"  # the best that this host allows
    STRICT = "strict"  # all of it, or the machine does not start
    OFF = "off"


@dataclass(frozen=True, slots=True)
class SandboxOrders:
    """Of the platform, to whoever forks partitions. They go by way of the hypervisor: no partition can change them."""

    machine: SandboxMode = SandboxMode.ON
    partitions: Mapping[str, SandboxMode] = field(default_factory=dict)  # by path, where it differs

    def mode_of(self, path: str) -> SandboxMode:
        return self.partitions.get(path, self.machine)

    def __str__(self) -> str:
        """One word of a command line; `parse` reads it. No name has a comma or an equals sign."""
        return ",".join([self.machine, *(f"{path}={mode}" for path, mode in self.partitions.items())])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError."""
        machine, *others = text.split(",")
        pairs = (other.rpartition("=") for other in others)
        return cls(SandboxMode(machine), {path: SandboxMode(mode) for path, _, mode in pairs})
