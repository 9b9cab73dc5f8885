"""The root partition: boots the hypervisor, owns the devices, creates the children, serves their VMBus.

The platform executes this as the machine's first process; a successor, after that one died, is forked from the
zygote. The control plane is one trio task a concern; each open channel has a thread of its own.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import trio

from bus.memory import MemorySlot
from bus.synic import VMBUS_SINT
from partitions import root_walls, trace_files
from partitions.assignment import hand_over, kept_of
from partitions.descendants import Described, children_of
from partitions.faults.root_agent import FAULT_VERBS, RootAgent
from partitions.hardware.watch import deliver_to
from partitions.inspection import device_rows
from partitions.machine_plan import AttachmentPlan, PartitionPlan
from partitions.operator_services import OperatorServices
from partitions.placement import DeviceError, Devices, drivers_among, place_of
from partitions.plug_and_play import PlugAndPlay, RootTables
from partitions.root_orders import arm_seam, get_stuck
from partitions.stack.guest_bus import GuestBus
from partitions.stack.saved_state import SLOT_PAGES, SavedState, StateTooLarge, encoded_bytes
from partitions.stack.served_channel import replay_in_order
from partitions.stack.stack_resources import RootResources
from partitions.stack.virtualization_stack import BuildError, VirtualizationStack
from partitions.stack.watchdog import send_heartbeats, watch_channels
from partitions.vp.processor import VirtualProcessor
from runtime.abi import EXIT_RETIRED, HvStatus, HypercallError
from runtime.hypercalls.caller import Birth, HypercallPort, MappedSlot
from runtime.machine.console import ConsoleWriter
from runtime.machine.firmware import LinkMessage, PacketLink

SAVED_STATE_GPFN: Final = 0x1000


ROOT: Final = "root"


class Root:
    """One machine's devices and its virtualization stack, in one process of partition 1."""

    def __init__(self, hypercalls: HypercallPort, firmware: PacketLink, console: ConsoleWriter) -> None:
        self._hypercalls, self._firmware, self._console = hypercalls, firmware, console
        self._machine: Mapping[str, Any] = {}  # the [machine] table
        self._device_tables: list[Mapping[str, Any]] = []
        self._cpus: list[int] = []  # host CPUs to run on; empty: any
        self._devices: Devices = {}
        self._attachments: dict[str, dict[str, AttachmentPlan]] = {}  # by partition, then by device
        self._partition_tables: dict[str, Mapping[str, Any]] = {}
        self._stack: VirtualizationStack | None = None
        self._saved: SavedState | None = None
        self._leave = trio.Event()
        self._retiring = False
        self._resetting = False  # a guest whose state was too large
        self._faults = RootAgent()
        self._operator: OperatorServices | None = None
        self._plug: PlugAndPlay | None = None

    async def boot(self) -> int:
        """The machine's first root: from the first instruction to power-off. Returns the exit code."""
        await self._firmware.send("boot-hypervisor")
        await self._expect("booted")
        return await self._build()

    async def succeed(self, birth: Birth) -> int:
        """A later process of partition 1. After a reboot there is nothing to take over: nothing was saved."""
        try:
            (mapped,) = self._hypercalls.claim_gpa_pages(SAVED_STATE_GPFN, SLOT_PAGES)
        except HypercallError as error:
            if error.status is not HvStatus.NOT_FOUND:
                raise
            await self._firmware.send("describe")
            return await self._build(birth)
        return await self.take_over(birth, mapped)

    async def _build(self, birth: Birth | None = None) -> int:
        """From the platform's description of the machine to power-off. `birth`: ours, if we have asked for it."""
        async with trio.open_nursery() as nursery:
            try:
                plans = await self._receive_plan()
                birth = birth or self._hypercalls.get_birth()
                vp = VirtualProcessor(birth.vps[0], self._hypercalls)
                vp.enable((VMBUS_SINT,))
                mapped = self._hypercalls.map_gpa_pages(SAVED_STATE_GPFN, SLOT_PAGES)
                self._saved = SavedState(MemorySlot.from_fd(mapped.fd, mapped.gpfn, mapped.pages).memory)
                self._saved.format()
                stack = self._make_stack(birth, vp, nursery, self._new_pages)
                place = place_of(self._machine)
                kept = kept_of(self._device_tables)
                self._devices = place.create(stack.resources, self._machine, kept)
                self._add_services(stack)
                self._bind_links(stack)
                self._start_services(nursery, stack)
                for plan in plans:
                    stack.create_child(plan, self._devices)
            except (BuildError, DeviceError) as error:
                await self._firmware.send("failed", {"reason": str(error)})
            else:
                self._save()
                nursery.start_soon(send_heartbeats, self._hypercalls, self._machine)
                await self._firmware.send("ready")
            await self._until_left(nursery)
        return self._end()

    async def take_over(self, birth: Birth, mapped: MappedSlot) -> int:
        """Become what the saved state in `mapped` says, finish what was left, go on. Returns the exit code."""
        born_ns = time.monotonic_ns()
        asked_early: list[int] = []  # to power off, before anybody listens
        signal.signal(signal.SIGTERM, lambda number, _: asked_early.append(number))
        async with trio.open_nursery() as nursery:
            vp = VirtualProcessor(birth.vps[0], self._hypercalls)
            self._hypercalls.end_of_message(
                vp.index
            )  # our predecessor may have emptied a slot and not said so
            self._saved = SavedState(MemorySlot.from_fd(mapped.fd, mapped.gpfn, mapped.pages).memory)
            state = self._saved.load()
            struck = self._saved.seam.take_struck()
            self._adopt_tables(state)
            stack = self._make_stack(birth, vp, nursery, self._hypercalls.claim_gpa_pages)
            place = place_of(self._machine)
            tables, drivers = kept_of(self._device_tables), state["drivers"]
            self._devices = place.adopt(stack.resources, self._machine, tables, drivers)
            self._add_services(stack)
            self._bind_links(stack, state["guests"])
            stack.received.adopt(state["received"], state.get("last_message"))
            stack.ended.update(state["ended"])
            channels: list[tuple[GuestBus, int]] = []
            old_streams = self._old_streams(state["guests"])
            for saved in state["guests"]:
                name = saved["name"]
                vps = self._partition_tables[name]["vps"]
                channels += stack.adopt_child(
                    saved, vps, self._devices | old_streams, self._attachments[name]
                )
            restored_ns = time.monotonic_ns()
            # Who was in the middle of a batch goes first, on the device alone: docs/recovery.md says why.
            replay_in_order(
                (guest.was_executing(relid), partial(guest.replay, relid)) for guest, relid in channels
            )
            replayed_ns = time.monotonic_ns()
            for guest, relid in channels:
                guest.serve(relid)
            self._faults.go_on()  # behind all that was replayed
            stack.resume()
            if old_streams:
                from partitions.streams.desk import end_remains

                end_remains(stack.guests.values(), old_streams)
            for driver in drivers_among(self._devices):
                driver.resume()
            self._start_services(nursery, stack)
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
            if asked_early:
                self._leave.set()
            await self._until_left(nursery)
        return self._end()

    def _make_stack(
        self,
        birth: Birth,
        vp: VirtualProcessor,
        nursery: trio.Nursery,
        get_pages: Callable[[int, int], list[MappedSlot]],
    ) -> VirtualizationStack:
        """`get_pages(gpfn, pages)`: new ones, or those of a predecessor."""
        assert self._saved is not None
        emulation, tables = None, list(self._partition_tables.values())
        if any(table.get("emulated") for table in tables):
            from partitions.emulated.host import EmulationHost

            emulation = EmulationHost(self._hypercalls, birth, nursery, self._console.emit)
            emulation.expect(tables, get_pages)
        self._operator = OperatorServices(self._firmware, nursery, emulation)
        resources = RootResources(
            self._hypercalls,
            birth.partition,
            vp.event_flags,
            nursery,
            self._console.emit,
            self._save,
            self._saved.record,
            self._saved.seam,
            cpus=tuple(self._cpus),
            faults=self._faults.serve(self._saved.faults, self._saved.seam, lambda: self._devices),
        )
        deliver_to(self._console.emit)
        self._stack = stack = VirtualizationStack(resources, vp, emulation)
        self._faults.serve_stack(resources, stack.guests)
        return stack

    def _add_services(self, stack: VirtualizationStack) -> None:
        """What is offered without being a device of the config; and what an operator finds."""
        assert self._operator is not None
        tables = list(self._partition_tables.values())
        if any(table.get("integration") for table in tables):
            from partitions.integration.device import integration_devices

            self._devices |= integration_devices(tables, self._hypercalls)
        self._operator.begin(tables, self._devices, stack)
        told = RootTables(self._machine, self._device_tables, self._partition_tables, self._attachments)
        nursery = stack.resources.nursery
        self._plug = PlugAndPlay(self._firmware, nursery, told, self._devices, stack, self._console.emit)

    def _bind_links(self, stack: VirtualizationStack, saved: Sequence[Mapping[str, Any]] = ()) -> None:
        """`saved`: what a predecessor saved of its guests."""
        if any(table["kind"] == "link" for table in self._device_tables):
            from partitions.links.link_device import bind_links

            bind_links(self._devices, stack.resources, self._partition_tables.values(), saved)

    def _old_streams(self, saved: Sequence[Mapping[str, Any]]) -> Devices:
        """Of a predecessor's: to be taken away."""
        if not any(table.get("streams") for table in self._partition_tables.values()):
            return {}
        from partitions.streams.device import remains

        return {**remains(saved)}

    def _start_services(self, nursery: trio.Nursery, stack: VirtualizationStack) -> None:
        for service in (
            self._await_power_off,
            self._serve_firmware,
            stack.receive_messages,
            stack.watch_children,
        ):
            nursery.start_soon(service)
        nursery.start_soon(watch_channels, stack.guests, self._machine, self._console.emit)

    async def _until_left(self, nursery: trio.Nursery) -> None:
        await self._leave.wait()
        self._hypercalls.heartbeat(0)  # from here on we may be busy for long: flushing
        nursery.cancel_scope.cancel()  # no message is taken any more, so no channel opens or closes behind our back

    def _end(self) -> int:
        if self._stack is not None:
            self._stack.quiesce()
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
        first = await self._expect("machine")
        told = first.values
        trace_files.begin(dict(zip(told.get("traced", ()), first.fds, strict=False)))
        self._machine, self._device_tables = told["machine"], told["devices"]
        self._pin(told["cpus"])
        root_walls.put_up(self._machine, self._device_tables, self._console.emit, first=True)
        described: list[Described] = []
        while (message := await self._firmware.receive()) is not None and message.verb == "partition":
            described.append(Described(message.values, tuple(message.fds)))
        if message is None or message.verb != "create":
            raise SystemExit(f"root: the firmware said {message!r:.80}, not 'create'")
        plans: list[PartitionPlan] = []
        for child in children_of(ROOT, described):
            child = hand_over(child, self._device_tables, self._console.emit)
            plan = PartitionPlan.of_tree(child, self._machine, described)
            self._remember(child.table, plan)
            plans.append(plan)
        return plans

    def _new_pages(self, gpfn: int, pages: int) -> list[MappedSlot]:
        return [self._hypercalls.map_gpa_pages(gpfn, pages)]

    def _pin(self, cpus: list[int]) -> None:
        """Before any channel's thread starts: threads inherit it."""
        self._cpus = list(cpus)
        if self._cpus:
            os.sched_setaffinity(0, self._cpus)

    def _remember(self, table: Mapping[str, Any], plan: PartitionPlan) -> None:
        """For a successor: our own children. Those below them are known to their parents alone."""
        self._partition_tables[plan.name] = table
        self._attachments[plan.name] = {one.name: one for one in plan.attachments}

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
            assert self._stack is not None
            by_size = sorted(self._stack.guests.values(), key=lambda guest: -encoded_bytes(guest.to_state()))
            for guest in by_size:
                self._console.emit("vmbus.guest_state_too_large", guest=guest.name)
                guest.disconnect()
                with contextlib.suppress(StateTooLarge):
                    self._save_all()
                    break
            self._resetting = False

    def _save_all(self) -> None:
        assert self._saved is not None
        assert self._stack is not None
        self._saved.save(
            {
                "machine": self._machine,
                "devices": self._device_tables,
                "cpus": self._cpus,
                "partitions": list(self._partition_tables.values()),
                "guests": [guest.to_state() for guest in self._stack.guests.values()],
                "ended": sorted(self._stack.ended),
                "received": self._stack.received.to_state(),
                "drivers": [driver.to_state() for driver in drivers_among(self._devices)],
            }
        )

    def _adopt_tables(self, state: Mapping[str, Any]) -> None:
        self._machine, self._device_tables = state["machine"], state["devices"]
        self._pin(state["cpus"])
        root_walls.put_up(self._machine, self._device_tables, self._console.emit, first=False)
        for table in state["partitions"]:
            self._remember(table, PartitionPlan.from_table(table, self._machine, []))

    # -- running

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
                    name = str(message.values.get("name"))
                    answer = {
                        "request": message.values.get("request"),
                        "devices": device_rows(name, self._devices, self._stack),
                        "heartbeat": self._operator.heartbeat_of(name) if self._operator else None,
                    }
                    await self._firmware.send("inspected", answer)
                case "stick":  # a fault on purpose: heartbeats go on, no channel moves
                    get_stuck(message.values["device"], self._devices)
                case "seam":  # a fault on purpose, later: at a named step
                    assert self._saved is not None
                    arm_seam(message.values, self._saved.seam, self._devices, self._console.emit)
                case "integration":
                    assert self._operator is not None
                    self._operator.answer(message.values)
                case "device" if self._plug is not None:
                    self._plug.take(message.values, message.fds)
                case "backing" if self._plug is not None:
                    self._plug.reopened(message.values, message.fds)
                case "capture" | "stream" | "dialled" if self._operator is not None:
                    self._operator.take_socket(message.verb, message.values, message.fds)
                case "viewer" if self._operator is not None and len(message.fds) == 1:
                    self._operator.show_screen(str(message.values.get("name")), message.fds[0])
                case verb if verb in FAULT_VERBS:
                    await self._firmware.send(*self._faults.answer(verb, message.values))
                case "retire":
                    self._retiring = True
                    self._leave.set()
                case verb:
                    self._console.emit("root.unknown_request", verb=verb)
