"""One life of a simulated root: what partitions.root does, in turns of the clock.

The stack, the guests' buses, their memory and the saved state are the real ones; so is the order of a takeover.
"""

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Final, Protocol, cast

import trio

from bus.memory import MemorySlot
from bus.synic import CHANNEL_MESSAGE, VMBUS_SINT
from partitions.machine_plan import AttachmentPlan, PartitionPlan
from partitions.simulated.kernel import SimulatedHypercalls
from partitions.simulated.process import DeadlySeam, Process, sleep
from partitions.simulated.serving import ServedRing
from partitions.simulated.surroundings import Surroundings
from partitions.stack.offered_device import OfferedDevice
from partitions.stack.saved_state import SLOT_PAGES, SavedState
from partitions.stack.stack_resources import RootResources
from partitions.stack.virtualization_stack import VirtualizationStack
from partitions.stack.vmbus_ports import partition_of_message_port
from partitions.vp.processor import VirtualProcessor
from runtime.abi import PAGE_BYTES, ROOT_PARTITION, HypercallCode
from runtime.hypercalls.caller import MappedSlot
from runtime.simulation.actions import ROOT_LABEL

SAVED_STATE_GPFN: Final = 0x1000
SIEF_BYTES: Final = PAGE_BYTES


class RootSurroundings(Surroundings, Protocol):
    """What a root's life needs of its machine."""

    @property
    def plans(self) -> tuple[PartitionPlan, ...]: ...
    def devices_of(self, life: "RootLife") -> Mapping[str, OfferedDevice]: ...


class RootLife:
    """From its process's start to its end."""

    def __init__(self, process: Process, machine: RootSurroundings, generation: int) -> None:
        self.process, self._machine, self._generation = process, machine, generation
        self.call: Final = SimulatedHypercalls(machine.kernel, ROOT_LABEL)
        self.stack: VirtualizationStack | None = None
        self.resources: RootResources | None = None
        self.rings: list[ServedRing] = []  # that this process serves, by ever
        self.at_end: list[Callable[[], None]] = []  # what its end closes, beside those
        self._listens = False  # not before all is restored
        self._saved: SavedState | None = None
        self._memory: MemorySlot | None = None
        self.seam: DeadlySeam | None = None

    # -- beginning

    def boot(self) -> None:
        """The first one."""
        kernel, call = self._machine.kernel, self.call
        call.enable_synic(0, (VMBUS_SINT,))
        self._map(call.map_gpa_pages(SAVED_STATE_GPFN, SLOT_PAGES))
        assert self._saved is not None
        self._saved.format()
        stack = self._make_stack()
        devices = self._machine.devices_of(self)
        for plan in self._machine.plans:
            call.label_made = plan.name
            stack.create_child(plan, devices)
            call.label_made = ""
        self._save()
        kernel.call(ROOT_LABEL, HypercallCode.HEARTBEAT, {"within_ms": self._machine.hang_ms})
        self._machine.log("machine.ready")
        self._listens = True
        self.take_messages()

    def take_over(self) -> None:
        """A later one: what the saved state says, and first of all what its predecessor may have begun."""
        machine, call = self._machine, self.call
        machine.kernel.call(ROOT_LABEL, HypercallCode.GET_BIRTH, {})
        (mapped,) = call.claim_gpa_pages(SAVED_STATE_GPFN, SLOT_PAGES)
        call.end_of_message(0)
        self._map(mapped)
        assert self._saved is not None
        state = self._saved.load()
        struck = self._saved.seam.take_struck()
        stack = self._make_stack()
        devices = machine.devices_of(self)
        stack.received.adopt(state["received"])
        stack.ended.update(state["ended"])
        channels = []
        for saved in state["guests"]:
            attachments = self._attachments(saved["name"])
            channels += stack.adopt_child(saved, 1, devices, attachments)
        order = sorted(channels, key=lambda one: not one[0].was_executing(one[1]))
        died_at = struck.text if struck is not None else None
        self._replay(0, order, channels, died_at)

    def _replay(self, place: int, order: list[Any], channels: list[Any], died_at: str | None) -> None:
        """One channel a turn. One that hangs in the medium is its own to end; others wait for it at the device."""
        if place < len(order):
            guest, relid = order[place]
            guest.replay(relid)
            cost = self._machine.costs.request
            self.process.after(cost, self._replay, place + 1, order, channels, died_at)
            return
        for guest, relid in channels:
            guest.serve(relid)
        assert self.stack is not None
        self.stack.resume()
        self._machine.kernel.call(ROOT_LABEL, HypercallCode.HEARTBEAT, {"within_ms": self._machine.hang_ms})
        self._machine.log("root.restored", ROOT_LABEL, channels=len(channels), died_at=died_at)
        self._listens = True
        self.children_changed()
        self.take_messages()

    def _attachments(self, name: str) -> dict[str, AttachmentPlan]:
        (plan,) = (plan for plan in self._machine.plans if plan.name == name)
        return {one.name: one for one in plan.attachments}

    def _map(self, mapped: MappedSlot) -> None:
        self._memory = MemorySlot.from_fd(mapped.fd, mapped.gpfn, mapped.pages)
        watchers = self._machine.watchers_of(ROOT_LABEL)
        self._saved = SavedState(self._memory.memory, lambda memory: DeadlySeam(memory, watchers))
        seam = self._saved.seam
        assert isinstance(seam, DeadlySeam)
        self.seam = seam

    def _make_stack(self) -> VirtualizationStack:
        assert self._saved is not None
        clock = self.process.clock
        self.resources = RootResources(
            self.call,
            ROOT_PARTITION,
            memoryview(bytearray(SIEF_BYTES)),
            cast(trio.Nursery, self.process),
            self._log,
            self._save,
            self._saved.record,
            self._saved.seam,
            numbers=count(clock.now_ns + self._generation),
            now_ns=clock.now,
            sleep=sleep,
            work_ns=clock.now,
        )
        self.stack = VirtualizationStack(self.resources, cast(VirtualProcessor, None))
        return self.stack

    def _log(self, kind: str, **fields: Any) -> None:
        self._machine.log(kind, ROOT_LABEL, **fields)

    def _save(self) -> None:
        assert self._saved is not None
        assert self.stack is not None
        self._saved.save(
            {
                "guests": [guest.to_state() for guest in self.stack.guests.values()],
                "ended": sorted(self.stack.ended),
                "received": self.stack.received.to_state(),
            }
        )

    # -- living

    def take_messages(self) -> None:
        """Channel messages. Each leaves its slot only when what follows from it has been saved."""
        stack, kernel = self.stack, self._machine.kernel
        if stack is None or not self._listens:
            return
        inbox = kernel.inboxes.get(ROOT_PARTITION)
        while inbox:
            message_type, sender, payload = inbox[0]
            if stack.received.is_new(sender, payload):
                guest = stack.guests.get(partition_of_message_port(sender) or 0)
                if guest is not None and message_type == CHANNEL_MESSAGE:
                    guest.receive(payload)
            kernel.take_message(ROOT_LABEL)

    def children_changed(self) -> None:
        stack = self.stack
        if stack is None or not self._listens:
            return
        for child, guest in list(stack.guests.items()):
            if child not in stack.ended and stack.has_ended(child):
                stack.ended.add(child)
                guest.disconnect()

    def close(self) -> None:
        """The process is gone, and its mappings with it."""
        for ring in self.rings:
            ring.close()
            ring.release()
        self.rings.clear()
        for end in self.at_end:
            end()
        self.at_end.clear()
        if self._memory is not None:
            self._memory.close()
