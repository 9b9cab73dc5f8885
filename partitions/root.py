"""The root partition: boots the hypervisor, owns the devices, creates the children, serves their VMBus.

The platform executes this as the machine's first process; a successor, after that one died, is forked from the
zygote. The control plane is one trio task a concern; each open channel has a thread of its own.
"""

import argparse
import contextlib
import faulthandler
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

import trio

from bus.memory import MemorySlot
from bus.seam import Step
from bus.synic import CHANNEL_MESSAGE, VMBUS_SINT
from partitions.guest_bus import GuestBus, RootResources
from partitions.machine_plan import AttachmentPlan, DevicePlan, PartitionPlan, instance_guid
from partitions.saved_state import SLOT_PAGES, SavedState, StateTooLarge, encoded_bytes
from partitions.storage.backends import BackendError
from partitions.storage.device import DiskDevice
from partitions.virtual_processor import VirtualProcessor
from partitions.vmbus_ports import partition_of_message_port
from partitions.watchdog import send_heartbeats, watch_channels
from runtime.abi import (
    EXIT_RETIRED,
    PAGE_BYTES,
    HypercallError,
    HypervisorGone,
    PartitionState,
)
from runtime.console import ConsoleWriter
from runtime.firmware import LinkMessage, PacketLink
from runtime.hypercalls import Birth, HypercallPort, MappedSlot, adopt_socket
from runtime.lifeline import die_with_parent, name_process

SAVED_STATE_GPFN: Final = 0x1000
MEMORY_DISKS_GPFN: Final = 0x1_0000  # one behind the other
EXIT_HYPERVISOR_GONE: Final = 3


ROOT: Final = "root"


class BuildError(Exception):
    """The machine cannot be built as described. One line for the user."""


class Root:
    """The virtualization stack of one machine, in one process of partition 1."""

    def __init__(self, hypercalls: HypercallPort, firmware: PacketLink, console: ConsoleWriter) -> None:
        self._hypercalls, self._firmware, self._console = hypercalls, firmware, console
        self._machine: Mapping[str, Any] = {}  # the [machine] table
        self._device_tables: list[Mapping[str, Any]] = []
        self._cpus: list[int] = []  # host CPUs to run on; empty: any
        self._devices: dict[str, DiskDevice] = {}
        self._attachments: dict[str, dict[str, AttachmentPlan]] = {}  # by partition, then by device
        self._partition_tables: dict[str, Mapping[str, Any]] = {}
        self._guests: dict[int, GuestBus] = {}
        self._ended: set[int] = set()  # guests whose process is gone
        self._saved: SavedState | None = None
        self._last_message: list[Any] = []  # port and payload: what the newest saved state came from
        self._leave = trio.Event()
        self._retiring = False
        self._resetting = False  # a guest whose state was too large

    async def boot(self) -> int:
        """The machine's first root: from the first instruction to power-off. Returns the exit code."""
        await self._firmware.send("boot-hypervisor")
        await self._expect("booted")
        async with trio.open_nursery() as nursery:
            try:
                plans = await self._receive_plan()
                birth = self._hypercalls.get_birth()
                vp = VirtualProcessor(birth.vps[0], self._hypercalls)
                vp.enable((VMBUS_SINT,))
                mapped = self._hypercalls.map_gpa_pages(SAVED_STATE_GPFN, SLOT_PAGES)
                self._saved = SavedState(MemorySlot.from_fd(mapped.fd, mapped.gpfn, mapped.pages).memory)
                self._saved.format()
                resources = self._resources(birth, vp, nursery)
                self._start_services(nursery, vp)
                for plan in plans:
                    self._create_child(resources, plan)
            except BuildError as error:
                await self._firmware.send("failed", {"reason": str(error)})
            else:
                self._save()
                nursery.start_soon(send_heartbeats, self._hypercalls, self._machine)
                await self._firmware.send("ready")
            await self._until_left(nursery)
        return self._end()

    async def take_over(self, birth: Birth) -> int:
        """A successor: become what the saved state says, finish what it left, go on. Returns the exit code."""
        born_ns = time.monotonic_ns()
        async with trio.open_nursery() as nursery:
            vp = VirtualProcessor(birth.vps[0], self._hypercalls)
            self._hypercalls.end_of_message(
                vp.index
            )  # our predecessor may have emptied a slot and not said so
            (mapped,) = self._hypercalls.claim_gpa_pages(SAVED_STATE_GPFN, SLOT_PAGES)
            self._saved = SavedState(MemorySlot.from_fd(mapped.fd, mapped.gpfn, mapped.pages).memory)
            state = self._saved.load()
            struck = self._saved.seam.take_struck()
            self._adopt_tables(state)
            self._open_devices(self._hypercalls.claim_gpa_pages)
            resources = self._resources(birth, vp, nursery)
            channels: list[tuple[GuestBus, int]] = []
            for saved in state["guests"]:
                name, partition = saved["name"], saved["partition"]
                guest = GuestBus(resources, partition, name, self._partition_tables[name]["vps"])
                self._guests[partition] = guest
                if self._has_ended(partition):
                    self._ended.add(partition)
                    guest.bury(saved)
                    continue
                relids = guest.take_over(saved, self._devices, self._attachments[name])
                channels += [(guest, relid) for relid in relids]
            restored_ns = time.monotonic_ns()
            # Who was in the middle of a batch goes first, on the device alone: docs/recovery.md says why.
            for guest, relid in sorted(channels, key=lambda one: not one[0].was_executing(one[1])):
                guest.replay(relid)
            replayed_ns = time.monotonic_ns()
            for guest, relid in channels:
                guest.serve(relid)
            for partition, guest in self._guests.items():
                if partition not in self._ended:
                    guest.resume()
            self._start_services(nursery, vp)
            nursery.start_soon(send_heartbeats, self._hypercalls, self._machine)
            await self._firmware.send(
                "restored",
                {
                    "born_ns": born_ns,
                    "restored_ns": restored_ns,
                    "replayed_ns": replayed_ns,
                    "serving_ns": time.monotonic_ns(),
                    "channels": len(channels),
                    "died_at": struck.text if struck is not None else None,
                },
            )
            await self._until_left(nursery)
        return self._end()

    def _resources(self, birth: Birth, vp: VirtualProcessor, nursery: trio.Nursery) -> RootResources:
        assert self._saved is not None
        return RootResources(
            self._hypercalls,
            birth.partition,
            vp.event_flags,
            nursery,
            self._console.emit,
            self._save,
            self._saved.record,
            self._saved.seam,
        )

    def _start_services(self, nursery: trio.Nursery, vp: VirtualProcessor) -> None:
        for service in (
            self._await_power_off,
            self._serve_firmware,
        ):
            nursery.start_soon(service)
        nursery.start_soon(watch_channels, self._guests, self._machine, self._console.emit)
        nursery.start_soon(self._receive_messages, vp)
        nursery.start_soon(self._watch_children, self._hypercalls.watch_children())

    async def _until_left(self, nursery: trio.Nursery) -> None:
        await self._leave.wait()
        self._hypercalls.heartbeat(0)  # from here on we may be busy for long: flushing
        nursery.cancel_scope.cancel()  # no message is taken any more, so no channel opens or closes behind our back

    def _end(self) -> int:
        for guest in self._guests.values():
            guest.quiesce()
        if self._retiring:
            return EXIT_RETIRED  # flushing takes long and serves nobody: what was written is in the kernel's cache
        for device in self._devices.values():
            device.close()
        return 0

    # -- building

    async def _expect(self, verb: str) -> LinkMessage:
        message = await self._firmware.receive()
        if message is None or message.verb != verb:
            raise SystemExit(f"root: the firmware said {message!r:.80}, not {verb!r}")
        return message

    async def _receive_plan(self) -> list[PartitionPlan]:
        plan = await self._expect("machine")
        self._machine, self._device_tables = plan.values["machine"], plan.values["devices"]
        self._pin(plan.values["cpus"])
        plans: list[PartitionPlan] = []
        while (message := await self._firmware.receive()) is not None and message.verb == "partition":
            plans.append(self._adopt_partition(message.values, message.fds))
        if message is None or message.verb != "create":
            raise SystemExit(f"root: the firmware said {message!r:.80}, not 'create'")
        self._open_devices(lambda gpfn, pages: [self._hypercalls.map_gpa_pages(gpfn, pages)])
        return plans

    def _pin(self, cpus: list[int]) -> None:
        """Before any channel's thread starts: threads inherit it."""
        self._cpus = list(cpus)
        if self._cpus:
            os.sched_setaffinity(0, self._cpus)

    def _adopt_partition(self, table: Mapping[str, Any], fds: list[int]) -> PartitionPlan:
        plan = PartitionPlan.from_table(table, self._machine, fds)
        self._partition_tables[plan.name] = table
        self._attachments[plan.name] = {one.name: one for one in plan.attachments}
        return plan

    def _open_devices(self, get_pages: Callable[[int, int], list[MappedSlot]]) -> None:
        """Raises BuildError. `get_pages(gpfn, pages)`: new ones for a memory disk, or those of a predecessor."""
        gpfn = MEMORY_DISKS_GPFN
        for table in self._device_tables:
            plan = DevicePlan.from_table(table)
            try:
                memory_fd = None
                if plan.memory_pages:
                    memory_fd = get_pages(gpfn, plan.memory_pages)[0].fd
                    gpfn += plan.memory_pages
                self._devices[plan.name] = DiskDevice(plan, memory_fd)
            except (BackendError, HypercallError) as error:
                raise BuildError(f"device {plan.name}: {error}") from error

    def _create_child(self, resources: RootResources, plan: PartitionPlan) -> None:
        """The parent's part of a child's life: create, pay, initialize, connect, load, start."""
        call = self._hypercalls
        if plan.parent != ROOT:
            raise BuildError(
                f"partition {plan.name}: parent {plan.parent!r}; only 'root' creates partitions yet"
            )
        try:
            child = call.create_partition()
            call.set_privileges(child, plan.privilege_mask)
            call.deposit(child, plan.memory_bytes // PAGE_BYTES)
            call.initialize(child)
            for index in range(plan.vps):
                call.create_vp(index, child)
            guest = GuestBus(resources, child, plan.name, plan.vps)
            guest.connect()
            self._guests[child] = guest
            for attachment in plan.attachments:
                device = self._devices[attachment.name]
                guest.offer(instance_guid(plan.name, attachment.name), device, attachment)
            call.set_program(child, plan.module, plan.name, plan.boot, plan.files)
            call.start_vp(child)
        except HypercallError as error:
            raise BuildError(f"partition {plan.name}: {error}") from error
        finally:
            for fd in plan.files:
                os.close(fd)

    # -- saved state

    def _save(self) -> None:
        """Before a decision is carried out. Too much to save: the guest that takes most of it is reset."""
        try:
            self._save_all()
        except StateTooLarge:
            if (
                self._resetting
            ):  # what is being let go of is still there; what was saved before counts until then
                return
            self._resetting = True
            by_size = sorted(self._guests.values(), key=lambda guest: -encoded_bytes(guest.to_state()))
            for guest in by_size:
                self._console.emit("vmbus.guest_state_too_large", guest=guest.name)
                guest.disconnect()
                with contextlib.suppress(StateTooLarge):
                    self._save_all()
                    break
            self._resetting = False

    def _save_all(self) -> None:
        assert self._saved is not None
        self._saved.save(
            {
                "machine": self._machine,
                "devices": self._device_tables,
                "cpus": self._cpus,
                "partitions": list(self._partition_tables.values()),
                "guests": [guest.to_state() for guest in self._guests.values()],
                "ended": sorted(self._ended),
                "last_message": self._last_message,
            }
        )

    def _adopt_tables(self, state: Mapping[str, Any]) -> None:
        self._machine, self._device_tables = state["machine"], state["devices"]
        self._pin(state["cpus"])
        for table in state["partitions"]:
            self._adopt_partition(table, [])
        self._ended = set(state["ended"])
        self._last_message = state["last_message"]

    # -- running

    async def _receive_messages(self, vp: VirtualProcessor) -> None:
        """Channel messages of all guests, in the order of their arrival. The port says who sent each.

        A message leaves its slot only when what follows from it has been saved. Where a predecessor died in between,
        the first message is one that it had dealt with.
        """
        done, self._last_message = self._last_message, []
        while True:
            for message_type, sender, payload in vp.messages(VMBUS_SINT):
                if done == [sender, payload]:
                    done = []
                    continue
                done, self._last_message = [], [sender, payload]
                guest = self._guests.get(partition_of_message_port(sender) or 0)
                if guest is None or message_type != CHANNEL_MESSAGE:
                    self._console.emit("vmbus.stray_message", port=sender, type=message_type)
                    continue
                guest.receive(payload)
            await trio.lowlevel.wait_readable(vp.line_fd)
            vp.acknowledge()

    async def _watch_children(self, watch_fd: int) -> None:
        """A child that ended: close its channels. The others do not notice."""
        while True:
            for child, guest in self._guests.items():
                if child in self._ended:
                    continue
                if self._has_ended(child):
                    self._ended.add(child)
                    guest.disconnect()
            await trio.lowlevel.wait_readable(watch_fd)
            os.eventfd_read(watch_fd)

    def _has_ended(self, child: int) -> bool:
        return self._hypercalls.get_state(child) in (PartitionState.FINALIZING, PartitionState.FINALIZED)

    def _arm_seam(self, values: Mapping[str, Any]) -> None:
        assert self._saved is not None
        try:
            self._saved.seam.arm(Step.named(values["step"]), values["passes"], values["deaths"])
        except (KeyError, ValueError, TypeError) as error:
            self._console.emit("root.seam_refused", error=str(error)[:200])

    async def _await_power_off(self) -> None:
        """SIGTERM, which the broker sends when every child has ended."""
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                self._leave.set()

    async def _serve_firmware(self) -> None:
        """Until the platform is gone, which kills us anyway."""
        while (message := await self._firmware.receive()) is not None:
            match message.verb:
                case "inspect":
                    name = message.values.get("name")
                    rows = [
                        row
                        for guest in self._guests.values()
                        if guest.name == name
                        for row in guest.devices()
                    ]
                    answer = {"request": message.values.get("request"), "devices": rows}
                    await self._firmware.send("inspected", answer)
                case "stick":  # a fault on purpose: heartbeats go on, no channel moves
                    for device in self._devices.values():
                        device.stick()
                case "seam":  # a fault on purpose, later: at a named step
                    self._arm_seam(message.values)
                case "retire":
                    self._retiring = True
                    self._leave.set()
                case verb:
                    self._console.emit("root.unknown_request", verb=verb)


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="partitions.root", description="The root partition of a machine.")
    parser.add_argument("--hypercall-fd", type=int, required=True)
    parser.add_argument("--firmware-fd", type=int, required=True)
    parser.add_argument("--console-fd", type=int, required=True)
    arguments = parser.parse_args()
    die_with_parent(os.getppid())
    faulthandler.enable()
    name_process("pv-root")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for fd in (arguments.firmware_fd, arguments.console_fd):
        os.set_inheritable(fd, False)
    console = ConsoleWriter(arguments.console_fd, patience_ms=0)
    sys.stdout = console.stream("stdout")
    firmware = PacketLink(socket.socket(fileno=arguments.firmware_fd))
    root = Root(adopt_socket(arguments.hypercall_fd), firmware, console)
    status = EXIT_HYPERVISOR_GONE
    try:
        status = trio.run(root.boot)
    except* HypervisorGone:
        pass
    sys.stderr.flush()
    os._exit(status)  # with the hypercall socket open to the last: closing it says that we are lost


if __name__ == "__main__":
    main()
