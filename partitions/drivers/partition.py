"""The stack's end of a driver partition: creates it, gives it a process, tells it what to serve, starts it again.

The partition outlives its processes: ports and pages of the channels, the memory disk and each channel's journal stay
where they are. A new process is told all that stands, and goes on (docs/recovery.md).

    STARTING -ready-> SERVING -exit-> [RESTING ->] STARTING ...        and after too many failures: FAILED
                         `-asked to end-> ENDED -someone opens-> STARTING
"""

import os
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Final
from uuid import UUID

import trio

from bus.channel_messages import STATUS_FAILURE
from bus.native import Channel, GpaMap
from bus.seam import Seam, Step
from partitions import trace_files
from partitions.drivers import messages
from partitions.drivers.back_off import DRIVER_RESTARTS, BackOff
from partitions.drivers.channels import DriverChannels, Standing
from partitions.drivers.device_classes import class_of
from partitions.drivers.instructions import Instructions
from partitions.drivers.phase import Phase as Phase
from partitions.drivers.ports import connect_driver
from partitions.drivers.process import DEVICE_MEMORY_GPFN, EXIT_CANNOT_LOAD, STATE_GPFN
from partitions.drivers.state import DRIVER_CHANNELS_MAX, STATE_PAGES, DriverState
from partitions.drivers.state_pages import StatePages
from partitions.faults.fault_site import FaultSite
from partitions.machine_plan import DevicePlan
from partitions.stack.channel_host import ChannelListener, Opening
from partitions.stack.guest_memory import GpaWindows
from partitions.stack.served_channel import Service
from partitions.stack.stack_resources import RootResources
from partitions.stack.vmbus_ports import FlagAllocator, driver_port
from partitions.storage.backends import BackendError
from runtime.abi import (
    DEFAULT_PRIVILEGES,
    PAGE_BYTES,
    TRACE_FILE,
    HypercallError,
    PartitionProperty,
    Privilege,
)

DRIVER_PRIVILEGES: Final = DEFAULT_PRIVILEGES | Privilege.POST_MESSAGES | Privilege.SIGNAL_EVENTS


class DriverPartition:
    """An OfferedDevice, and a HostedDevice. All of it runs in its stack's own task."""

    module: ClassVar[str] = "partitions.drivers.process"  # what its processes run

    def __init__(self, stack: RootResources, table: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
        """`table`: of the [[root.device]]. Nothing is there yet: `create` or `adopt_state` follows."""
        self._stack, self._table, self._machine = stack, dict(table), machine
        self._plan = DevicePlan.from_table(table)
        self.name, self.kind, self.read_only = self._plan.name, self._plan.kind, self._plan.read_only
        self.call, self.budgets, self.queues = stack.hypercalls, stack.budgets, self._plan.queues
        self.partition = 0
        self.windows, self.flags = GpaWindows(), FlagAllocator(DRIVER_CHANNELS_MAX)
        self.phase = Phase.ENDED
        self._generation = 0  # of its processes
        self._back_off = BackOff(DRIVER_RESTARTS)
        self._due_ns: int | None = None  # while it rests
        self._reason = ""  # of the last failure
        self._hosts: list[DriverChannels] = []
        self._standing: dict[int, Standing] = {}  # by number of the opening
        self._opening: set[int] = set()  # of those, not answered yet
        self._closing: dict[int, tuple[DriverChannels, int, Opening]] = {}
        self._instructions: Instructions | None = None
        self._state: DriverState | None = None
        self._state_pages: StatePages | None = None  # that it lies in

    @property
    def interface(self) -> UUID:
        return class_of(self.kind).interface

    def make_host(self, listener: ChannelListener) -> DriverChannels:
        self.add_host(host := DriverChannels(self, listener))
        return host

    def add_host(self, host: DriverChannels) -> None:
        self._hosts.append(host)

    def open(self, channel: Channel, gpa_map: GpaMap, record: memoryview, seam: Seam) -> Service:
        raise TypeError(f"{self.name} is served in a partition of its own")

    def close(self) -> None:
        """Its process flushes and closes what it has, when it ends."""

    # -- building

    def create(self) -> None:
        """HypercallError: too little memory, mostly. BackendError: its file can't be opened."""
        call = self.call
        pages = self._machine["driver_memory"] // PAGE_BYTES + self._plan.memory_pages
        backing = self._open_backing()
        try:
            self.partition = driver = call.create_partition()
            call.set_privileges(driver, DRIVER_PRIVILEGES)
            call.set_property(driver, PartitionProperty.OUTLIVES_PROCESS, 1)
            call.deposit(driver, pages)
            call.initialize(driver)
            call.create_vp(0, driver)
            call.map_gpa_pages(STATE_GPFN, STATE_PAGES, partition=driver)
            if self._plan.memory_pages:
                call.map_gpa_pages(DEVICE_MEMORY_GPFN, self._plan.memory_pages, partition=driver)
            self._state_pages = StatePages(call, driver)
            self._state = self._state_pages.map()
            connect_driver(self._stack, driver)
            self._listen()
            self._generation += 1
            self._spawn(backing)
        finally:
            for fd in backing:
                os.close(fd)

    def _listen(self) -> None:
        """From here on it can be told something; and we are told what it says, and when it ends."""
        self._instructions = Instructions(self._stack, self.partition)
        self._stack.listeners[driver_port(self.partition)] = self.receive
        self._stack.watchers.append(self.look)

    def _open_backing(self) -> list[int]:
        if (given := self._stack.backings.take(self.name)) is not None:
            return [given]
        opened = class_of(self.kind).open_backing(self._plan, self._stack.log)
        return [] if opened is None else [opened]

    def _spawn(self, backing: list[int]) -> None:
        """The process gets the device with its birth; nobody else keeps it."""
        traced = trace_files.of_driver(self.name)
        boot: dict[str, Any] = {
            "function": "main",
            "args": {
                "device": self._table,
                "generation": self._generation,
                "hang_ms": self._machine["hang_ms"],
                "stuck_ms": self._machine["stuck_ms"],
            },
            "cpus": list(self._stack.cpus),
            "files": [*({"name": "backing"} for _ in backing), *({"name": TRACE_FILE} for _ in traced)],
        }
        boot["args"] |= self._more_arguments()
        self.call.set_program(self.partition, self.module, self.name, boot, [*backing, *traced])
        self._start()
        self.phase, self._due_ns = Phase.STARTING, None
        self._tell_all()  # only now: while it comes up, there is time

    def _more_arguments(self) -> dict[str, Any]:
        return {}

    def _start(self) -> None:
        self.call.start_vp(self.partition)

    # -- taking over from a predecessor

    def to_state(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "partition": self.partition,
            "phase": str(self.phase),
            "generation": self._generation,
            "back_off": self._back_off.to_state(),
            "due_ns": self._due_ns,
            "reason": self._reason,
        }

    def adopt_state(self, state: Mapping[str, Any]) -> None:
        self.partition, self.phase = state["partition"], Phase(state["phase"])
        self._generation, self._due_ns = state["generation"], state["due_ns"]
        self._back_off = BackOff.from_state(DRIVER_RESTARTS, state["back_off"])
        self._reason = state["reason"]
        self._state_pages = StatePages(self.call, self.partition)
        self._state = self._state_pages.claim()
        self._listen()

    def resume(self) -> None:
        """Once all guests are back: the process serves on, or has ended meanwhile, or never came to be."""
        match self.phase:
            case Phase.STARTING | Phase.SERVING:
                if self.call.get_exit_status(self.partition) is None:
                    self._tell_all()
                else:
                    self.look()
            case Phase.RESTING if self.call.get_exit_status(self.partition) is None:
                self.phase, self._due_ns = Phase.STARTING, None  # so it was, and nobody lived to save that
                self._tell_all()
            case Phase.RESTING:
                self._stack.nursery.start_soon(self._rest)
            case Phase.ENDED if self._standing:
                self._restart()
            case Phase.FAILED:
                self._withdraw()

    # -- its life

    def _tell_all(self) -> None:
        """All that stands, once more."""
        assert self._instructions is not None
        serve = (standing.serve_now(self.budgets) for standing in self._standing.values())
        self._instructions.tell_all(self._generation, serve, self._closing)

    def _tell(self, message: messages.DriverMessage) -> None:
        assert self._instructions is not None
        self._instructions.tell(message)

    def look(self) -> None:
        """Something about our children has changed: did it end?"""
        if self.phase not in (Phase.STARTING, Phase.SERVING):
            return
        if (status := self.call.get_exit_status(self.partition)) is None:
            return
        assert self._instructions is not None
        self._instructions.forget()
        closing, self._closing = self._closing, {}
        if status.code == 0:  # as it was asked to
            self.phase = Phase.ENDED
            self._stack.save()
            if self._standing:
                self._restart()
        elif status.code == EXIT_CANNOT_LOAD:
            self._give_up("its driver cannot be loaded: see the event guest.driver_not_loaded")
        else:
            self._failed(str(status))
        for host, relid, opening in closing.values():  # whose threads have ended with it
            host.stopped(relid, opening)

    def _failed(self, reason: str) -> None:
        now_ns = time.monotonic_ns()
        self._reason, self._due_ns = reason, self._back_off.failed(now_ns)
        if self._due_ns is None:
            self._give_up(reason)
            return
        self.phase = Phase.RESTING
        pause_ms = (self._due_ns - now_ns) / 1e6
        failures = self._back_off.failures
        self._stack.log(
            "driver.exited", device=self.name, reason=reason, failures=failures, pause_ms=pause_ms
        )
        if pause_ms <= 0:
            self._restart()
        else:
            self._stack.save()
            self._stack.nursery.start_soon(self._rest)

    def _give_up(self, reason: str) -> None:
        self._reason, self.phase = reason, Phase.FAILED
        self._stack.save()
        self._stack.log("driver.failed", device=self.name, reason=reason, failures=self._back_off.failures)
        self._withdraw()

    async def _rest(self) -> None:
        generation = self._generation
        if self._due_ns is not None:
            await trio.sleep(max(self._due_ns - time.monotonic_ns(), 0) / 1e9)
        if self.phase is Phase.RESTING and self._generation == generation:
            self._restart()

    def _restart(self) -> None:
        """Another process. Saved before, so that no two ever have the same number; and as resting, so that who takes
        over from us and finds the last one's end does not take it for the end of this one."""
        if self._stack.backings.waits_for(self.name, self._fetched):
            self.phase, self._due_ns = Phase.RESTING, None
            return
        self._generation += 1
        self.phase, self._due_ns = Phase.RESTING, None
        self._stack.save()
        try:
            backing = self._open_backing()
            try:
                self._spawn(backing)
            finally:
                for fd in backing:
                    os.close(fd)
        except (BackendError, HypercallError) as error:
            self._failed(str(error))

    def _fetched(self, failure: str | None) -> None:
        if self.phase is Phase.RESTING:
            self._restart() if failure is None else self._failed(failure)

    def _withdraw(self) -> None:
        """It serves nobody any more: those who wait are told so."""
        standing, self._standing = self._standing, {}
        opening, self._opening = self._opening, set()
        for number in opening:
            standing[number].host.opened(standing[number], STATUS_FAILURE)
        for host in self._hosts:
            host.listener.withdraw(host.device, f"its driver failed: {self._reason}")

    # -- channels: what their hosts want

    @property
    def gives_service(self) -> bool:
        """Or will again."""
        return self.phase is not Phase.FAILED

    def begin_serving(self, standing: Standing) -> None:
        number = standing.opening.number
        self._standing[number] = standing
        self._opening.add(number)
        match self.phase:
            case Phase.STARTING | Phase.SERVING:
                self._tell(standing.serve_now(self.budgets))
            case Phase.ENDED:
                self.phase, self._due_ns = Phase.RESTING, None
                self._stack.nursery.start_soon(self._rest)

    def go_on_serving(self, standing: Standing) -> None:
        """A channel that is open since a predecessor's time: it is told of with all the others."""
        self._standing[standing.opening.number] = standing

    def stop_serving(self, host: DriverChannels, relid: int, opening: Opening) -> None:
        self._standing.pop(opening.number, None)
        self._opening.discard(opening.number)
        if self.phase in (Phase.STARTING, Phase.SERVING):
            self._closing[opening.number] = host, relid, opening
            self._tell(messages.Stop(opening.number))
        else:  # no process, so nothing touches it
            self._stack.nursery.start_soon(self._stopped_soon, host, relid, opening)

    async def _stopped_soon(self, host: DriverChannels, relid: int, opening: Opening) -> None:
        await trio.lowlevel.checkpoint()
        host.stopped(relid, opening)

    # -- what the process says

    def receive(self, payload: bytes) -> None:
        try:
            message = messages.decode_driver_message(payload)
        except messages.MalformedDriverMessage as error:
            self._stack.log("driver.protocol_error", device=self.name, error=str(error)[:200])
            return
        match message:
            case messages.Ready() if message.generation == self._generation:
                self._ready(message)
            case messages.Opened(number, status) if number in self._opening:
                self._opening.discard(number)
                standing = self._standing[number]
                if status:
                    del self._standing[number]
                standing.host.opened(standing, status)
            case messages.Stopped(number) if number in self._closing:
                host, relid, opening = self._closing.pop(number)
                host.stopped(relid, opening)
            case messages.Lost(number, failed, reason) if number in self._standing:
                self._standing[number].host.lost(self._standing[number], failed, reason)
            case messages.Asked(number, count) if number in self._standing:
                self._standing[number].host.asked(self._standing[number], count)

    def _ready(self, message: messages.Ready) -> None:
        if self.phase is not Phase.STARTING:
            return
        self.phase = Phase.SERVING
        self._back_off.serves(time.monotonic_ns())
        self._stack.log(  # before it is saved: who takes over in between says it again, rather than nobody
            "driver.serving",
            device=self.name,
            **message.times(),
            died_at=Step(message.died_at).text if message.died_at else None,
        )
        self._stack.save()

    # -- for people

    def inspect(self) -> dict[str, Any]:
        """For `partvisor show` of the driver partition itself."""
        return {
            "device": self.name,
            "state": str(self.phase),
            "channels": len(self._standing),
            "generation": self._generation,
            "failures": self._back_off.failures,
            "reason": self._reason,
        }

    def statistics(self, host: DriverChannels, relid: int) -> dict[str, Any]:
        """A quarter of `hang_ms` old at the most."""
        row: dict[str, Any] = {"service": str(self.phase), "failures": self._back_off.failures}
        for standing in self._standing.values():
            if standing.host is host and standing.relid == relid and self._state is not None:
                row |= self._state.load_counters(standing.opening.flag)
        return row

    def stick(self) -> None:
        self._tell(messages.Stick(0))  # a fault on purpose: heartbeats go on, no channel moves

    @property
    def fault_site(self) -> FaultSite:
        assert self._state is not None
        return FaultSite(self._state.faults, self._state.seam, lambda: self._tell(messages.Faults(0)))
