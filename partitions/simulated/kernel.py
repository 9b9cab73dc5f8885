"""The hypervisor below a simulated machine: the real state machine, and the descriptors that its loop would hand out.

Who calls is known by a label. Memory is real (memfds), and so are doorbells (eventfds), so that the same code maps and
rings them. What the state machine wants done to processes is told to whoever listens.
"""

import contextlib
import fcntl
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from bus.memory import PAGE_BYTES, REQUIRED_SEALS
from partitions.simulated.clock import VirtualClock
from runtime.abi import (
    PARTITION_SELF,
    ExitStatus,
    HvStatus,
    HypercallCode,
    HypercallError,
    HypervisorGone,
    RegisterName,
)
from runtime.hypercalls.caller import HypercallPort
from runtime.hypercalls.connection import Result
from runtime.hypervisor.invariants import InvariantBroken, check_invariants
from runtime.hypervisor.machine import RootFailurePolicy
from runtime.hypervisor.replies import DoorbellHandle, Handle, KickHandle, SlotHandle
from runtime.simulation.actions import Action, ActionKind
from runtime.simulation.simulator import Simulation
from runtime.simulation.violation import Violation

_PARTITIONS: Final = frozenset({"partition", "connection_partition", "port_partition", "source_partition"})
_BELLS_MORE: Final = 32
Message = tuple[int, int, bytes]  # type, sending port, payload


class Kernel:
    """One machine's hypervisor."""

    def __init__(self, clock: VirtualClock, policy: RootFailurePolicy) -> None:
        self._clock = clock
        self.simulation: Final = Simulation(policy, every_step=False)
        self.world: Final = self.simulation.world
        self.inboxes: Final[
            dict[int, deque[Message]]
        ] = {}  # what stands in a partition's message slot, in order
        self.on_message: Callable[[int], None] = lambda partition: None
        self.on_spawn: Callable[[int], None] = lambda partition: None
        self.on_doom: Callable[[int], None] = lambda partition: None
        self.on_timer: Callable[[], None] = lambda: None  # whoever works is to call in time
        self.on_event: Callable[[], None] = lambda: None
        self.is_anybody_stopped: Callable[[], bool] = lambda: False
        self._memory: Final[dict[int, int]] = {}  # descriptors, by slot
        self._bells: Final[dict[tuple[int, int], int]] = {}  # by partition and port
        self._bells_max = _BELLS_MORE  # then those of ports that are gone are closed
        self._spawned: set[int] = set()
        self._timers_due_ns: int | None = None
        self._faults_due_ns: int | None = None

    def close(self) -> None:
        for fd in (*self._memory.values(), *self._bells.values()):
            os.close(fd)
        self._memory.clear()
        self._bells.clear()

    @property
    def descriptors(self) -> int:
        """That it has out."""
        self._drop_bells()
        return len(self._memory) + len(self._bells)

    def _drop_bells(self) -> None:
        """Of ports that are gone. Whoever listened there has closed."""
        doorbells = self.world.doorbells
        for partition, port in [one for one in self._bells if one[1] not in doorbells.get(one[0], ())]:
            os.close(self._bells.pop((partition, port)))
        self._bells_max = 2 * len(self._bells) + _BELLS_MORE

    @property
    def memory_bytes(self) -> int:
        """Of all slots."""
        return sum(self.world.slots.values()) * PAGE_BYTES

    @property
    def halted(self) -> str | None:
        """Why there is no machine any more."""
        return self.world.halted

    # -- what happens

    def call(self, label: str, code: HypercallCode, args: dict[str, Any], label_made: str = "") -> Result:
        """Raises HypercallError, HypervisorGone; Violation where the state machine broke one of its rules."""
        action = Action(ActionKind.CALL, label, code=int(code), args=args, label=label_made)
        reply = self._perform(action)
        if reply is None:
            raise HypervisorGone("nobody answers")
        if reply.status is not HvStatus.SUCCESS:
            raise HypercallError(code, reply.status)
        return Result(
            reply.values, [self._descriptor(handle) for handle in reply.handles if _is_ours(handle)]
        )

    def started(self, label: str) -> None:
        self._perform(Action(ActionKind.STARTED, label))

    def exited(self, label: str, code: int) -> None:
        identity = self.simulation.labels[label]
        self._spawned.discard(identity)
        self._perform(Action(ActionKind.EXITED, label, number=int(ExitStatus(code, None).code or 0)))

    def take_message(self, label: str) -> None:
        """The one in front is dealt with: its slot is free again, and the next one may follow."""
        identity = self.simulation.labels[label]
        self.inboxes[identity].popleft()
        self._perform(Action(ActionKind.RECEIVE, label))
        if self.simulation.mail.owes((identity, 0)):
            registers = [[int(RegisterName.EOM), 0]]
            with contextlib.suppress(HypercallError, HypervisorGone):
                self.call(label, HypercallCode.SET_VP_REGISTERS, {"vp": 0, "registers": registers})

    def _perform(self, action: Action) -> Any:
        world = self.world
        world.now_ns = self._clock.now_ns
        world.delivered.clear()
        reply = self.simulation.perform(action)
        self._tell()
        return reply

    def break_on_purpose(self, act: Callable[[], object]) -> None:
        """Arm, or heal, a fault of the hypervisor's own."""
        world = self.world
        world.now_ns = self._clock.now_ns
        world.delivered.clear()
        self.simulation.break_on_purpose(act)
        self._tell()

    def _tell(self) -> None:
        """What has been decided, to those whom it concerns."""
        world = self.world
        if world.delivered:
            for partition, _, _, message_type, sender, payload in world.delivered:
                self.inboxes.setdefault(partition, deque()).append((message_type, sender, payload))
            for partition in {told[0] for told in world.delivered}:
                self.on_message(partition)
        for slot in world.closed_slots:
            if (fd := self._memory.pop(slot, None)) is not None:
                os.close(fd)
        if world.starting:
            for partition in [one for one in world.starting if one not in self._spawned]:
                self._spawned.add(partition)
                self.on_spawn(partition)
        if world.doomed:
            for partition in list(world.doomed):
                self.on_doom(partition)
        self._look_at_timers()
        self._look_at_faults()
        self.on_event()

    def check(self) -> None:
        """The invariants of the whole state machine. Raises Violation."""
        try:
            check_invariants(self.simulation.machine)
        except (InvariantBroken, KeyError) as error:
            raise Violation("an invariant of the hypervisor", repr(error)) from error

    # -- heartbeats

    def watch(self) -> None:
        """Somebody has stopped, so promises may be broken from now on."""
        self.on_timer()
        self._perform(Action(ActionKind.ADVANCE))

    def _look_at_timers(self) -> None:
        """While everybody runs nobody breaks a promise: heartbeats are not simulated one by one then."""
        if not self.is_anybody_stopped():
            return
        due_ns = min(self.world.timers_ns.values(), default=None)
        if due_ns is not None and (self._timers_due_ns is None or due_ns < self._timers_due_ns):
            self._timers_due_ns = due_ns
            self._clock.after(due_ns - self._clock.now_ns, self._timer, due_ns)

    def _look_at_faults(self) -> None:
        """What an armed fault holds, or does by itself, has its time: the same alarm as a VP's timers have."""
        due_ns = self.world.vp_timer_ns
        if due_ns is not None and (self._faults_due_ns is None or due_ns < self._faults_due_ns):
            self._faults_due_ns = due_ns
            self._clock.after(max(due_ns - self._clock.now_ns, 0), self._fault, due_ns)

    def _fault(self, due_ns: int) -> None:
        if self._faults_due_ns == due_ns and self.halted is None:
            self._faults_due_ns = None
            self._perform(Action(ActionKind.ADVANCE))

    def _timer(self, due_ns: int) -> None:
        if self._timers_due_ns != due_ns or self.halted is not None:
            return
        self.on_timer()
        self._timers_due_ns = None
        self._perform(Action(ActionKind.ADVANCE))

    # -- descriptors

    def bell(self, partition: int, port: int) -> int:
        """The eventfd of a port. The kernel's."""
        if (partition, port) not in self._bells:
            if len(self._bells) >= self._bells_max:
                self._drop_bells()
            self._bells[partition, port] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return self._bells[partition, port]

    def _descriptor(self, handle: Handle) -> int:
        match handle:
            case SlotHandle(slot):
                if slot not in self._memory:
                    self._memory[slot] = _new_memory(self.world.slots[slot])
                return os.dup(self._memory[slot])
            case DoorbellHandle(partition, port):
                return os.dup(self.bell(partition, port))
            case KickHandle(route):
                spec = self.world.routes[route]
                return os.dup(self.bell(spec.partition, spec.port))
        raise TypeError(f"no descriptor for {handle}")


def _is_ours(handle: Handle) -> bool:
    return isinstance(handle, SlotHandle | DoorbellHandle | KickHandle)


def _new_memory(pages: int) -> int:
    fd = os.memfd_create("simulated", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, pages * PAGE_BYTES)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, REQUIRED_SEALS)
    return fd


class SimulatedHypercalls(HypercallPort):
    """A partition's calls, answered at once."""

    def __init__(self, kernel: Kernel, label: str) -> None:
        self._kernel, self._label = kernel, label
        self.label_made = ""  # given to the partition that the next CREATE_PARTITION makes

    def close(self) -> None:
        pass

    def call(self, code: HypercallCode, fds: Sequence[int] = (), **args: object) -> Result:
        given: dict[str, object] = {}
        for name, value in args.items():
            if value is not None and value != PARTITION_SELF:
                if name in _PARTITIONS:  # the simulator knows them by their labels
                    value = self._kernel.simulation.label_of(int(value))  # type: ignore[call-overload]
                given[name] = value
        return self._kernel.call(self._label, code, given, self.label_made)
