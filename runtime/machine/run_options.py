"""What a machine gets besides its config, from whoever launches it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bus.trace import STAMPS
from runtime.machine.events import EventLog
from runtime.machine.rundir import MachineFolder


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the platform gets besides the config."""

    folder: MachineFolder  # exists and is locked; removed after run_machine returns, or by its janitor
    log: EventLog  # everything that happens goes here; `serve_management` publishes it
    announce_ready: Callable[[], None]  # call once, when every partition of the config has started
    detached: bool  # no terminal: stdin and stdout are /dev/null, stderr is a file in the folder
    post_mortem: Path | None = None  # where the flight recorder goes if the machine fails
    trace: Path | None = None  # where the stamps of all hops go at the end
    trace_stamps: int = STAMPS  # that are kept of each thread; a power of two
