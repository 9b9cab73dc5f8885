"""The emulated devices of one partition: its [[partition.emulated]] tables, with a PC's addresses filled in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from runtime.abi import PAGE_BYTES

# kind: (first port, ports, further single ports, interrupt line); the PC's, by long custom
PC_ADDRESSES: Final[Mapping[str, tuple[int, int, tuple[int, ...], int | None]]] = {
    "uart": (0x3F8, 8, (), 4),
    "keyboard": (0x60, 1, (0x64,), 1),
    "rtc": (0x70, 2, (), None),
    "ide": (0x1F0, 8, (0x3F6,), 14),
}


class EmulationError(Exception):
    """A child's devices cannot be emulated as configured. One line for the user."""


@dataclass(frozen=True, slots=True)
class EmulatedPlan:
    """One device, where its partition finds it."""

    kind: str
    ports: tuple[int, ...]  # by offset
    irq: int | None  # of the two interrupt controllers of a PC
    mmio_gpfn: int | None  # a page that begins with the same registers, a byte each
    device: str | None  # of an IDE disk: the [[root.device]]
    typed: str  # into a UART, at boot

    @property
    def port_ranges(self) -> list[tuple[int, int]]:
        """First and last of those that follow each other."""
        ranges: list[tuple[int, int]] = []
        for port in sorted(self.ports):
            if ranges and ranges[-1][1] + 1 == port:
                ranges[-1] = ranges[-1][0], port
            else:
                ranges.append((port, port))
        return ranges

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        kind = table["kind"]
        first, count, further, irq = PC_ADDRESSES[kind]
        base = table.get("port") or first
        mmio = table.get("mmio")
        return cls(
            kind=kind,
            ports=(*range(base, base + count), *(port + base - first for port in further)),
            irq=irq if table.get("irq") is None else table["irq"],
            mmio_gpfn=None if mmio is None else mmio // PAGE_BYTES,
            device=table.get("device"),
            typed=table.get("input") or "",
        )
