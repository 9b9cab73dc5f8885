"""Faults on purpose, in the broker around the state machine: brings there what does not come by, and kills the zygote.

Three ways lead to a channel's doorbell. Through a call the state machine rings it, and its filter sees that. A route
through the broker's router is turned away from the doorbell, to one of ours, while a fault of interrupts is armed: the
router does not even know. On the direct route nobody is between sender and doorbell, so we are a thief, who looks at
each ring and tries to take it before its owner does. Who spins needs no doorbell, and who is awake is faster than we:
a theft that fails is no pass of the seam.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from runtime.abi import PortType
from runtime.chaos.faults.hypervisor_kinds import HYPERVISOR_KINDS
from runtime.chaos.faults.kinds import ParameterError
from runtime.chaos.faults.knobs import Trigger
from runtime.chaos.faults.orders import Counts, FaultRefused, Order, OrderError
from runtime.hypervisor.armed_faults import ArmedFaults
from runtime.hypervisor.effects import RingDoorbell
from runtime.hypervisor.loop import now_ns

if TYPE_CHECKING:
    from runtime.hypervisor.broker import Broker

LOOK_MS: Final = 10  # how soon a doorbell that is new is watched
RINGS_AT_ONCE_MAX: Final = 256
_KINDS: Final = {kind.name: kind for kind in HYPERVISOR_KINDS}
_At = tuple[int, int]  # partition, port


@dataclass(slots=True)
class _Watched:
    """One doorbell. The descriptor is ours: a copy of it, or what the router rings in its stead."""

    fd: int
    route: int | None  # that is turned away


class BrokerFaults:
    """The FaultAgent of the power socket."""

    def __init__(self, broker: Broker) -> None:
        self._broker: Final = broker
        self._watched: dict[_At, _Watched] = {}
        self._by_fd: dict[int, _At] = {}
        self._rings: select.epoll | None = None  # edge-triggered: a ring is told of once
        self._kills: dict[int, Trigger] = {}  # of the zygote, by order

    def answer(self, verb: str, args: Mapping[str, object]) -> dict[str, object]:
        """Raises ValueError: one line."""
        match verb:
            case "inject":
                try:
                    order = Order.from_table(args.get("order"))
                    if (kind := _KINDS.get(order.kind)) is None:
                        raise FaultRefused(f"the hypervisor carries out no {order.kind}")
                    kind.settle(order.parameters)
                    self.inject(order)
                except (OrderError, ParameterError, FaultRefused) as error:
                    raise ValueError(str(error)) from error
                return {}
            case "heal":
                number = args.get("number")
                self.heal(number if isinstance(number, int) and number else None)
                return {}
            case _:
                rows = [[number, one.passes, one.fired] for number, one in self.counts().items()]
                return {"counts": rows}

    # -- the agent

    def inject(self, order: Order) -> None:
        """Raises FaultRefused."""
        if order.kind == "kill-zygote":
            self._kill_zygote(order)
            return
        refusals: list[FaultRefused] = []

        def arm() -> None:
            machine = self._broker.hypervisor.machine
            if machine.faults is None:
                machine.faults = ArmedFaults(machine)
            try:
                machine.faults.inject(order)
            except FaultRefused as refused:
                refusals.append(refused)

        self._change(arm)
        if refusals:
            raise refusals[0]
        self._look()

    def heal(self, number: int | None) -> None:
        for armed in list(self._kills) if number is None else [number]:
            self._kills.pop(armed, None)
        if (faults := self._broker.hypervisor.machine.faults) is not None:
            self._change(lambda: faults.heal(number))
        self._look()

    def counts(self) -> Mapping[int, Counts]:
        counts = {number: Counts(trigger.passes, trigger.fired) for number, trigger in self._kills.items()}
        faults = self._broker.hypervisor.machine.faults
        return counts if faults is None else {**counts, **faults.counts()}

    def _change(self, act: Callable[[], object]) -> None:
        broker = self._broker
        broker.carry_out(broker.hypervisor.break_on_purpose(act, now_ns()))

    def _kill_zygote(self, order: Order) -> None:
        trigger = Trigger(order.knobs, order.seed)
        if (zygote := self._broker.zygote.current) is None:
            raise FaultRefused("there is no zygote any more")
        self._kills[order.number] = trigger
        if trigger.strikes():
            os.kill(zygote.pid, signal.SIGKILL)

    # -- doorbells that are rung past the state machine

    def _look(self) -> None:
        """Watch every doorbell while a fault of interrupts is armed, and none otherwise."""
        broker = self._broker
        machine = broker.hypervisor.machine
        wanted: dict[_At, int | None] = {}
        if machine.faults is not None and machine.faults.touches_interrupts:
            for owner in machine.partitions.values():
                for port in owner.ports.values():
                    if port.type is PortType.EVENT and port.doorbell:
                        wanted[owner.id, port.id] = self._route_to(port.connection_partition, port.connection)
            broker.loop.alarm(self, LOOK_MS, self._look)
        for at, watched in list(self._watched.items()):
            if at not in wanted or wanted[at] != watched.route:
                self._unwatch(at)
        for at, route in wanted.items():
            if at not in self._watched:
                self._watch(at, route)

    def _route_to(self, partition: int, connection: int | None) -> int | None:
        found = self._broker.hypervisor.machine.partitions.get(partition)
        if found is None or connection is None or connection not in found.connections:
            return None
        return found.connections[connection].sender_route

    def _watch(self, at: _At, route: int | None) -> None:
        host = self._broker.host
        if (doorbell := host.doorbell_fd(*at)) is None:
            return
        fd = os.dup(doorbell) if route is None else os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        if not host.has_room_for([fd]):
            os.close(fd)
            return
        if route is not None:
            host.ring_at(route, fd)
        if self._rings is None:
            self._rings = select.epoll()
            self._broker.loop.watch(self._rings.fileno(), self._rung)
        self._rings.register(fd, select.EPOLLIN | select.EPOLLET)
        self._watched[at] = _Watched(fd, route)
        self._by_fd[fd] = at

    def _unwatch(self, at: _At) -> None:
        watched = self._watched.pop(at)
        host, doorbell = self._broker.host, self._broker.host.doorbell_fd(*at)
        if watched.route is not None and doorbell is not None:
            with contextlib.suppress(LookupError):  # it went meanwhile
                host.ring_at(watched.route, doorbell)
            if _take(watched.fd):  # what was on its way to us
                self._ring(at)
        assert self._rings is not None
        self._rings.unregister(watched.fd)
        del self._by_fd[watched.fd]
        os.close(watched.fd)
        if not self._watched:
            self._broker.loop.drop(self._rings.fileno())
            self._rings.close()
            self._rings = None

    def _rung(self, events: int) -> None:
        assert self._rings is not None
        for fd, _ in self._rings.poll(0, RINGS_AT_ONCE_MAX):
            if (at := self._by_fd.get(fd)) is None:
                continue
            if self._watched[at].route is None and self._is_our_own(at):
                continue
            if _take(fd):
                self._ring(at)

    def _is_our_own(self, at: _At) -> bool:
        """A ring that the state machine wanted, and that we now see again."""
        faults, ring = self._broker.hypervisor.machine.faults, RingDoorbell(*at)
        if faults is None or ring not in faults.rung:
            return False
        faults.rung.discard(ring)
        return True

    def _ring(self, at: _At) -> None:
        """An interrupt that came past the state machine goes by it now."""
        machine = self._broker.hypervisor.machine

        def ring() -> None:
            owner = machine.partitions.get(at[0])
            if owner is not None and at[1] in owner.ports and owner.ports[at[1]].doorbell:
                machine.effects.append(RingDoorbell(*at))

        self._change(ring)


def _take(fd: int) -> bool:
    """Empty an eventfd without ever waiting for it, whatever its open file says. False: nothing was in it."""
    try:
        return os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT) == 8
    except OSError:
        return False
