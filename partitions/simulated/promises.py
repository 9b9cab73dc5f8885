"""Heartbeats, and what stops them: a process that is stopped, or whose heartbeats do not arrive, breaks its promise.

While everybody runs nobody can; so a heartbeat is simulated only where somebody stops, and from then on for all others.
"""

from collections.abc import Mapping, Sequence

from partitions.simulated.driver import SimulatedDriver
from partitions.simulated.kernel import Kernel
from partitions.simulated.process import Process
from partitions.simulated.root import RootLife
from runtime.simulation.actions import ROOT_LABEL


class Promises:
    """Of one machine's root and drivers. A guest promises nothing."""

    def __init__(
        self,
        kernel: Kernel,
        processes: Mapping[str, Process],
        lives: Sequence[RootLife],
        drivers: Mapping[str, SimulatedDriver],
        hang_ms: int,
    ) -> None:
        """All of them the machine's own, as they are at the time. `hang_ms`: what is promised."""
        self._kernel, self._hang_ms = kernel, hang_ms
        self._processes, self._lives, self._drivers = processes, lives, drivers
        self._mute: set[str] = set()  # whose heartbeats do not arrive
        kernel.on_timer = self._renew
        kernel.is_anybody_stopped = self._may_be_broken

    def stop(self, process: Process) -> None:
        """As SIGSTOP. Its last heartbeat is of this moment."""
        if not process.is_stopped:
            self._beat(process.name)
            process.stop()
            self._kernel.watch()

    def mute(self, name: str) -> None:
        """Its heartbeats do not arrive any more."""
        self._beat(name)
        self._mute.add(name)
        self._kernel.watch()

    def unmute(self, name: str) -> None:
        self._mute.discard(name)
        if self._works(name):
            self._beat(name)

    def _works(self, name: str) -> bool:
        process = self._processes.get(name)
        return process is not None and process.is_alive and not process.is_stopped and name not in self._mute

    def _renew(self) -> None:
        """Whoever works has called in time."""
        for name in (ROOT_LABEL, *self._drivers):
            if self._works(name):
                self._beat(name)

    def _beat(self, name: str) -> None:
        """A heartbeat, of who has begun to promise any."""
        if name in self._drivers:
            self._drivers[name].beat(self._hang_ms)
        elif name == ROOT_LABEL:
            life = self._lives[-1]
            if life.stack is not None and life.process is self._processes[ROOT_LABEL]:
                life.call.heartbeat(self._hang_ms)

    def _may_be_broken(self) -> bool:
        processes = self._processes.values()
        return bool(self._mute) or any(process.is_stopped and process.is_alive for process in processes)
