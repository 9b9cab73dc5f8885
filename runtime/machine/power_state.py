"""How far a machine is between its power-on and its end."""

import trio

from runtime.machine.events import EventLog
from runtime.machine.outcome import Outcome


class PowerState:
    """Of one machine. It is built, then ready; a reboot takes both back; it ends once."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.built = False  # the root has created every partition; their processes may still be starting
        self.ready = trio.Event()
        self.ended = trio.Event()  # is to end: `outcome` says why
        self.outcome: Outcome | None = None

    @property
    def is_up(self) -> bool:
        return self.ready.is_set() and self.outcome is None

    def begin_again(self) -> None:
        self.built, self.ready = False, trio.Event()

    def end(self, reason: str, *, failed: bool) -> None:
        """The first reason counts: what follows from it is noise."""
        if self.outcome is None:
            self.outcome = Outcome(reason, failed)
            self._log.append("machine.ending", reason=reason, failed=failed)
            self.ended.set()
