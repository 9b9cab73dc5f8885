"""The stack's end of a driver partition: creates it, gives it a process, tells it what to serve, starts it again.

The partition outlives its processes: ports and pages of the channels, the memory disk and each channel's journal stay
where they are. A new process is told all that stands, and goes on (docs/recovery.md).

    STARTING -ready-> SERVING -exit-> [RESTING ->] STARTING ...        and after too many failures: FAILED
                         `-asked to end-> ENDED -someone opens-> STARTING
"""

import os
import time
from collections.abc import Mapping
from typing import Any, ClassVar
from uuid import UUID

import trio

from bus.native import Channel, GpaMap
from bus.seam import Seam, Step
from partitions import trace_files
from partitions.drivers import messages
from partitions.drivers.building import build
from partitions.drivers.channels import DriverChannels
from partitions.drivers.device_classes import class_of
from partitions.drivers.instructions import Instructions
from partitions.drivers.openings import Closing, OpeningOwner, Openings, Standing
from partitions.drivers.passage import KINDS as KINDS_WITH_PASSAGE
from partitions.drivers.passage import PassageBlocked, PassageEntry, open_passage
from partitions.drivers.phase import Phase as Phase
from partitions.drivers.ports import connect_driver
from partitions.drivers.process import EXIT_CANNOT_LOAD
from partitions.drivers.state import DRIVER_CHANNELS_MAX, DriverState
from partitions.drivers.state_pages import StatePages
from partitions.faults.fault_site import FaultSite
from partitions.machine_plan import DevicePlan
from partitions.stack.back_off import DRIVER_RESTARTS, BackOff
from partitions.stack.channel_host import ChannelListener, Opening
from partitions.stack.guest_memory import GpaWindows
from partitions.stack.served_channel import Service
from partitions.stack.stack_resources import RootResources
from partitions.stack.vmbus_ports import FlagAllocator, driver_port
from partitions.storage.backends import BackendError
from runtime.abi import TRACE_FILE, HypercallError


class DriverPartition:
    """An OfferedDevice, and a HostedDevice. All of it runs in its stack's own task."""

    module: ClassVar[str] = "partitions.drivers.process"  # what its processes run

    def __init__(self, stack: RootResources, table: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
        """`table`: of the [[root.device]]. Nothing is there yet: `create` or `adopt_state` follows."""
        self.stack, self._table, self._machine = stack, dict(table), machine
        self.stuck_ms = int(machine["stuck_ms"])
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
        self._openings = Openings()
        self._instructions: Instructions | None = None
        self._passage: PassageEntry | None = None
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
        backing = self._open_backing()
        try:
            self.partition = driver = call.create_partition()
            build(call, driver, self._machine["driver_memory"], self._plan.memory_pages)
            self._state_pages = StatePages(call, driver)
            self._state = self._state_pages.map()
            connect_driver(self.stack, driver)
            if self.kind in KINDS_WITH_PASSAGE:
                open_passage(self.stack, driver)
            self._listen()
            self._generation += 1
            self._spawn(backing)
        finally:
            for fd in backing:
                os.close(fd)

    def _listen(self) -> None:
        """From here on it can be told something; and we are told what it says, and when it ends."""
        self._instructions = Instructions(self.stack, self.partition)
        if self.kind in KINDS_WITH_PASSAGE:
            self._passage = PassageEntry(self.call, self.partition)
        self.stack.listeners[driver_port(self.partition)] = self.receive
        self.stack.watchers.append(self.look)
        self.stack.budgets.listeners[self.partition] = self._tell_time_had

    def _open_backing(self) -> list[int]:
        if (given := self.stack.backings.take(self.name)) is not None:
            return [given]
        opened = class_of(self.kind).open_backing(self._plan, self.stack.log)
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
                "stuck_ms": self.stuck_ms,
            },
            "cpus": list(self.stack.cpus),
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
                self.stack.nursery.start_soon(self._rest)
            case Phase.ENDED if self._openings:
                self._restart()
            case Phase.FAILED:
                self._withdraw()

    # -- its life

    def _tell_all(self) -> None:
        """All that stands, once more."""
        assert self._instructions is not None
        serve = (standing.serve_now(self.budgets) for standing in self._openings)
        self._instructions.tell_all(self._generation, serve, self._openings.closing)

    def _tell(self, message: messages.DriverMessage) -> None:
        assert self._instructions is not None
        self._instructions.tell(message)

    def _tell_time_had(self, guest: int, time_ns: int) -> None:
        """One that does not serve this guest is told nothing."""
        if self._instructions and self.phase is Phase.SERVING and self._openings.has_guest(guest):
            self._instructions.tell_time_had(guest, time_ns)

    def look(self) -> None:
        """Something about our children has changed: did it end?"""
        if self.phase not in (Phase.STARTING, Phase.SERVING):
            return
        if (status := self.call.get_exit_status(self.partition)) is None:
            return
        assert self._instructions is not None
        self._instructions.forget()
        closing = self._openings.take_closing()
        if status.code == 0:  # as it was asked to
            self.phase = Phase.ENDED
            self.stack.save()
            if self._openings:
                self._restart()
        elif status.code == EXIT_CANNOT_LOAD:
            self._give_up("its driver cannot be loaded: see the event guest.driver_not_loaded")
        else:
            self._failed(str(status))
        for each in closing:  # their threads have ended with it
            each.is_over()

    def _failed(self, reason: str) -> None:
        now_ns = time.monotonic_ns()
        self._reason, self._due_ns = reason, self._back_off.failed(now_ns)
        if self._due_ns is None:
            self._give_up(reason)
            return
        self.phase = Phase.RESTING
        pause_ms = (self._due_ns - now_ns) / 1e6
        failures = self._back_off.failures
        self.stack.log("driver.exited", device=self.name, reason=reason, failures=failures, pause_ms=pause_ms)
        if pause_ms <= 0:
            self._restart()
        else:
            self.stack.save()
            self.stack.nursery.start_soon(self._rest)

    def _give_up(self, reason: str) -> None:
        self._reason, self.phase = reason, Phase.FAILED
        self.stack.save()
        self.stack.log("driver.failed", device=self.name, reason=reason, failures=self._back_off.failures)
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
        if self.stack.backings.waits_for(self.name, self._fetched):
            self.phase, self._due_ns = Phase.RESTING, None
            return
        self._generation += 1
        self.phase, self._due_ns = Phase.RESTING, None
        self.stack.save()
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
        self._openings.fail()
        for host in self._hosts:
            host.listener.withdraw(host.device, f"its driver failed: {self._reason}")

    # -- channels: what their hosts want

    @property
    def gives_service(self) -> bool:
        """Or will again."""
        return self.phase is not Phase.FAILED

    def begin_serving(self, standing: Standing) -> None:
        self._openings.begin(standing)
        match self.phase:
            case Phase.STARTING | Phase.SERVING:
                self._tell(standing.serve_now(self.budgets))
            case Phase.ENDED:
                self.phase, self._due_ns = Phase.RESTING, None
                self.stack.nursery.start_soon(self._rest)

    def go_on_serving(self, standing: Standing) -> None:
        """A channel that is open since a predecessor's time: it is told of with all the others."""
        self._openings.go_on(standing)

    def stop_serving(self, host: OpeningOwner, relid: int, opening: Opening) -> None:
        self._openings.end(opening)
        closing = Closing(host, relid, opening)
        if self.phase in (Phase.STARTING, Phase.SERVING):
            self._openings.wait_for(closing)
            self._tell(messages.Stop(opening.number))
        else:  # no process, so nothing touches it
            self.stack.nursery.start_soon(_stopped_soon, closing)

    # -- what the process says

    def receive(self, payload: bytes) -> None:
        try:
            message = messages.decode_driver_message(payload)
        except messages.MalformedDriverMessage as error:
            self.stack.log("driver.protocol_error", device=self.name, error=str(error)[:200])
            return
        if not isinstance(message, messages.Ready):
            self._openings.hear(message)
        elif message.generation == self._generation:
            self._ready(message)

    def _ready(self, message: messages.Ready) -> None:
        if self.phase is not Phase.STARTING:
            return
        self.phase = Phase.SERVING
        self._back_off.serves(time.monotonic_ns())
        self.stack.log(  # before it is saved: who takes over in between says it again, rather than nobody
            "driver.serving",
            device=self.name,
            **message.times(),
            died_at=Step(message.died_at).text if message.died_at else None,
        )
        self.stack.save()

    # -- for people

    def inspect(self) -> dict[str, Any]:
        """For `partvisor show` of the driver partition itself."""
        return {
            "device": self.name,
            "state": str(self.phase),
            "channels": len(self._openings),
            "generation": self._generation,
            "failures": self._back_off.failures,
            "reason": self._reason,
        }

    def statistics(self, host: OpeningOwner, relid: int) -> dict[str, Any]:
        """A quarter of `hang_ms` old at the most."""
        row: dict[str, Any] = {"service": str(self.phase), "failures": self._back_off.failures}
        for standing in self._openings:
            if standing.host is host and standing.relid == relid and self._state is not None:
                row |= self._state.load_counters(standing.opening.flag)
        return row

    def hand_in(self, words: Mapping[str, Any], fd: int) -> None:
        """A HandsIn."""
        if self._passage is None or self.phase in (Phase.ENDED, Phase.FAILED):
            raise PassageBlocked(f"the driver of {self.name} does not run: {self._reason or 'it was ended'}")
        self._passage.hand_in(words, fd)

    def stick(self) -> None:
        self._tell(messages.Stick(0))  # a fault on purpose: heartbeats go on, no channel moves

    @property
    def fault_site(self) -> FaultSite:
        assert self._state is not None
        return FaultSite(self._state.faults, self._state.seam, lambda: self._tell(messages.Faults(0)))


async def _stopped_soon(closing: Closing) -> None:
    await trio.lowlevel.checkpoint()
    closing.is_over()
