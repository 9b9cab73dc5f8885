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
from partitions.simulated.interrupts import Interrupts
from partitions.simulated.kernel import Kernel
from partitions.simulated.medium import MemoryMedium, SimulatedMedium
from partitions.simulated.plan import GuestPlan, MachinePlan
from partitions.simulated.process import DeadlySeam, Process
from partitions.simulated.promises import Promises
from partitions.simulated.reopening import ReopeningGuest
from partitions.simulated.root import RootLife
from partitions.simulated.serving import RingParts, ServedRing, Turns
from partitions.stack.channel_host import ChannelListener, OpenRequest
from partitions.stack.offered_device import OfferedDevice
from partitions.storage.vsp import StorageVsp
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
        self._on: Final = {guest.name for guest in plan.guests}  # whose load goes on
        self.is_over = False  # every guest's load has ended, or the guest has
        self.lives: Final[list[RootLife]] = []  # of the root; the last one is the one that counts
        self.drivers: Final[dict[str, SimulatedDriver]] = {}
        self._has_ended = False
        self._watchers: dict[str, list[Callable[[Step], bool]]] = {}
        self.starts: Final[list[Callable[[Process], None]]] = []  # told of each start of a process
        self.deaths: Final[list[Callable[[Process, str], None]]] = []  # and of each end, with its reason
        # Asked at each request of a ring to that device: how many ns it is held up; None: until it is healed.
        self.ring_faults: Final[list[Callable[[str], float | None]]] = []
        self._no_standby_until_ns = 0
        self._generation = 0
        self.kernel.on_spawn = self._spawn
        self.kernel.on_doom = self._doom
        self.interrupts: Final = Interrupts(
            self.kernel, costs, self.processes, self.programs, self.lives, self.drivers
        )
        self.promises: Final = Promises(self.kernel, self.processes, self.lives, self.drivers, self.hang_ms)

    def close(self) -> None:
        for process in self.processes.values():
            process.close()
        for guest in self.programs.values():
            guest.close()
            if guest.load is not None:
                guest.load.let_go()
        for driver in self.drivers.values():
            driver.close()
        for life in self.lives:
            life.close()
        self.kernel.close()
        for medium in self.media.values():
            medium.memory.recycle()

    def _ended(self, guest: str) -> None:
        self._on.discard(guest)
        self.is_over = not self._on

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
        seam: DeadlySeam,
        guest: str,
        on_broken: Callable[[str], None],
    ) -> ServedRing:
        def wake_guest() -> None:
            if (found := self.programs.get(guest)) is not None:
                self.interrupts.deliver(guest, found.wake)

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
        if not self.ring_faults:
            return 0.0
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
            partial(self.interrupts.signal, partition),
            partial(self._ended, guest.name),
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
            self._ended(name)
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

    # -- who stands still

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
