"""A machine that stands there while somebody outside of it measures: a child of this process, which dies with it."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime.exits import CommandError
from runtime.machine.rundir import MachineFolder, find_machines
from runtime.measure.child_process import machine_command, running
from runtime.measure.process_usage import Usage
from runtime.reserved_names import ROOT

BOOT_S: Final = 60.0
CLIENT: Final = "client"  # ourselves, in `usage`
_HYPERVISOR: Final = "hypervisor"
_LOOK_S: Final = 0.02
_WORDS_MAX: Final = 300


@dataclass(frozen=True, slots=True)
class StandingMachine:
    folder: MachineFolder
    pids: Mapping[str, int]
    said: Mapping[str, Any]  # the fields of the event that we waited for

    def usage(self) -> dict[str, Usage]:
        """Of its processes by their names, and of this one."""
        pids = {**self.pids, CLIENT: os.getpid()}
        return {name: Usage.of_process(pid) for name, pid in pids.items()}


@contextlib.contextmanager
def standing(
    config: str, place: Path, name: str, ready: str, trace: Path | None = None
) -> Iterator[StandingMachine]:
    """Boot it, and wait for that event. CommandError: it does not come up. `trace`: written when it has ended."""
    path, events = place / f"{name}.toml", place / f"{name}.events"
    path.write_text(config)
    command = machine_command(path, *(() if trace is None else ("--trace", str(trace))))
    with events.open("wb") as out, running(command, stdout=out, stderr=subprocess.STDOUT) as process:
        pids, said = _await(process, events, ready)
        folder = next((one for one in find_machines() if one.pid == process.pid), None)
        if folder is None:
            raise CommandError(f"the machine {name} has ended")
        yield StandingMachine(folder, pids, said)


def _await(
    process: "subprocess.Popen[bytes]", events: Path, ready: str
) -> tuple[dict[str, int], dict[str, Any]]:
    deadline = time.monotonic() + BOOT_S
    while time.monotonic() < deadline:
        ended, said = process.poll() is not None, events.read_text(errors="replace")
        pids: dict[str, int] = {}
        for line in said.splitlines():
            try:
                event = json.loads(line)
            except ValueError:  # half a line, or a word of stderr
                continue
            match event.get("kind"):
                case "root.started":
                    pids[ROOT] = int(event["fields"]["pid"])
                case "hypervisor.started":
                    pids[_HYPERVISOR] = int(event["fields"]["pid"])
                case "partition.started" if event["fields"]["pid"] != pids.get(_HYPERVISOR):
                    pids[str(event["partition"])] = int(event["fields"]["pid"])
                case kind if kind == ready:
                    return pids, event["fields"]
        if ended:
            raise CommandError(f"the machine does not boot: {said.strip()[-_WORDS_MAX:]}")
        time.sleep(_LOOK_S)
    raise CommandError(f"the machine does not say {ready} within {BOOT_S:.0f} s")
