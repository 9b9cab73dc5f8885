"""How strictly partitions are sandboxed: what the config says, as the zygote is told."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from runtime.config.tap_order import TapOrder

_TAP_MARK: Final = "+"  # in front of the path of a partition that has a TAP; no name begins so


class SandboxMode(enum.StrEnum):
    ON = "on"  # the best that this host allows
    STRICT = "strict"  # all of it, or the machine does not start
    OFF = "off"


@dataclass(frozen=True, slots=True)
class SandboxOrders:
    """Of the platform, to whoever forks partitions. They go by way of the hypervisor: no partition can change them."""

    machine: SandboxMode = SandboxMode.ON
    partitions: Mapping[str, SandboxMode] = field(default_factory=dict)  # by path, where it differs

    taps: Mapping[str, TapOrder] = field(default_factory=dict)  # by path

    def mode_of(self, path: str) -> SandboxMode:
        return self.partitions.get(path, self.machine)

    @property
    def confine_somebody(self) -> bool:
        return any(mode is not SandboxMode.OFF for mode in (self.machine, *self.partitions.values()))

    def __str__(self) -> str:
        """One word of a command line; `parse` reads it. No name has a comma, a plus or an equals sign."""
        modes = (f"{path}={mode}" for path, mode in self.partitions.items())
        taps = (f"{_TAP_MARK}{path}={order}" for path, order in self.taps.items())
        return ",".join([self.machine, *modes, *taps])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError."""
        machine, *others = text.split(",")
        modes: dict[str, SandboxMode] = {}
        taps: dict[str, TapOrder] = {}
        for other in others:
            path, _, order = other.rpartition("=")
            if path.startswith(_TAP_MARK):
                taps[path.removeprefix(_TAP_MARK)] = TapOrder.parse(order)
            else:
                modes[path] = SandboxMode(order)
        return cls(SandboxMode(machine), modes, taps)
