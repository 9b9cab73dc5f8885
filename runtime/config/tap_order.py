"""A TAP inside a guest's own network namespace, as the zygote is told of it: plain values, one word."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Final, Self

MTU_DEFAULT: Final = 1500


@dataclass(frozen=True, slots=True)
class TapOrder:
    """The guest's [partition.tap] table, and the MTU of its network."""

    device: str
    mtu: int = MTU_DEFAULT
    address: str | None = None  # as 10.0.0.1/24
    gateway: str | None = None

    def __str__(self) -> str:
        return f"{self.device};{self.mtu};{self.address or ''};{self.gateway or ''}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError."""
        device, mtu, address, gateway = text.split(";")
        if address:
            IPv4Interface(address)
        if gateway:
            IPv4Address(gateway)
        return cls(device, int(mtu), address or None, gateway or None)
