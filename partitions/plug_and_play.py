"""Devices that come and go while the machine runs: what the root does when the platform says so.

What was added stands in the root's tables from then on, so a successor has it, and so does a machine that reboots.
An order may come twice: the platform repeats what a root that died had not answered. What is done already is not done
again, and answered as the first time.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio

from bus.memory import MemorySlot
from partitions.drivers.device_classes import DEVICE_CLASSES, class_of
from partitions.drivers.partition import DriverPartition
from partitions.drivers.retirement import dismiss, retire
from partitions.emulated.plan import EmulationError
from partitions.machine_plan import AttachmentPlan, DevicePlan, PartitionPlan, instance_guid
from partitions.placement import DEFAULT_ARCHITECTURE, DEVICE_MEMORY_GPFN, Devices, fix_device_memory
from partitions.saved_program import SAVED_GPFN, ProgramStateError, read_state
from partitions.sdk.loading import DriverLoadError
from partitions.stack.guest_bus import GuestBus
from partitions.stack.offered_device import OfferedDevice
from partitions.stack.virtualization_stack import BuildError, VirtualizationStack
from partitions.storage.backends import BackendError
from partitions.storage.given_backing import claim_given
from runtime.abi import HypercallError
from runtime.machine.firmware import PacketLink

REMOVE_GRACE_MS: Final = (
    1_000  # for requests under way to be answered; then the offer is withdrawn all the same
)
SAVE_MS_MAX: Final = 5_000  # for its disks to answer a partition that is being saved
REMOVE_MS_MAX: Final = 5_000  # for a server to let go; one that does not is left to do so by itself
FETCH_MS_MAX: Final = 5_000  # for the platform to open what comes back
PLUGGABLE: Final = ("microkernelized", "disaggregated")  # architectures
_LOOK_S: Final = 0.005
_REASON_CHARACTERS_MAX: Final = 400


class PlugRefused(Exception):
    """It can't be done; nothing has changed. One line for the user."""


@dataclass(frozen=True, slots=True)
class RootTables:
    """What a root was told to build. Changed in place: it is what a successor gets."""

    machine: Mapping[str, Any]
    devices: list[Mapping[str, Any]]  # [[root.device]]
    partitions: dict[str, Mapping[str, Any]]  # [[partition]], of the root's own
    attachments: dict[str, dict[str, AttachmentPlan]]  # by partition, then by device


class PlugAndPlay:
    """Orders, one at a time, in the root's own task."""

    def __init__(
        self,
        firmware: PacketLink,
        nursery: trio.Nursery,
        tables: RootTables,
        devices: Devices,
        stack: VirtualizationStack,
        log: Callable[..., None],
    ) -> None:
        self._firmware, self._nursery, self._tables = firmware, nursery, tables
        self._devices, self._stack, self._log = devices, stack, log
        self._one_at_a_time = trio.Lock()
        self._returning: set[str] = set()  # assigned devices whose partitions have ended
        stack.resources.backings.ask = self._ask_for
        stack.resources.watchers.append(self._look)

    def take(self, values: Mapping[str, Any], fds: Sequence[int]) -> None:
        """An order of the platform's, with what it opened for it; the answer goes out when it is carried out."""
        self._nursery.start_soon(self._answer, values, list(fds))

    async def _answer(self, values: Mapping[str, Any], fds: list[int]) -> None:
        answer: dict[str, object] = {"request": values.get("request")}
        try:
            async with self._one_at_a_time:
                if values["operation"] == "state":
                    answer |= await self._copy_state(values["name"], fds[0])
                elif values["operation"] == "create":
                    self._create(values["table"], fds)
                elif values["operation"] == "add":
                    answer |= self._add(values["name"], values["device"], values["attachment"], fds)
                else:
                    answer |= await self._remove(values["name"], values["device"], bool(values["again"]))
        except PlugRefused as refused:
            verb, answer["reason"] = "error", str(refused)[:_REASON_CHARACTERS_MAX]
        except (KeyError, TypeError, ValueError) as error:
            verb, answer["reason"] = "error", f"an order that is none: {error!r}"[:_REASON_CHARACTERS_MAX]
        else:
            verb = "answered"
        finally:
            for fd in fds:
                os.close(fd)
        await self._firmware.send(verb, answer)

    # -- saving

    async def _copy_state(self, name: str, into_fd: int) -> dict[str, object]:
        """What the program has kept for its successor, out of its pages into a file: how many bytes; and its emulated
        devices, each by kind and state."""
        running = [(key, one) for key, one in self._stack.guests.items() if key not in self._stack.ended]
        partition = next((key for key, one in running if one.name == name), 0)
        call, ours = self._stack.resources.hypercalls, SAVED_GPFN
        try:
            mapped = call.map_partition_pages(partition, SAVED_GPFN, 1, ours)
        except HypercallError as error:
            raise PlugRefused(
                f"{name} keeps no state: its program has to say partition.on_save(...)"
            ) from error
        slots = [MemorySlot.from_fd(one.fd, one.gpfn, one.pages) for one in mapped]
        try:
            state = read_state(slots[0].memory)
            os.pwrite(into_fd, state, 0)
        except (ProgramStateError, OSError) as error:
            raise PlugRefused(f"{name}: {error}") from error
        finally:
            for slot in slots:
                slot.close()
            call.unmap_gpa_pages(ours, sum(slot.pages for slot in slots))
        await self._wait_for_disks(name, self._stack.guests[partition])
        try:
            devices = await self._stack.save_devices(partition)
        except EmulationError as error:
            raise PlugRefused(str(error)) from error
        return {"state_bytes": len(state), "devices": [list(one) for one in devices]}

    async def _wait_for_disks(self, name: str, guest: GuestBus) -> None:
        """It stands still, but what it has asked of its disks before goes on: it is done, and answered, before they are
        looked at. A driver partition's requests nobody here can see; a disk that changes later is not gone on with."""
        kinds = {str(table["name"]): table["kind"] for table in self._tables.devices}
        disks = [each for each in self._tables.attachments.get(name, ()) if kinds.get(each) == "disk"]
        began = trio.current_time()
        while busy := [each for each in disks if guest.is_busy_with(each)]:
            if trio.current_time() - began > SAVE_MS_MAX / 1000:
                raise PlugRefused(f"{name}: its disk {busy[0]} has not answered for {SAVE_MS_MAX} ms")
            await trio.sleep(_LOOK_S)

    def _create(self, table: Mapping[str, Any], fds: list[int]) -> None:
        """A partition that has ended begins again, with what its program is to know in `fds`."""
        name = str(table["name"])
        if any(one.name == name and key not in self._stack.ended for key, one in self._stack.guests.items()):
            raise PlugRefused(f"{name} runs")
        plan = PartitionPlan.from_table(table, self._tables.machine, list(fds))
        fds.clear()  # `create_child` closes them
        self._set(name, table)
        try:
            self._stack.create_child(plan, self._devices)
        except BuildError as error:
            raise PlugRefused(str(error)) from error
        self._stack.resources.save()

    # -- files that the platform opens again

    def _ask_for(self, device: str) -> None:
        self._nursery.start_soon(self._firmware.send, "reopen", {"device": device})

    def reopened(self, values: Mapping[str, Any], fds: Sequence[int]) -> None:
        reason = str(values.get("reason"))
        descriptor = fds[0] if fds else None
        self._stack.resources.backings.arrived(str(values.get("device")), descriptor, reason)

    # -- adding

    def _add(
        self, name: str, table: Mapping[str, Any], attachment: Mapping[str, Any], fds: list[int]
    ) -> dict[str, object]:
        """`fds`: of the backing file; what is taken out of it is ours no more."""
        guest, device = self._guest(name), str(table["name"])
        if device in self._tables.attachments[name]:
            return {"device": device}  # said before, and done
        is_new = device not in self._devices
        if is_new:
            self._devices[device] = self._open(table, fds)
            self._tables.devices.append(dict(table))
        own = self._tables.partitions[name]
        changed = {**own, "device": [*own.get("device", ()), dict(attachment)]}
        self._set(name, changed)
        plan = self._tables.attachments[name][device]
        try:  # saves, before it tells the guest
            guest.offer(instance_guid(name, device), self._devices[device], plan)
        except HypercallError as error:
            raise PlugRefused(f"{device} cannot be offered to {name}: {error}") from error
        self._log("device.added", guest=name, device=device, device_kind=str(table["kind"]))
        return {"device": device}

    def _set(self, name: str, table: Mapping[str, Any]) -> None:
        plan = PartitionPlan.from_table(table, self._tables.machine, [])
        self._tables.partitions[name] = table
        self._tables.attachments[name].clear()
        self._tables.attachments[name].update({one.name: one for one in plan.attachments})

    def _guest(self, name: str) -> GuestBus:
        architecture = self._tables.machine.get("architecture", DEFAULT_ARCHITECTURE)
        if architecture not in PLUGGABLE:
            raise PlugRefused(
                f"devices come and go with architecture = {' or '.join(PLUGGABLE)}; this is {architecture}"
            )
        for partition, guest in self._stack.guests.items():
            if guest.name == name and partition not in self._stack.ended:
                return guest
        raise PlugRefused(f"no partition {name[:80]!r} of the root's own runs")

    def _open(self, table: Mapping[str, Any], fds: list[int]) -> OfferedDevice:
        plan = DevicePlan.from_table(table)
        if plan.kind not in DEVICE_CLASSES:
            raise PlugRefused(f"a {plan.kind} is there from the start, or not at all")
        fix_device_memory(self._tables.devices)
        try:
            if fds and plan.backend != "tap":  # an interface is one descriptor's as it is
                claim_given(fds[0], plan)
            if self._tables.machine.get("architecture", DEFAULT_ARCHITECTURE) == "microkernelized":
                return self._open_here(plan, table, fds)
            return self._open_apart(table, fds)
        except (BackendError, DriverLoadError, HypercallError) as error:
            raise PlugRefused(f"device {plan.name}: {error}") from error

    def _open_apart(self, table: Mapping[str, Any], fds: list[int]) -> DriverPartition:
        """In a driver partition of its own."""
        driver = DriverPartition(self._stack.resources, table, self._tables.machine)
        if fds:
            self._stack.resources.backings.add(driver.name, fds.pop())
        try:
            driver.create()
        except BaseException:
            self._stack.resources.backings.forget(driver.name)
            if driver.partition:
                retire(driver)
            raise
        return driver

    def _open_here(self, plan: DevicePlan, table: Mapping[str, Any], fds: list[int]) -> OfferedDevice:
        memory_fd, call = None, self._stack.resources.hypercalls
        if plan.memory_pages:
            gpfn = _free_gpfn(self._tables.devices)
            memory_fd = call.map_gpa_pages(gpfn, plan.memory_pages).fd
            assert isinstance(table, dict)
            table["gpfn"] = gpfn
        try:
            found = class_of(plan.kind)
            backing_fd = fds.pop() if fds else found.open_backing(plan, self._log)
            return found.open(plan, memory_fd, backing_fd)
        except BaseException:
            if plan.memory_pages:
                call.unmap_gpa_pages(gpfn, plan.memory_pages)
            raise

    # -- removing

    async def _remove(self, name: str, device: str, again: bool) -> dict[str, object]:
        """Of one partition; and altogether, if no other has it."""
        guest = self._guest(name)
        if device in self._tables.attachments[name]:
            began = trio.current_time()
            while guest.is_busy_with(device) and trio.current_time() - began < REMOVE_GRACE_MS / 1000:
                await trio.sleep(_LOOK_S)
            forced = guest.is_busy_with(device)
            own = self._tables.partitions[name]
            left = [one for one in own.get("device", ()) if one["name"] != device]
            self._set(name, {**own, "device": left})
            guest.remove(device)
        elif not again:
            there_are = ", ".join(self._tables.attachments[name]) or "none"
            raise PlugRefused(f"{name} has no device {device[:80]!r}; it has {there_are}")
        else:
            forced = False
        let_go = True
        if device in self._devices and not self._is_used(device):
            with trio.move_on_after(REMOVE_MS_MAX / 1000) as patience:
                while any(each.is_open(device) for each in self._stack.guests.values()):
                    await trio.sleep(_LOOK_S)
            if let_go := not patience.cancelled_caught:
                await self._close(device)
        self._log("device.removed", guest=name, device=device, forced=forced, let_go=let_go)
        return {"device": device, "forced": forced, "let_go": let_go}

    def _is_used(self, device: str) -> bool:
        return any(device in attached for attached in self._tables.attachments.values()) or any(
            each.get("device") == device
            for table in self._tables.partitions.values()
            for each in table.get("emulated", ())
        )

    async def _close(self, name: str) -> None:
        """It is nobody's any more."""
        fix_device_memory(self._tables.devices)
        device = self._devices[name]
        if isinstance(device, DriverPartition):  # as long as it takes, the tables say that it is there
            await dismiss(device)
        del self._devices[name]
        (table,) = (one for one in self._tables.devices if one["name"] == name)
        self._tables.devices.remove(table)
        for guest in self._stack.guests.values():
            guest.forget(name)
        if isinstance(device, DriverPartition):
            retire(device)
        self._stack.resources.save()
        try:
            await trio.to_thread.run_sync(device.close)
        except BackendError as error:
            self._log("device.not_flushed", device=name, error=str(error)[:200])
        if "gpfn" in table:
            pages = DevicePlan.from_table(table).memory_pages
            self._stack.resources.hypercalls.unmap_gpa_pages(table["gpfn"], pages)

    # -- devices that were a partition's own

    def _look(self) -> None:
        """Something about our children has changed: has one ended that had a device to itself?"""
        for table in self._tables.devices:
            name, owner = table["name"], table.get("assigned_to")
            if owner is not None and name not in self._returning and self._is_over(owner):
                self._returning.add(name)
                self._nursery.start_soon(self._take_back, table)

    async def _fetch(self, device: str) -> int:
        """An interface, by the platform: its last holder may have been the only one that could. PlugRefused."""
        backings, answered = self._stack.resources.backings, trio.Event()
        failures: list[str | None] = []

        def take(failure: str | None) -> None:
            failures.append(failure)
            answered.set()

        backings.fetch(device, take)
        with trio.move_on_after(FETCH_MS_MAX / 1000):
            await answered.wait()
        if (descriptor := backings.take(device)) is None:
            backings.forget(device)
            raise PlugRefused(str(failures[0]) if failures else "the platform does not say anything")
        return descriptor

    def _is_over(self, partition_name: str) -> bool:
        """Its last process is gone, and all descriptors with it."""
        call = self._stack.resources.hypercalls
        ids = [partition for partition, guest in self._stack.guests.items() if guest.name == partition_name]
        return bool(ids) and call.get_exit_status(ids[-1]) is not None

    async def _take_back(self, table: Mapping[str, Any]) -> None:
        async with self._one_at_a_time:
            name, owner = table["name"], table["assigned_to"]
            ours = {key: value for key, value in table.items() if key != "assigned_to"}
            fds: list[int] = []
            try:
                if table.get("backend") == "tap":
                    fds.append(await self._fetch(name))
                self._devices[name] = self._open(ours, fds)
            except PlugRefused as refused:
                self._log("device.not_returned", device=name, guest=owner, reason=str(refused)[:200])
                return
            finally:
                for fd in fds:  # that nobody has taken
                    os.close(fd)
            place = [one["name"] for one in self._tables.devices].index(name)
            self._tables.devices[place] = ours
            self._stack.resources.save()
            self._log("device.returned", device=name, guest=owner)


def _free_gpfn(tables: Sequence[Mapping[str, Any]]) -> int:
    """Behind all that there are. `fix_device_memory` has been there."""
    ends = [one["gpfn"] + DevicePlan.from_table(one).memory_pages for one in tables if "gpfn" in one]
    return max(ends, default=DEVICE_MEMORY_GPFN)
