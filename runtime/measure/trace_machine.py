"""The machine of `partvisor bench trace`: one guest, an echo and a disk for each route and waiting, all traced."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from runtime.config.loading import load
from runtime.config.model import SignalRoute, WaitingKind
from runtime.exits import CommandError, ExitCode
from runtime.machine.events import Event
from runtime.machine.launch import run_in_foreground
from runtime.trace_file import Capture

GUEST: Final = "load"
ROUTES: Final = (SignalRoute.DIRECT, SignalRoute.BROKER)
WAITINGS: Final = (WaitingKind.SPIN, WaitingKind.BLOCK)
WORKLOADS: Final = ("echo", "disk")
STAMPS: Final = 1 << 17  # of one thread; the guest's has all of its channels' in one track

_MACHINE: Final = """
[machine]
name = "bench-trace-{pid}"
memory = "256MiB"
[root]
cpus = [{root_cpu}]
"""
_ECHO: Final = '\n[[root.device]]\nname = "{name}"\nkind = "echo"\n'
_DISK: Final = '\n[[root.device]]\nname = "{name}"\nkind = "disk"\nbackend = "memory"\nsize = "1MiB"\n'
_GUEST: Final = """
[[partition]]
name = "{name}"
program = "partitions.guests.trace_load:main"
memory = "64MiB"
cpus = [{guest_cpu}]
args = {{ devices = [{devices}], exchanges = {exchanges}, payload_bytes = {payload_bytes} }}
"""
_ATTACHMENT: Final = (
    '\n[[partition.device]]\nname = "{name}"\nsignal_route = "{route}"\nwaiting = "{waiting}"\n'
)


def device_name(workload: str, route: SignalRoute, waiting: WaitingKind) -> str:
    return f"{workload}-{route}-{waiting}"


def machine_text(
    exchanges: int, payload_bytes: int, cpus: tuple[int, int], workloads: Sequence[str] = WORKLOADS
) -> str:
    """`cpus`: of the guest, and of the root."""
    every = [(work, route, wait) for work in workloads for route in ROUTES for wait in WAITINGS]
    text = _MACHINE.format(pid=os.getpid(), root_cpu=cpus[1])
    for workload, route, waiting in every:
        form = _ECHO if workload == "echo" else _DISK
        text += form.format(name=device_name(workload, route, waiting))
    devices = ", ".join(f'"{device_name(*one)}"' for one in every)
    text += _GUEST.format(
        name=GUEST, guest_cpu=cpus[0], devices=devices, exchanges=exchanges, payload_bytes=payload_bytes
    )
    for workload, route, waiting in every:
        name = device_name(workload, route, waiting)
        text += _ATTACHMENT.format(name=name, route=route, waiting=waiting)
    return text


def run_traced(
    exchanges: int, payload_bytes: int, cpus: tuple[int, int], workloads: Sequence[str] = WORKLOADS
) -> tuple[Capture, dict[str, Mapping[str, Any]]]:
    """What every process stamped, and what the guest's own clock said, by device. CommandError: it broke."""
    reports: dict[str, Mapping[str, Any]] = {}
    complaints: list[str] = []

    def listen(event: Event, encoded: bytes) -> None:
        if event.kind == "guest.trace_load":
            reports[event.fields["device"]] = event.fields
        elif event.kind in ("output", "machine.ending", "machine.no_trace"):
            complaints.append(str(event.fields.get("text") or event.fields.get("reason")))

    with tempfile.TemporaryDirectory(prefix="partvisor-bench-") as place:
        config, trace = Path(place) / "machine.toml", Path(place) / "trace"
        config.write_text(machine_text(exchanges, payload_bytes, cpus, workloads))
        code = run_in_foreground(load(config), listen, trace=trace, trace_stamps=STAMPS)
        if code == ExitCode.INTERRUPTED:
            raise KeyboardInterrupt
        wanted = len(workloads) * len(ROUTES) * len(WAITINGS)
        if code != ExitCode.DONE or len(reports) != wanted:
            raise CommandError(f"the traced machine failed: {' '.join(complaints[-3:]) or 'it said nothing'}")
        return Capture.read(trace), reports
