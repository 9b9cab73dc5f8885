"""What holds after each step, looked at where the step can have changed something.

Keeps a copy of what every partition was. So it can say who changed, whether that one had anything to do with the call,
whether pages were conserved, and whether what pointed at something gone still does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from operator import itemgetter
from typing import Any, Final

from runtime.abi import ROOT_PARTITION, PartitionState
from runtime.hypervisor.invariants import InvariantBroken, check_invariants, check_partition
from runtime.hypervisor.machine import Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.program import Process
from runtime.simulation.fingerprints import Fingerprint, fingerprint
from runtime.simulation.mail import Mail
from runtime.simulation.touched import TouchedPartitions
from runtime.simulation.violation import Violation, hold
from runtime.simulation.world import World

EVERYBODY: Final = 0  # among those concerned: anyone may change, as when the VPs' timers go off
_ALIVE: Final = (Process.STARTING, Process.RUNNING)
_other_end: Final = itemgetter(0)


def _pages(known: Fingerprint | None) -> int:
    return 0 if known is None else known.available + known.in_use


def _broken(error: Exception, where: str) -> Violation:
    """The rule is the invariant, whatever numbers it was broken with."""
    what = str(error) if isinstance(error, InvariantBroken) else "something named is not there"
    return Violation(f"invariant: {re.sub(r'[0-9]+', 'n', what)}", f"{where}: {error!r}")


class Accounts:
    """The copies, and the books over them."""

    def __init__(self, machine: Machine, table: TouchedPartitions, world: World, mail: Mail) -> None:
        self._machine, self._table, self._world, self._mail = machine, table, world, mail
        self._known: dict[int, Fingerprint] = {}
        self._parents: dict[int, int | None] = {}
        self._slot_users: dict[int, Counter[int]] = {}  # by slot: entries of each partition
        self.close_step((ROOT_PARTITION,), refused=False)

    def close_step(self, concerned: Iterable[int], *, refused: bool) -> None:
        """After each input of the state machine, whose effects have been carried out.

        Args:
            concerned: whom the call named, its caller among them. What follows from those is worked out here.
            refused: the state machine said no, so nothing may be different.

        Raises: Violation.
        """
        touched = set(self._table.touched)
        if self._table.walked:
            touched |= self._changed_on_a_walk()
        before: dict[int, Fingerprint | None] = {}
        pages = 0
        for identity in sorted(touched):
            partition = dict.get(self._table, identity)
            was = self._known.get(identity)
            now = None if partition is None else fingerprint(partition)
            if now == was:
                continue
            before[identity] = was
            pages += _pages(now) - _pages(was)
            if now is None or partition is None:
                del self._known[identity]
            else:
                self._known[identity] = now
        if before:
            hold(not refused, "a refused call changed something", list(before))
            hold(pages == 0 or not self._parents, "pages not conserved", pages)
            self._check_strangers(before, concerned)
            self._follow(before)
        self._mail.check_deliveries(self._table)
        if before or self._world.delivered:
            self._check(before)
        self._table.forget()

    def _changed_on_a_walk(self) -> set[int]:
        """Who came up because somebody looked at all: hardly any is changed so, and none without its pages."""
        changed = set()
        for identity, known in self._known.items():
            partition = dict.get(self._table, identity)
            if (
                partition is None
                or partition.pool.available != known.available
                or partition.pool.in_use != known.in_use
                or partition.state is not known.state
            ):
                changed.add(identity)
        return changed

    def check_all(self) -> None:
        """Everything, whoever was touched. Raises: Violation."""
        machine, world, table = self._machine, self._world, self._table
        for identity in dict.keys(table) | self._known.keys():
            partition = dict.get(table, identity)
            now = None if partition is None else fingerprint(partition)
            hold(now == self._known.get(identity), "changed behind the table's back", identity)
        try:
            check_invariants(machine)
        except (InvariantBroken, KeyError) as error:
            raise _broken(error, "the machine") from error
        for identity in list(dict.keys(table)):
            self._check_held(identity)
        routes = [
            connection.sender_route
            for partition in dict.values(table)
            for connection in partition.connections.values()
            if connection.sender_route is not None
        ]
        hold(sorted(routes) == sorted(world.routes), "routes nobody holds")
        hold(world.slots == {slot.id: slot.pages for slot in machine.slots.values()}, "slots nobody holds")
        hold(not machine.effects, "effects kept back")
        self._table.forget()

    # -- who may have changed ------------------------------------------------------------------------------

    def _check_strangers(self, before: dict[int, Fingerprint | None], concerned: Iterable[int]) -> None:
        """Whom the call named, theirs below if they end, and whoever is tied to those. Nobody else."""
        near = set(concerned)
        if EVERYBODY in near or before.keys() <= near:
            return
        ending = {
            identity
            for identity, was in before.items()
            if was is None
            or (now := self._known.get(identity)) is None
            or now.state is not was.state
            or now.state is PartitionState.FINALIZING
        }
        near |= {identity for identity in ending if self._is_below(identity, near)}
        for identity in list(near):
            while (above := self._parent(identity)) in ending:  # it waited for its last child to end
                assert above is not None
                near.add(above)
                identity = above
        tied = set(near)
        for identity in near:
            if (parent := self._parent(identity)) is not None:
                tied.add(parent)
            for known in (before.get(identity), self._known.get(identity)):
                if known is not None:
                    tied.update(map(_other_end, known.links))
                    for entry in known.entries:
                        tied.update(self._slot_users.get(entry.slot, ()))
        strangers = before.keys() - tied
        hold(not strangers, "a stranger changed", strangers)

    def _parent(self, identity: int) -> int | None:
        partition = dict.get(self._table, identity)
        return partition.parent if partition is not None else self._parents.get(identity)

    def _is_below(self, identity: int, those: set[int]) -> bool:
        above = self._parent(identity)
        while above is not None:
            if above in those:
                return True
            above = self._parent(above)
        return False

    # -- what must agree -----------------------------------------------------------------------------------

    def _follow(self, before: dict[int, Fingerprint | None]) -> None:
        """Bring the books up to date."""
        for identity, was in before.items():
            now = self._known.get(identity)
            old, new = (was.entries if was else ()), (now.entries if now else ())
            if old != new:
                self._move(identity, [each for each in old if each not in new], -1)
                self._move(identity, [each for each in new if each not in old], 1)
            if was is None and now is not None:
                self._parents[identity] = self._parent(identity)
            self._mail.forget(dict.get(self._table, identity), identity)
        for slot in self._world.closed_slots:
            hold(not self._slot_users.pop(slot, None), "slot freed while it is mapped", slot)

    def _move(self, identity: int, entries: list[Any], by: int) -> None:
        for entry in entries:
            users = self._slot_users.setdefault(entry.slot, Counter())
            users[identity] += by
            if not users[identity]:
                del users[identity]

    def _check(self, before: dict[int, Fingerprint | None]) -> None:
        """Those that changed, and those at the other end of what changed."""
        look = set(before)
        for identity, was in before.items():
            now = self._known.get(identity)
            if was is None or now is None or was.links != now.links:
                for known in (was, now):
                    if known is not None:
                        look.update(map(_other_end, known.links))
            if was is None or now is None or was.state is not now.state:
                parent = self._parents.get(identity)
                if parent is not None:
                    look.add(parent)
        look.update(partition for partition, *_ in self._world.delivered)
        for identity in sorted(look):
            partition = dict.get(self._table, identity)
            if partition is not None:
                self._check_one(partition)
            self._check_held(identity)
        hold(len(self._world.slots) == len(self._machine.slots), "slots nobody holds")

    def _check_one(self, partition: Partition) -> None:
        try:
            check_partition(self._machine, partition)
        except (InvariantBroken, KeyError) as error:
            raise _broken(error, f"partition {partition.id}") from error
        if partition.state is PartitionState.FINALIZING:
            waits = partition.process in _ALIVE or partition.children
            hold(bool(waits), "a dying partition waits for nobody", partition.id)
        hold(not partition.orphaned or partition.state is PartitionState.FINALIZING, "orphan not removed")
        self._mail.check(partition)

    def _check_held(self, identity: int) -> None:
        """The world holds for it what it thinks it has."""
        world, partition = self._world, dict.get(self._table, identity)
        vps = partition.vps.keys() if partition is not None else set[int]()
        hold(world.vps.get(identity, {}).keys() == vps, "processors nobody holds", identity)
        ports = partition.ports.values() if partition is not None else ()
        doorbells = {port.id for port in ports if port.doorbell}
        hold(world.doorbells.get(identity, set()) == doorbells, "doorbells nobody holds", identity)
        watched = partition is not None and partition.watched_children
        hold((identity in world.watches) == watched, "watches nobody holds", identity)
        files = partition.files if partition is not None else 0
        hold(world.files.get(identity, 0) == files, "files nobody holds", identity)
        alive = partition is not None and partition.process in _ALIVE
        hold((identity in world.starting or identity in world.running) == alive, "a process nobody holds")
        if partition is not None:
            for connection in partition.connections.values():
                route = connection.sender_route
                hold(route is None or route in world.routes, "a route that is gone", connection)
