"""A model of what guests must receive: every message that a port accepted, once, and in order.

Each message carries a serial number. The model follows it from the post into its slot and out of it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from bus import native
from bus.synic import HYPERVISOR_MESSAGE
from runtime.abi import SINT_MASKED, SINT_POLLING, VP_ANY, PortType
from runtime.hypervisor.partition import Partition
from runtime.simulation.violation import hold
from runtime.simulation.world import World

SERIAL_BYTES: Final = 8

Where = tuple[int, int]  # partition, VP


class Mail:
    """Messages under way, by port; and what stands in the slots."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._accepted: dict[int, dict[int, deque[bytes]]] = {}  # by partition and port, not in a slot yet
        self._stands: dict[Where, dict[int, bytes]] = {}  # by SINT: what the guest will find
        self._owed: dict[Where, set[int]] = {}  # SINTs emptied with the pending flag set: an EOM is owed
        self.received = 0
        self.is_direct = False  # this step's message came from the parent, through no port

    def accept(self, partition: int, port: int, payload: bytes) -> None:
        """Call before the step's deliveries are looked at: it may be among them."""
        self._accepted.setdefault(partition, {}).setdefault(port, deque()).append(payload)

    def check_deliveries(self, partitions: dict[int, Partition]) -> None:
        """What this step put into slots and flags, against what it should have."""
        world = self._world
        for partition, index, sint, kind, sender, payload in world.delivered:
            where = (partition, index)
            owner = dict.get(partitions, partition)
            if kind < HYPERVISOR_MESSAGE and not self.is_direct:
                waiting = self._accepted.get(partition, {}).get(sender)
                hold(bool(waiting) and payload in (waiting or ()), "message doubled or invented", payload)
                assert waiting is not None
                assert owner is not None
                if owner.ports[sender].vp == VP_ANY:  # on several processors at once: no order is promised
                    waiting.remove(payload)
                else:
                    hold(waiting.popleft() == payload, "messages of a port out of order", payload)
            self._stands.setdefault(where, {})[sint] = payload
            if owner is not None and self._is_loud(owner, index, sint):
                # Where there is an interrupt page, one that is requested already says all.
                told = where in world.raised or where in world.interrupt_pages
                hold(told, "message without an interrupt", where)
        for partition, index, sint in world.flagged:
            where = (partition, index)
            owner = dict.get(partitions, partition)
            if owner is not None and self._is_loud(owner, index, sint):
                told = where in world.raised or partition in world.rung or where in world.interrupt_pages
                hold(told, "event without an interrupt", where)

    @staticmethod
    def _is_loud(owner: Partition, index: int, sint: int) -> bool:
        vp = owner.vps.get(index)
        return vp is not None and not vp.sints[sint] & (SINT_MASKED | SINT_POLLING)

    def check(self, partition: Partition) -> None:
        """Every accepted message is in a queue, and no queue sleeps behind a free slot."""
        identity = partition.id
        accepted = self._accepted.get(identity, {})
        for port in partition.ports.values():
            if port.type is PortType.MESSAGE:
                waiting = accepted.get(port.id)
                hold((len(waiting) if waiting else 0) == port.buffers_used, "message lost", (identity, port))
        for vp in partition.vps.values():
            if any(vp.queues) and vp.takes_messages:
                where = (identity, vp.index)
                awake = {*self._stands.get(where, ()), *self._owed.get(where, ())}
                for sint, queue in enumerate(vp.queues):
                    hold(not queue or sint in awake, "message stuck behind a free slot", (where, sint))

    def forget(self, partition: Partition | None, identity: int) -> None:
        """What belonged to ports and processors that are gone: a port's end drops what it queued."""
        ports = partition.ports if partition is not None else {}
        accepted = self._accepted.get(identity, {})
        for port in [port for port in accepted if port not in ports]:
            del accepted[port]
        for closed in self._world.closed_vps:
            self._stands.pop(closed, None)
            self._owed.pop(closed, None)

    def wipe(self, where: Where) -> None:
        """A processor's pages were cleared under it: a reboot."""
        self._stands.pop(where, None)
        self._owed.pop(where, None)

    # -- the guest's side ----------------------------------------------------------------------------------

    def waits_for(self, where: Where) -> bool:
        return bool(self._stands.get(where))

    def owes(self, where: Where) -> bool:
        return bool(self._owed.get(where))

    def receive(self, where: Where) -> None:
        """Empty every slot of a VP, as its interrupt handler does."""
        pages = self._world.vps.get(where[0], {}).get(where[1])
        if pages is None:
            return
        stands = self._stands.get(where, {})
        for sint in sorted(stands):
            taken = native.synic_take(pages[0], sint)
            hold(taken is not None, "message vanished from its slot", (where, sint))
            assert taken is not None
            hold(taken[2] == stands.pop(sint), "message changed in its slot", (where, sint))
            self.received += 1
            if taken[3]:
                self._owed.setdefault(where, set()).add(sint)

    def signal_end_of_message(self, where: Where) -> None:
        """The guest has written EOM while its SynIC was on."""
        self._owed.pop(where, None)
