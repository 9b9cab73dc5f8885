"""The interrupts of a simulated machine: message lines and doorbells, and whom they wake."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from partitions.simulated.costs import Costs
from partitions.simulated.driver import SimulatedDriver
from partitions.simulated.guest import SimulatedGuest
from partitions.simulated.kernel import Kernel
from partitions.simulated.process import Process
from partitions.simulated.root import RootLife
from partitions.simulated.serving import ServedRing
from runtime.abi import ROOT_PARTITION
from runtime.simulation.actions import ROOT_LABEL

Wake = Callable[[], None]


class Interrupts:
    """Of one machine."""

    def __init__(
        self,
        kernel: Kernel,
        costs: Costs,
        processes: Mapping[str, Process],
        programs: Mapping[str, SimulatedGuest],
        lives: Sequence[RootLife],
        drivers: Mapping[str, SimulatedDriver],
    ) -> None:
        """All of them the machine's own, as they are at the time."""
        self._kernel, self._costs = kernel, costs
        self._processes, self._programs, self._lives, self._drivers = processes, programs, lives, drivers
        # Asked of each interrupt, with whom it is for: True, and it is theirs to deliver.
        self.filters: Final[list[Callable[[str, Wake], bool]]] = []
        kernel.on_message = self._message

    def _message(self, partition: int) -> None:
        """Its line is raised: whoever runs there takes its messages, after the time that a wake takes."""
        label = self._kernel.simulation.label_of(partition)
        if (process := self._processes.get(label)) is None:
            return
        if label == ROOT_LABEL:
            process.after(self._costs.wake, self._root_takes, process)
        elif (guest := self._programs.get(label)) is not None:
            process.after(self._costs.wake, guest.take_messages)

    def _root_takes(self, process: Process) -> None:
        if (life := self._lives[-1]).process is process:
            life.take_messages()

    def signal(self, guest: int, connection: int) -> None:
        """The guest may have rung the doorbell behind a connection of its."""
        found = dict.get(self._kernel.simulation.table, guest)
        port = found.connections.get(connection) if found is not None else None
        if port is None or port.port is None:
            return
        where = (port.port_partition, port.port)
        bell = self._kernel.bell(*where)
        for ring in self._rings_of(where[0]):
            if ring.own_bell == bell and not ring.is_closed and ring.was_rung():
                self.deliver(self._kernel.simulation.label_of(where[0]), ring.wake)

    def _rings_of(self, partition: int) -> list[ServedRing]:
        if partition == ROOT_PARTITION:
            return self._lives[-1].rings
        return [ring for driver in self._drivers.values() for ring in driver.rings]

    def deliver(self, name: str, wake: Wake) -> None:
        """To whoever runs there, unless a fault takes it."""
        if not self.filters or not any(passes(name, wake) for passes in self.filters):
            wake()
