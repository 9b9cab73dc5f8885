"""What a parent partition does for its children: creates and pays for them, serves their VMBus, sees them end.

The root has one, and so does each partition with children of its own (partitions/parent.py). What each child is to be
comes as a `PartitionPlan`; what is offered to it, as a device of any class.
"""

import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import trio

from bus.synic import CHANNEL_MESSAGE, VMBUS_SINT
from partitions.emulated.plan import EmulationError
from partitions.machine_plan import AttachmentPlan, PartitionPlan, instance_guid
from partitions.stack.channel_host import CalledServer
from partitions.stack.guest_bus import GuestBus
from partitions.stack.offered_device import OfferedDevice
from partitions.stack.received_messages import ReceivedMessages
from partitions.stack.restoring import RestoreError, device_states, give_back
from partitions.stack.served_channel import stop_all
from partitions.stack.stack_resources import RootResources
from partitions.stack.vmbus_ports import DRIVER_MESSAGE, partition_of_message_port
from partitions.vp.processor import VirtualProcessor
from runtime.abi import PAGE_BYTES, HypercallError, PartitionProperty, PartitionState

if TYPE_CHECKING:
    from partitions.emulated.host import EmulationHost


class BuildError(Exception):
    """The machine cannot be built as described. One line for the user."""


class VirtualizationStack:
    """The children of one partition and their buses. All of it runs in one trio task at a time."""

    def __init__(
        self, resources: RootResources, vp: VirtualProcessor, emulation: "EmulationHost | None" = None
    ) -> None:
        """`vp`: whose VMBus interrupt is this stack's alone; its SynIC is on."""
        self.guests: Final[dict[int, GuestBus]] = {}
        self.ended: Final[set[int]] = set()  # children whose process is gone
        self.resources, self._vp = resources, vp
        self._call = resources.hypercalls
        self.received: Final = ReceivedMessages(self._call)
        self._emulation = emulation
        self._changed = trio.Condition()  # of `ended`

    # -- building

    def create_child(self, plan: PartitionPlan, devices: Mapping[str, OfferedDevice]) -> None:
        """The parent's part of a child's life: create, pay, initialize, connect, offer, load, start.

        The plan's files are closed. Raises BuildError: what there is of the child goes at once, or with its parent.
        """
        call, child = self._call, 0
        try:
            child = call.create_partition()
            call.set_privileges(child, plan.privilege_mask)
            for code, value in plan.shares.items():
                call.set_property(child, code, value)
            call.deposit(child, plan.memory_bytes // PAGE_BYTES)
            call.initialize(child)
            for index in range(plan.vps):
                call.create_vp(index, child)
            goes_on = give_back(call, child, plan)
            self.resources.budgets.add(child, plan.vps)
            if self._emulation is not None:
                budget, restored = self.resources.budgets.of(child), device_states(plan)
                self._emulation.attach(child, plan.name, devices, budget=budget, restored=restored)
            guest = GuestBus(self.resources, child, plan.name, plan.vps)
            guest.connect()
            self.guests[child] = guest
            for number, attachment in enumerate(plan.attachments):
                if plan.reaches_by_messages and isinstance(device := devices[attachment.name], CalledServer):
                    device.attach_client(child, plan.name, attachment.name, number)
                    continue
                instance = instance_guid(plan.name, attachment.name)
                guest.offer(instance, devices[attachment.name], attachment)
            call.set_program(child, plan.module, plan.name, plan.boot, plan.files)
            if goes_on:
                call.set_property(child, PartitionProperty.TIME_FREEZE, 0)
            call.start_vp(child)
        except (HypercallError, EmulationError, RestoreError, LookupError) as error:
            if child and child not in self.guests:  # nobody knows of it
                self.resources.budgets.remove(child)
                with contextlib.suppress(HypercallError):
                    call.finalize(child)
                    call.delete(child)
            raise BuildError(f"partition {plan.name}: {error}") from error
        finally:
            for fd in plan.files:
                os.close(fd)

    # -- taking over from a predecessor

    def adopt_child(
        self,
        saved: Mapping[str, Any],
        vp_count: int,
        devices: Mapping[str, OfferedDevice],
        attachments: Mapping[str, AttachmentPlan],
    ) -> list[tuple[GuestBus, int]]:
        """Go on with a child of a predecessor. Its open channels, each by bus and relid, wait to be served."""
        partition = saved["partition"]
        guest = GuestBus(self.resources, partition, saved["name"], vp_count)
        self.guests[partition] = guest
        if self.has_ended(partition):
            self.ended.add(partition)
            guest.bury(saved, devices, attachments)
            return []
        self.resources.budgets.add(partition, vp_count)
        if self._emulation is not None:
            budget = self.resources.budgets.of(partition)
            self._emulation.attach(partition, saved["name"], devices, budget=budget, taken_over=True)
        return [(guest, relid) for relid in guest.take_over(saved, devices, attachments)]

    def resume(self) -> None:
        for partition, guest in self.guests.items():
            if partition not in self.ended:
                guest.resume()
        if self._emulation is not None:
            self._emulation.resume()

    # -- running

    async def receive_messages(self) -> None:
        """Channel messages of all children, in the order of their arrival. The port says who sent each.

        A message leaves its slot only when what follows from it has been saved. Where a predecessor died in between,
        the first message is one that it had dealt with.
        """
        if self._emulation is not None:
            self._emulation.start()
        while True:
            for message_type, sender, payload in self._vp.messages(VMBUS_SINT):
                if not self.received.is_new(sender, payload):
                    continue
                if message_type == DRIVER_MESSAGE and sender in self.resources.listeners:
                    self.resources.listeners[sender](payload)
                    continue
                guest = self.guests.get(partition_of_message_port(sender) or 0)
                if guest is None or message_type != CHANNEL_MESSAGE:
                    self.resources.log("vmbus.stray_message", port=sender, type=message_type)
                    continue
                with self.resources.work.of(guest.partition):
                    guest.receive(payload)
            await trio.lowlevel.wait_readable(self._vp.line_fd)
            self._vp.acknowledge()

    async def watch_children(self) -> None:
        """A child that ended: close its channels. The others do not notice."""
        watch_fd = self._call.watch_children()
        while True:
            for look in self.resources.watchers:  # first: others wait for what serves them
                look()
            for child, guest in list(self.guests.items()):
                if child not in self.ended and self.has_ended(child):
                    self.ended.add(child)
                    guest.disconnect()
                    self.resources.budgets.remove(child)
                    self.resources.work.forget(child)
                    if self._emulation is not None:
                        self._emulation.detach(child)
            async with self._changed:
                self._changed.notify_all()
            await trio.lowlevel.wait_readable(watch_fd)
            os.eventfd_read(watch_fd)

    async def save_devices(self, child: int) -> list[tuple[str, bytes]]:
        """(kind, state) of each emulated device of a child that stands still. EmulationError: one is busy for long."""
        return [] if self._emulation is None else await self._emulation.save(child)

    def has_ended(self, child: int) -> bool:
        return self._call.get_state(child) in (PartitionState.FINALIZING, PartitionState.FINALIZED)

    async def wait_for_children(self) -> None:
        """Until each has ended, as `watch_children` sees it."""
        async with self._changed:
            while len(self.ended) < len(self.guests):
                await self._changed.wait()

    def quiesce(self) -> None:
        """Stop every channel's thread; no channel is closed for its guest, all stays as saved. Blocks."""
        stop_all(channel for guest in self.guests.values() for channel in guest.workers())
