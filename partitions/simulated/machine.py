"""A simulated machine: its processes, who starts and ends them, and what they say."""

from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import Any, Final

from bus.seam import Step
from partitions.machine_plan import PartitionPlan
from partitions.simulated.clock import NS_PER_MS, VirtualClock
from partitions.simulated.costs import Costs
from partitions.simulated.driver import DriverRings, SimulatedDriver
from partitions.simulated.guest import SimulatedGuest
from partitions.simulated.hosts import OfferedDisk, RingHost
from partitions.simulated.kernel import Kernel
from partitions.simulated.medium import MemoryMedium, SimulatedMedium
from partitions.simulated.plan import GuestPlan, MachinePlan
from partitions.simulated.process import Process
from partitions.simulated.promises import Promises
from partitions.simulated.reopening import ReopeningGuest
from partitions.simulated.root import RootLife
from partitions.simulated.serving import RingParts, ServedRing, Turns
from partitions.stack.channel_host import ChannelListener, OpenRequest
from partitions.storage.device import OfferedDevice
from partitions.storage.vsp import StorageVsp
from runtime.abi import ROOT_PARTITION
from runtime.chaos.faults.orders import Order
from runtime.config.architecture import Architecture
from runtime.hypervisor.machine import RootFailurePolicy
from runtime.simulation.actions import ROOT_LABEL

Event = Mapping[str, Any]
_KILLED: Final = 137  # exit code, as a shell has it for SIGKILL
_REAP_NS: Final = 200_000  # from a process's end until the hypervisor knows of it
_FIRST_PID: Final = 100


class SimulatedMachine:
    """From power-on to its end."""

    def __init__(
        self,
        plan: MachinePlan,
        costs: Costs,
        seed: int,
        burst: int,
        *,
        server: type[StorageVsp] = StorageVsp,
        fired: Callable[[Order], None] = lambda order: None,
    ) -> None:
        """`server`: what serves each channel. `fired` is told of each strike of a fault of a medium."""
        self.plan, self.costs, self.burst, self._server = plan, costs, burst, server
        self.clock: Final = VirtualClock(seed)
        self.kernel: Final = Kernel(self.clock, RootFailurePolicy(plan.policy))
        self.rng: Final = Random(f"machine/{seed}")
        self.events: Final[list[Event]] = []
        self.listeners: Final[list[Callable[[Event], None]]] = []
        self.media: Final = {
            disk.name: SimulatedMedium(
                MemoryMedium(disk.size_bytes, disk.block_bytes, read_only=disk.read_only), fired
            )
            for disk in plan.disks
        }
        self.processes: Final[dict[str, Process]] = {}
        self.guests: Final[dict[str, SimulatedGuest]] = {}
        self.programs: Final[dict[str, SimulatedGuest]] = {}  # those, and what else runs in partitions
        self.wrong: Final[list[str]] = []  # what guests found that they had not written
        self.over: Final[set[str]] = set()  # guests whose load has ended, or who have
        self.lives: Final[list[RootLife]] = []  # of the root; the last one is the one that counts
        self.drivers: Final[dict[str, SimulatedDriver]] = {}
        self._has_ended = False
        self._watchers: dict[str, list[Callable[[Step], bool]]] = {}
        self.starts: Final[list[Callable[[Process], None]]] = []  # told of each start of a process
        self.deaths: Final[list[Callable[[Process, str], None]]] = []  # and of each end, with its reason
        # Asked of each interrupt, with whom it is for: True, and it is theirs to deliver.
        self.filters: Final[list[Callable[[str, Callable[[], None]], bool]]] = []
        # Asked at each request of a ring to that device: how many ns it is held up; None: until it is healed.
        self.ring_faults: Final[list[Callable[[str], float | None]]] = []
        self._no_standby_until_ns = 0
        self._generation = 0
        self.kernel.on_spawn = self._spawn
        self.kernel.on_doom = self._doom
        self.kernel.on_message = self._message
        self.promises: Final = Promises(self)

    def close(self) -> None:
        for process in self.processes.values():
            process.close()
        for guest in self.programs.values():
            guest.close()
        for driver in self.drivers.values():
            driver.close()
        for life in self.lives:
            life.close()
        self.kernel.close()

    # -- what a root's life needs

    @property
    def plans(self) -> tuple[PartitionPlan, ...]:
        return self.plan.partitions

    @property
    def hang_ms(self) -> int:
        return 0 if self.plan.policy == "halt" else self.plan.hang_ms

    @property
    def is_disaggregated(self) -> bool:
        return self.plan.architecture is Architecture.DISAGGREGATED

    def devices_of(self, life: RootLife) -> Mapping[str, OfferedDevice]:
        """Anew for each life: what a root knows of its devices dies with it."""
        if self.is_disaggregated:
            for disk in self.plan.disks:
                if disk.name not in self.drivers:
                    self.drivers[disk.name] = SimulatedDriver(self, disk.name)
                self.drivers[disk.name].attach(life)
            return {
                name: OfferedDisk(name, partial(DriverRings, life, driver))
                for name, driver in self.drivers.items()
            }
        return {
            disk.name: OfferedDisk(disk.name, partial(self._own_rings, life, disk.name, Turns()))
            for disk in self.plan.disks
        }

    def _own_rings(self, life: RootLife, device: str, turns: Turns, listener: ChannelListener) -> RingHost:
        assert life.resources is not None
        make = partial(self._root_ring, life, device, turns, listener)
        host = RingHost(life.resources, listener, self.kernel, make)
        life.at_end.append(host.end)
        return host

    def _root_ring(
        self,
        life: RootLife,
        device: str,
        turns: Turns,
        listener: ChannelListener,
        request: OpenRequest,
        parts: RingParts,
        on_broken: Callable[[str], None],
    ) -> ServedRing:
        assert life.seam is not None
        ring = self.make_ring(life.process, device, turns, parts, life.seam, listener.name, on_broken)
        life.rings.append(ring)
        return ring

    def make_ring(
        self,
        process: Process,
        device: str,
        turns: Turns,
        parts: RingParts,
        seam: Any,
        guest: str,
        on_broken: Callable[[str], None],
    ) -> ServedRing:
        def wake_guest() -> None:
            if (found := self.programs.get(guest)) is not None:
                self._interrupt(guest, found.wake)

        rng, medium = self.rng, self.media[device]

        def hangs() -> None:
            self.clock.after(self.plan.stuck_ms * NS_PER_MS, self.find_stuck)

        return ServedRing(
            process,
            turns,
            parts,
            seam,
            medium,
            self._server,
            self.costs,
            rng,
            wake_guest=wake_guest,
            on_broken=on_broken,
            on_hang=hangs,
            held_up=lambda: self._held_up(device),
        )

    def _held_up(self, device: str) -> float | None:
        """By all faults of its rings that are armed. None: for good, or until it is healed."""
        waits = [waits(device) for waits in self.ring_faults]
        return None if None in waits else float(sum(filter(None, waits)))

    def let_rings_go(self) -> None:
        for ring in [
            *self.lives[-1].rings,
            *(one for driver in self.drivers.values() for one in driver.rings),
        ]:
            ring.let_go()

    def medium_is_back(self, device: str) -> None:
        """Whoever hangs in it goes on, and makes its call again."""
        rings = self.drivers[device].rings if device in self.drivers else self.lives[-1].rings
        for ring in list(rings):
            if ring.hangs_in(self.media[device]):
                ring.resume()

    def watchers_of(self, server: str) -> list[Callable[[Step], bool]]:
        return self._watchers.setdefault(server, [])

    # -- events

    def log(self, kind: str, partition: str | None = None, **fields: Any) -> None:
        event = {"kind": kind, "monotonic_ns": self.clock.now_ns, "partition": partition, "fields": fields}
        self.events.append(event)
        for listener in list(self.listeners):
            listener(event)

    # -- processes

    def power_on(self) -> None:
        root = self._start(ROOT_LABEL)
        life = RootLife(root, self, 0)
        self.lives.append(life)
        root.after(self.costs.boot, life.boot)

    def _start(self, name: str) -> Process:
        process = self.processes[name] = Process(self.clock, name, self._died)
        pid = _FIRST_PID + len(self.events)
        kind = "root.started" if name == ROOT_LABEL else "partition.started"
        self.log(kind, name, pid=pid)
        for told in list(self.starts):
            told(process)
        return process

    def _spawn(self, partition: int) -> None:
        label = self.kernel.simulation.label_of(partition)
        if label == ROOT_LABEL:
            stands = self.plan.policy == "standby" and self.clock.now_ns >= self._no_standby_until_ns
            delay = self.costs.take_over if stands else self.costs.restart
        else:
            delay = self.costs.restart if self._is_driver(label) else self.costs.spawn
        self.clock.after(delay, self._spawned, partition, label)

    def _is_driver(self, label: str) -> bool:
        return any(driver.label == label for driver in self.drivers.values())

    def _spawned(self, partition: int, label: str) -> None:
        if self.kernel.halted is not None or partition not in self.kernel.world.starting:
            return
        process = self._start(label)
        self.kernel.started(label)
        if label == ROOT_LABEL:
            self._generation += 1
            life = RootLife(process, self, self._generation)
            self.lives.append(life)
            process.after(0, life.take_over)
        elif self._is_driver(label):
            (driver,) = (one for one in self.drivers.values() if one.label == label)
            process.after(0, driver.started, process)
        else:
            (guest,) = (one for one in (*self.plan.guests, *self.plan.others) if one.name == label)
            process.after(0, self._guest(process, partition, guest).start)

    def _guest(self, process: Process, partition: int, guest: GuestPlan) -> SimulatedGuest:
        reopens = guest in self.plan.others
        make = partial(ReopeningGuest, on_wrong=self.wrong.append) if reopens else SimulatedGuest
        made = self.programs[guest.name] = make(
            process,
            self.kernel,
            self.costs,
            Random(f"{guest.name}/{self.rng.random()}"),
            partition,
            guest.device,
            guest.plan,
            self.burst,
            lambda kind, **fields: self.log(f"guest.{kind}", guest.name, **fields),
            partial(self._signal, partition),
            lambda: self.over.add(guest.name),
        )
        if not reopens:
            self.guests[guest.name] = made
        return made

    def kill(self, name: str) -> None:
        """From outside. LookupError: there is no such process."""
        self.process(name).kill(self.rng)

    def kill_standby(self) -> None:
        """The next one is not ready before it has booted. LookupError: none stands by."""
        if self.plan.policy != "standby" or self.clock.now_ns < self._no_standby_until_ns:
            raise LookupError("no root stands by")
        self._no_standby_until_ns = self.clock.now_ns + self.costs.boot

    def process(self, name: str) -> Process:
        """LookupError: it does not run."""
        process = self.processes.get(name)
        if process is None or not process.is_alive:
            raise LookupError(f"{name}: no process of that name runs")
        return process

    def _doom(self, partition: int) -> None:
        self.clock.after(0, self._doomed, partition)

    def _doomed(self, partition: int) -> None:
        label = self.kernel.simulation.label_of(partition)
        process = self.processes.get(label)
        if process is not None and process.is_alive and partition in self.kernel.world.doomed:
            if label == ROOT_LABEL:
                self.log("root.hung", ROOT_LABEL)
            process.kill(self.rng)

    def _died(self, process: Process, reason: str) -> None:
        name = process.name
        for told in list(self.deaths):
            told(process, reason)
        if name == ROOT_LABEL:
            self.lives[-1].close()
            self._forget_media(self.media if not self.is_disaggregated else ())
            self.log("root.exited", name, reason=reason, at_ns=self.clock.now_ns)
        elif self._is_driver(name):
            (driver,) = (one for one in self.drivers.values() if one.label == name)
            driver.ended()
            self._forget_media((driver.device,))
            self.log("driver.exited", driver.device, reason=reason)
        else:
            self.over.add(name)
            if (guest := self.programs.get(name)) is not None:
                guest.close()
            self.log("partition.exited", name, reason=reason)
        self.clock.after(_REAP_NS, self._reap, name)

    def _forget_media(self, names: Any) -> None:
        for name in names:
            self.media[name].forget()

    def _reap(self, name: str) -> None:
        if self._has_ended:
            return
        self.kernel.exited(name, _KILLED)
        if (reason := self.kernel.halted) is not None:
            self._has_ended = True
            self.log("machine.ending", reason=reason, failed=True)
            for process in self.processes.values():
                process.is_alive = False
            return
        self.kernel.check()
        if name != ROOT_LABEL:
            life = self.lives[-1]
            life.process.after(self.costs.wake, life.children_changed)
            if self._is_driver(name):
                (driver,) = (one for one in self.drivers.values() if one.label == name)
                life.process.after(self.costs.wake, driver.restart, life)

    # -- interrupts

    def _message(self, partition: int) -> None:
        """Its line is raised: whoever runs there takes its messages, after the time that a wake takes."""
        label = self.kernel.simulation.label_of(partition)

        def deliver() -> None:
            if (process := self.processes.get(label)) is None:
                return
            if label == ROOT_LABEL:
                process.after(self.costs.wake, self._root_takes, process)
            elif (guest := self.programs.get(label)) is not None:
                process.after(self.costs.wake, guest.take_messages)

        deliver()

    def _root_takes(self, process: Process) -> None:
        if (life := self.lives[-1]).process is process:
            life.take_messages()

    def _signal(self, guest: int, connection: int) -> None:
        """The guest may have rung the doorbell behind a connection of its."""
        found = dict.get(self.kernel.simulation.table, guest)
        port = found.connections.get(connection) if found is not None else None
        if port is None or port.port is None:
            return
        where = (port.port_partition, port.port)
        for ring in self._rings_of(*where):
            if ring.was_rung():
                self._interrupt(self.kernel.simulation.label_of(where[0]), ring.wake)

    def _rings_of(self, partition: int, port: int) -> list[ServedRing]:
        if partition == ROOT_PARTITION:
            rings = self.lives[-1].rings
        else:
            rings = [ring for driver in self.drivers.values() for ring in driver.rings]
        return [ring for ring in rings if ring.listens_to(self.kernel.bell(partition, port))]

    def _interrupt(self, name: str, wake: Callable[[], None]) -> None:
        if not any(passes(name, wake) for passes in self.filters):
            wake()

    def find_stuck(self) -> None:
        """A channel that holds work and does not move ends its server: the successor may be luckier."""
        for life in self.lives[-1:]:
            if life.stack is None or not life.process.is_alive:
                continue
            for guest in life.stack.guests.values():
                if (device := guest.find_stuck(self.plan.stuck_ms)) is not None:
                    self.log("root.stuck", guest=guest.name, device=device, stuck_ms=self.plan.stuck_ms)
                    life.process.kill(self.rng)
                    return
        for driver in self.drivers.values():
            driver.find_stuck(self.plan.stuck_ms)
