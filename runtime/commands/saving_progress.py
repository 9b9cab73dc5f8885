"""How far a save has come, on the terminal, where it takes longer than anybody likes to wait without a word."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, ClassVar, Final

from runtime.exits import CommandError, ExitCode

if TYPE_CHECKING:
    from runtime.machine.management_client import ManagementClient

QUIET_S: Final = 2.0  # so long nothing is said
_LOOK_S: Final = 0.5
_JOIN_S: Final = 5.0


class Interrupted(CommandError):
    """By Ctrl-C. The text says what became of what was asked for."""

    exit_code: ClassVar[ExitCode] = ExitCode.INTERRUPTED


@contextlib.contextmanager
def _copying_client(machine: str | None) -> "Iterator[ManagementClient]":
    """One that waits for as long as copying may take."""
    from runtime.machine.management_client import ManagementClient
    from runtime.machine.management_wire import COPYING_SECONDS_MAX
    from runtime.machine.rundir import resolve

    with ManagementClient(resolve(machine), COPYING_SECONDS_MAX + 2.0) as client:
        yield client


@contextlib.contextmanager
def interruptible(outcome: str) -> Iterator[None]:
    """SIGTERM is as Ctrl-C in here, so that what was begun is ended in order; then one line says what became of it."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _interrupt) if is_main else None
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: {outcome}") from None
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def telling_progress(machine: str | None, name: str) -> Iterator[None]:
    """On stderr, from what the machine's events say."""
    over = threading.Event()
    thread = threading.Thread(target=_tell, args=(machine, name, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_JOIN_S)


def _tell(machine: str | None, name: str, over: threading.Event) -> None:
    if over.wait(QUIET_S):
        return
    from runtime.machine.management_client import ManagementClient
    from runtime.machine.rundir import resolve

    print(f"saving {name}...", file=sys.stderr)
    with contextlib.suppress(CommandError), ManagementClient(resolve(machine)) as client:
        since = max((event.sequence for event in client.past_events()), default=0)
        while not over.wait(_LOOK_S):
            for event in client.past_events(since):
                since = event.sequence
                if event.kind == "partition.saving" and event.partition == name and event.fields["of"]:
                    share = event.fields["bytes"] / event.fields["of"]
                    print(f"saving {name}: {share:.0%} of its memory", file=sys.stderr)
