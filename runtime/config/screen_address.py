"""Where a screen's viewers connect: a socket in the machine's folder, and perhaps a port of this host's own."""

import ipaddress
from dataclasses import dataclass
from typing import Final, Self

UNIX: Final = "unix"
PORT_MAX: Final = 65_535
_ALLOWED: Final = (
    '"unix", or an address of this host alone, as "127.0.0.1:5900" or "[::1]:0": viewers show no password; for others'
    " use ssh -L"
)


@dataclass(frozen=True, slots=True)
class ScreenAddress:
    host: str | None  # None: no port, only the socket
    port: int = 0  # 0: any that is free

    @classmethod
    def parse(cls, text: str) -> Self:
        """ValueError: the text says what is allowed."""
        if text == UNIX:
            return cls(None)
        host, colon, port = text.rpartition(":")
        host = host[1:-1] if host[:1] + host[-1:] == "[]" else host
        try:
            is_own = ipaddress.ip_address(host).is_loopback
        except ValueError:
            is_own = False
        if not (colon and is_own and port.isdecimal() and port.isascii() and int(port) <= PORT_MAX):
            raise ValueError(_ALLOWED)
        return cls(host, int(port))
