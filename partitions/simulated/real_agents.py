"""Faults that are carried out here by those who carry them out on a real machine: the hypervisor's state machine, which
has a seam for each of its own, and the agent of the root's control plane. Both know no clock but the one that they get.
"""

from collections.abc import Callable, Mapping
from typing import Final

from partitions.faults.stack_agent import StackAgent
from partitions.simulated.armed import Armed
from partitions.simulated.clock import NS_PER_MS
from partitions.simulated.machine import Event, SimulatedMachine
from runtime.chaos.faults.knobs import FOR_EVER
from runtime.chaos.faults.orders import Counts, FaultRefused, Order
from runtime.hypervisor.armed_faults import ArmedFaults

_LOOK_NS: Final = 10 * NS_PER_MS
# Calls that are answered late, or refused, and timers: a simulated program makes no call that it would wait for, and
# has no timer.
HYPERVISOR_FAULTS: Final = frozenset(
    {
        "synic-message-drop",
        "synic-message-delay",
        "synic-message-reorder",
        "synic-message-lost-across-reconnect",
        "clock-jump",
        "clock-skew",
        "forge-partition-id",
        "forge-connection-id",
        "hypercall-garbage",
    }
)
# A guest that has lost its disk for a while does not open it again here: no rescinds.
STACK_FAULTS: Final = frozenset(
    {
        "channel-message-drop",
        "channel-message-duplicate",
        "channel-message-delay",
        "channel-message-reorder",
        "channel-message-corrupt",
        "forge-relid",
        "forge-gpadl",
        "console-flood",
    }
)


class RealAgents:
    """Of one simulated machine."""

    def __init__(self, machine: SimulatedMachine, fired: Callable[[Order], None]) -> None:
        self._machine, self._fired = machine, fired
        self._hypervisors: dict[int, Armed] = {}
        self._stacks: dict[int, Armed] = {}
        self._agent: StackAgent | None = None  # of the root that lives
        self._before: dict[int, Counts] = {}  # what agents of roots that are gone have counted
        machine.kernel.on_event = self._look
        machine.listeners.append(self._hear)

    # -- the hypervisor's own

    def hypervisor(self, armed: Armed) -> None:
        state = self._machine.kernel.simulation.machine

        def arm() -> None:
            if state.faults is None:
                state.faults = ArmedFaults(state)
            state.faults.inject(armed.order)

        def heal() -> None:
            if (faults := state.faults) is not None:
                self._machine.kernel.break_on_purpose(lambda: faults.heal(armed.order.number))
            self._hypervisors.pop(armed.order.number, None)

        self._hypervisors[armed.order.number] = armed
        armed.undo.append(heal)
        try:
            self._machine.kernel.break_on_purpose(arm)
        except FaultRefused:
            del self._hypervisors[armed.order.number]
            raise

    # -- the root's control plane

    def stack(self, armed: Armed) -> None:
        agent = self._agent_now()
        agent.inject(armed.order)
        self._stacks[armed.order.number] = armed

        def heal() -> None:
            if self._agent is not None:
                self._agent.heal(armed.order.number)
            self._stacks.pop(armed.order.number, None)

        armed.undo.append(heal)
        self._look_often(armed)

    def _look_often(self, armed: Armed) -> None:
        """Nothing of the hypervisor's may happen when such a fault strikes."""
        self._look()
        if armed.order.number in self._stacks:
            self._machine.clock.after(_LOOK_NS, self._look_often, armed)

    def _agent_now(self) -> StackAgent:
        life = self._machine.lives[-1]
        if life.stack is None or life.resources is None or not life.process.is_alive:
            raise FaultRefused("no root answers")
        if self._agent is None:
            stack = life.stack
            self._agent = StackAgent(life.resources, lambda: list(stack.guests.values()))
        return self._agent

    def _hear(self, event: Event) -> None:
        """A root's end takes its agent with it; the next one is told again what stands, as by the platform."""
        if event["kind"] == "root.exited":
            self._before |= self._of_stacks()
            self._agent = None
        elif event["kind"] == "root.restored":
            for number, armed in self._stacks.items():
                times, fired = armed.order.knobs.times, self._before.get(number, Counts(0, 0)).fired
                if times == FOR_EVER or fired < times:
                    self._agent_now().inject(armed.order)

    # -- account

    def counts(self) -> Mapping[int, Counts]:
        faults = self._machine.kernel.simulation.machine.faults
        own = faults.counts() if faults is not None else {}
        return {number: one for number, one in own.items() if number in self._hypervisors} | self._of_stacks()

    def _of_stacks(self) -> dict[int, Counts]:
        now = {} if self._agent is None else self._agent.counts()
        counts = {}
        for number in self._stacks:
            one, before = now.get(number, Counts(0, 0)), self._before.get(number, Counts(0, 0))
            counts[number] = Counts(before.passes + one.passes, before.fired + one.fired)
        return counts

    def _look(self) -> None:
        """After each event of the hypervisor: the first strike is told."""
        if self._hypervisors or self._stacks:
            counts = self.counts()
            for number, armed in (*self._hypervisors.items(), *self._stacks.items()):
                if number in counts and counts[number].fired:
                    self._fired(armed.order)
