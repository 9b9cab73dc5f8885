"""What the host tells about its processors. What it does not tell is 0."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from runtime.hypervisor.effects import HostProcessor

_VENDORS: Final = {"AuthenticAMD": 0, "GenuineIntel": 1, "HygonGenuine": 2}
_VENDOR_UNKNOWN: Final = 2**16
_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_CPU_INFO_BYTES: Final = 4096  # the vendor stands in its first lines
_STAT_BYTES: Final = 1 << 20


class HostProcessors:
    def __init__(self) -> None:
        self.identity: Final = HostProcessor(os.cpu_count() or 1, _vendor())
        self._stat_fd = _open("/proc/stat")

    def times_ns(self, lp: int) -> tuple[int, int]:
        """(run, idle) since the host booted, in the kernel's ticks."""
        if self._stat_fd is None:
            return 0, 0
        try:
            text = os.pread(self._stat_fd, _STAT_BYTES, 0).decode()
        except (OSError, UnicodeDecodeError):
            return 0, 0
        prefix = f"cpu{lp} "
        for line in text.splitlines():
            if line.startswith(prefix):
                # user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user
                ticks = [int(word) for word in line.split()[1:9]]
                idle = sum(ticks[3:5])
                return (sum(ticks) - idle) * _TICK_NS, idle * _TICK_NS
        return 0, 0


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _vendor() -> int:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            text = file.read(_CPU_INFO_BYTES)
    except OSError:
        return _VENDOR_UNKNOWN
    return next((code for name, code in _VENDORS.items() if name in text), _VENDOR_UNKNOWN)
