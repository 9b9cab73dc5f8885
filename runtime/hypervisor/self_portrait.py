"""What the broker says of itself: the code that it has loaded, its memory, the calls it served and made."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.abi import HypercallCode
from runtime.hypervisor.effects import RaiseLine, RaiseWatch, RingDoorbell

if TYPE_CHECKING:
    from runtime.hypervisor.loop import Loop
    from runtime.hypervisor.recorded import RecordedHypervisor

OUR_PACKAGES: Final = ("bus", "runtime", "partitions")


def our_modules() -> dict[str, Path]:
    """Modules of ours in this process, and the files that they come from."""
    return {
        name: Path(file)
        for name, module in sorted(sys.modules.items())
        if name.partition(".")[0] in (*OUR_PACKAGES, "__main__")
        and (file := getattr(module, "__file__", None))
    }


def text_bytes(shared_object: Path) -> int:
    """Executable bytes of a shared object as they are mapped here, in whole pages."""
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and "x" in fields[1] and Path(fields[5]) == shared_object:
            start, end = (int(part, 16) for part in fields[0].split("-"))
            total += end - start
    return total


def portrait(hypervisor: RecordedHypervisor, loop: Loop) -> dict[str, object]:
    """For `partvisor show hypervisor`."""
    modules = our_modules()
    sources = {path for path in modules.values() if path.suffix == ".py"}
    shared = {path.resolve() for path in modules.values() if path.suffix == ".so"}
    source_bytes = sum(path.stat().st_size for path in sources)
    native_bytes = sum(map(text_bytes, shared))
    memory = _status("VmRSS", "VmHWM")
    calls = [
        {
            "call": HypercallCode(code).name if code else "(unknown code)",
            "made": counts.made,
            "refused": counts.refused,
            "mean_ns": counts.took_ns // counts.made,
        }
        for code, counts in hypervisor.calls.items()
        if counts.made
    ]
    made = sum(counts.made for counts in hypervisor.calls.values())
    raised = sum(hypervisor.effects[kind] for kind in (RaiseLine, RingDoorbell, RaiseWatch))
    return {
        "pid": os.getpid(),
        "code_bytes": source_bytes + native_bytes,
        "source_bytes": source_bytes,
        "native_text_bytes": native_bytes,
        "modules": len(modules),
        "partition_modules": sorted(name for name in modules if name.startswith("partitions")),
        "all_modules": len(sys.modules),
        "resident_bytes": memory["VmRSS"],
        "resident_max_bytes": memory["VmHWM"],
        "cpu_ms": time.process_time_ns() // 1_000_000,
        "hypercalls": made,
        "system_calls": {  # counted where the broker makes them: one a turn, request or look at one, reply, and signal
            "epoll_wait": loop.turns,
            "recvmsg": made + hypervisor.looks,
            "sendmsg": made,
            "io_submit": raised,
        },
        "calls": sorted(calls, key=lambda row: -int(str(row["made"]))),
    }


def _status(*keys: str) -> dict[str, int]:
    """Fields of /proc/self/status, in bytes."""
    found = dict.fromkeys(keys, 0)
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) * 1024
    return found
