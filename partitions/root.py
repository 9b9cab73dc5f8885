"""The root partition: boots the hypervisor, owns the devices, creates the children, serves their VMBus.

The platform executes this as the machine's first process. Its control plane is one trio task a concern; each open
channel has a thread of its own (`partitions.served_channel`).
"""

import argparse
import faulthandler
import os
import signal
import socket
import sys
from typing import Any, Final, NoReturn

import trio

from bus.synic import CHANNEL_MESSAGE, VMBUS_SINT
from partitions.guest_bus import GuestBus, RootResources
from partitions.machine_plan import DevicePlan, PartitionPlan, instance_guid
from partitions.storage.backends import BackendError
from partitions.storage.device import DiskDevice
from partitions.virtual_processor import VirtualProcessor
from partitions.vmbus_ports import partition_of_message_port
from runtime.abi import (
    GUEST_PRIVILEGES,
    PAGE_BYTES,
    HypercallError,
    HypervisorGone,
    PartitionState,
    Privilege,
)
from runtime.console import ConsoleWriter
from runtime.firmware import LinkMessage, PacketLink
from runtime.hypercalls import HypercallPort, adopt_socket
from runtime.lifeline import die_with_parent, name_process

_EXIT_HYPERVISOR_GONE: Final = 3


class BuildError(Exception):
    """The machine cannot be built as described. One line for the user."""


class Root:
    """The virtualization stack of one machine."""

    def __init__(self, hypercalls: HypercallPort, firmware: PacketLink, console: ConsoleWriter) -> None:
        self._hypercalls, self._firmware, self._console = hypercalls, firmware, console
        self._devices: dict[str, DiskDevice] = {}
        self._guests: dict[int, GuestBus] = {}
        self._machine: dict[str, Any] = {}
        self._plans: list[PartitionPlan] = []
        self._power_off = trio.Event()

    async def run(self) -> None:
        """From the first instruction to power-off."""
        await self._firmware.send("boot-hypervisor")
        await self._expect("booted")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._await_power_off)
            try:
                await self._receive_plan()
                birth = self._hypercalls.get_birth()
                vp = VirtualProcessor(birth.vps[0], self._hypercalls)
                vp.enable((VMBUS_SINT,))
                resources = RootResources(
                    self._hypercalls, birth.partition, vp.event_flags, nursery, self._console.emit
                )
                nursery.start_soon(self._receive_messages, vp)
                nursery.start_soon(self._watch_children, self._hypercalls.watch_children())
                for plan in self._plans:
                    self._create_child(resources, plan)
            except BuildError as error:
                await self._firmware.send("failed", {"reason": str(error)})
            else:
                await self._firmware.send("ready")
            nursery.start_soon(self._serve_firmware)
            await self._power_off.wait()
            for guest in self._guests.values():
                guest.disconnect()
            nursery.cancel_scope.cancel()
        for device in self._devices.values():
            device.close()

    # -- building

    async def _expect(self, verb: str) -> LinkMessage:
        message = await self._firmware.receive()
        if message is None or message.verb != verb:
            raise SystemExit(f"root: the firmware said {message!r:.80}, not {verb!r}")
        return message

    async def _receive_plan(self) -> None:
        plan = await self._expect("machine")
        self._machine = plan.values["machine"]
        while (message := await self._firmware.receive()) is not None and message.verb == "partition":
            self._plans.append(PartitionPlan.from_table(message.values, self._machine, message.fds))
        if message is None or message.verb != "create":
            raise SystemExit(f"root: the firmware said {message!r:.80}, not 'create'")
        for table in plan.values["devices"]:
            device = DevicePlan.from_table(table)
            try:
                self._devices[device.name] = DiskDevice(device)
            except BackendError as error:
                raise BuildError(f"device {device.name}: {error}") from error

    def _create_child(self, resources: RootResources, plan: PartitionPlan) -> None:
        """The parent's part of a child's life: create, pay, initialize, connect, load, start."""
        call = self._hypercalls
        try:
            child = call.create_partition()
            call.set_privileges(child, _privileges(plan))
            call.deposit(child, plan.memory_bytes // PAGE_BYTES)
            call.initialize(child)
            for index in range(plan.vps):
                call.create_vp(index, child)
            guest = GuestBus(resources, child, plan.name, plan.vps)
            for attachment in plan.attachments:
                device = self._devices[attachment.name]
                guest.offer(instance_guid(plan.name, attachment.name), device, attachment)
            self._guests[child] = guest
            call.set_program(child, plan.module, plan.name, plan.boot, plan.files)
            call.start_vp(child)
        except HypercallError as error:
            raise BuildError(f"partition {plan.name}: {error}") from error
        finally:
            for fd in plan.files:
                os.close(fd)

    # -- running

    async def _receive_messages(self, vp: VirtualProcessor) -> None:
        """Channel messages of all guests, in the order of their arrival. The port says who sent each."""
        while True:
            await trio.lowlevel.wait_readable(vp.line_fd)
            vp.acknowledge()
            for message_type, sender, payload in vp.take_messages(VMBUS_SINT):
                guest = self._guests.get(partition_of_message_port(sender) or 0)
                if guest is None or message_type != CHANNEL_MESSAGE:
                    self._console.emit("vmbus.stray_message", port=sender, type=message_type)
                    continue
                guest.receive(payload)

    async def _watch_children(self, watch_fd: int) -> None:
        """A child that ended: close its channels. The others do not notice."""
        ended: set[int] = set()
        while True:
            await trio.lowlevel.wait_readable(watch_fd)
            os.eventfd_read(watch_fd)
            for child, guest in self._guests.items():
                if child in ended:
                    continue
                if self._hypercalls.get_state(child) in (PartitionState.FINALIZING, PartitionState.FINALIZED):
                    ended.add(child)
                    guest.disconnect()

    async def _await_power_off(self) -> None:
        """SIGTERM, which the broker sends when every child has ended."""
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                self._power_off.set()

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
                    await self._firmware.send(
                        "inspected", {"request": message.values.get("request"), "devices": rows}
                    )
                case verb:
                    self._console.emit("root.unknown_request", verb=verb)


def _privileges(plan: PartitionPlan) -> Privilege:
    if plan.privileges is None:
        return GUEST_PRIVILEGES
    mask = Privilege(0)
    for name in plan.privileges:
        mask |= Privilege[name.upper()]
    return mask


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
    console = ConsoleWriter(arguments.console_fd)
    sys.stdout = console.stream("stdout")
    root = Root(
        adopt_socket(arguments.hypercall_fd), PacketLink(socket.socket(fileno=arguments.firmware_fd)), console
    )
    status = 0
    try:
        trio.run(root.run)
    except* HypervisorGone:
        status = _EXIT_HYPERVISOR_GONE
    sys.stderr.flush()
    os._exit(status)  # with the hypercall socket open to the last: closing it says that we are lost


if __name__ == "__main__":
    main()
