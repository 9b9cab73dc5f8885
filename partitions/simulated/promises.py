"""Heartbeats, and what stops them: a process that is stopped, or whose heartbeats do not arrive, breaks its promise.

While everybody runs nobody can; so a heartbeat is simulated only where somebody stops, and from then on for all others.
"""

from typing import TYPE_CHECKING

from runtime.simulation.actions import ROOT_LABEL

if TYPE_CHECKING:
    from partitions.simulated.machine import SimulatedMachine


class Promises:
    """Of one machine's root and drivers. A guest promises nothing."""

    def __init__(self, machine: "SimulatedMachine") -> None:
        self._machine = machine
        self._mute: set[str] = set()  # whose heartbeats do not arrive
        machine.kernel.on_timer = self._renew
        machine.kernel.is_anybody_stopped = self._may_be_broken

    def stop(self, name: str) -> None:
        """As SIGSTOP. Its last heartbeat is of this moment. LookupError: it does not run."""
        process = self._machine.process(name)
        if not process.is_stopped:
            self._beat(name)
            process.stop()
            self._machine.kernel.watch()

    def mute(self, name: str) -> None:
        """Its heartbeats do not arrive any more."""
        self._beat(name)
        self._mute.add(name)
        self._machine.kernel.watch()

    def unmute(self, name: str) -> None:
        self._mute.discard(name)
        if self._works(name):
            self._beat(name)

    def _works(self, name: str) -> bool:
        process = self._machine.processes.get(name)
        return process is not None and process.is_alive and not process.is_stopped and name not in self._mute

    def _renew(self) -> None:
        """Whoever works has called in time."""
        for name in (ROOT_LABEL, *self._machine.drivers):
            if self._works(name):
                self._beat(name)

    def _beat(self, name: str) -> None:
        """A heartbeat, of who has begun to promise any."""
        machine = self._machine
        if name in machine.drivers:
            machine.drivers[name].beat(machine.hang_ms)
        elif name == ROOT_LABEL:
            life = machine.lives[-1]
            if life.stack is not None and life.process is machine.processes[ROOT_LABEL]:
                life.call.heartbeat(machine.hang_ms)

    def _may_be_broken(self) -> bool:
        processes = self._machine.processes.values()
        return bool(self._mute) or any(process.is_stopped and process.is_alive for process in processes)
