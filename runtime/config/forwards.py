"""What of the host leads into a network in user space: words such as "tcp:127.0.0.1:8080:80"."""

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Self

PORT_MAX = 65_535
EXAMPLE = "'tcp:127.0.0.1:8080:80'"


@dataclass(frozen=True, slots=True)
class Forward:
    """Who connects to the host's address and port reaches the guest's port."""

    protocol: str  # tcp or udp
    address: str
    host_port: int
    guest_port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """ValueError."""
        words = text.split(":")
        if len(words) != 4 or words[0] not in ("tcp", "udp"):
            raise ValueError(
                f"{text!r}: want protocol, address and port of the host, port of the guest: {EXAMPLE}"
            )
        ports = [int(word) if word.isdecimal() else 0 for word in words[2:]]
        if not all(1 <= port <= PORT_MAX for port in ports):
            raise ValueError(f"{text!r}: ports are 1 to {PORT_MAX}")
        return cls(words[0], str(IPv4Address(words[1])), *ports)
