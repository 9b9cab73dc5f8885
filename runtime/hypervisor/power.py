"""The power socket: how the platform, as firmware and management controller, commands the broker.

platform -> broker   [verb, map]: "adopt", "list", "show", "kill", "ports", "sched", "schedule", "stop"
broker -> platform   [verb, map]: the answer to a request, in order, its "request" key echoed; or "error"
                     events: "partition.created", ".started", ".exited", ".deleted"; "root.standby";
                     "halting", and when every process is dead, "halt"

adopt {name, memory_pages, pid, args?} + [root's hypercall socket, its pidfd, console?, firmware?, more...] -> adopt
                      {id}; each later process of the root is born with the firmware and all that follows
warm {}            -> warm {}; a standby for the root is made ready, and again after each takeover
list {after?}      -> list {partitions: [...], more}
show {name}        -> show {...}
kill {name, signal?} -> kill {id}; SIGKILL ends it, which is an event; others are sent as they are
ports {name?, after?} -> ports {rows: [...], more}; what became of every interrupt, port by port
sched {after?}     -> sched {partitions: [...], more, ...}; who has had how much of the processors
schedule {name, weight?, reserve?, cap?} -> schedule {id}; reserve and cap in 1/0x10000 of a processor per VP
pause {name?}, resume {name?} -> pause {names: [...]}; a partition and all below it; without a name the whole machine
state {name, vp?}  -> state {...}; what the hypervisor keeps of a paused partition, or of one of its VPs
slots {name, after?} -> slots {slots: [[gpfn, pages, writable, own]...], more} + a descriptor of each own one's memory
hypervisor {}      -> hypervisor {...}; what the broker says of itself
inject {order}     -> inject {}; a fault on purpose, as runtime.chaos.faults.orders has it
heal {number}      -> heal {}; it is undone
fault-counts {}    -> fault-counts {counts: [[number, passes, fired]...]}
reboot {grace_ms}  -> reboot {}; then as `stop`, and when every partition has ended, a new root
stop {grace_ms}    -> stop {}; then SIGTERM to all but the root, SIGTERM to the root, SIGKILL to who is left
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from runtime import codec
from runtime.abi import ROOT_PARTITION, PartitionProperty
from runtime.hypervisor import pausing
from runtime.hypervisor.broker import Broker
from runtime.hypervisor.debug_port import DebugPort, Table
from runtime.hypervisor.loop import now_ns
from runtime.hypervisor.object_inventory import list_objects, list_processes
from runtime.hypervisor.orderly_end import OrderlyEnd
from runtime.hypervisor.outbox import Outbox
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.partition_inventory import list_partitions, show_partition
from runtime.hypervisor.port_inventory import list_ports
from runtime.hypervisor.replies import Refused
from runtime.hypervisor.scheduler import Scheduler
from runtime.hypervisor.scheduling_mechanisms import SchedulerKind
from runtime.hypervisor.self_portrait import portrait
from runtime.loaded_code import report_if_asked

if TYPE_CHECKING:
    from runtime.hypervisor.broker_faults import BrokerFaults

ADOPT_DESCRIPTORS_MAX: Final = 4 + 1 + 64  # and trace memory: the root's, and that of each driver partition
GRACE_MS_MAX: Final = 600_000
SHARE_PROPERTIES: Final[Mapping[str, PartitionProperty]] = MappingProxyType(
    {
        "weight": PartitionProperty.CPU_WEIGHT,
        "reserve": PartitionProperty.CPU_RESERVE,
        "cap": PartitionProperty.CPU_CAP,
    }
)
FAULT_VERBS: Final = ("inject", "heal", "fault-counts")
STOPPED: Final = "stopped"  # the reason of a halt that the platform asked for
_FAREWELL_MS: Final = 500  # for the platform to take the last packet


class _Refused(Exception):
    """The platform's request cannot be done; the text says why."""


class PowerSocket:
    """Serves the platform until the machine is down."""

    def __init__(
        self, broker: Broker, sock: socket.socket, scheduling: SchedulerKind = SchedulerKind.AUTO
    ) -> None:
        sock.setblocking(False)
        self._broker: Final = broker
        self._socket: Final = sock
        self._outbox: Final = Outbox(sock)
        self._scheduler: Final = Scheduler(broker.loop, broker.hypervisor.machine, scheduling, broker.service)
        self._ending: OrderlyEnd | None = None  # of a stop, or of the first half of a reboot
        self._stopping = False
        self._faults: BrokerFaults | None = None  # made, and its modules loaded, with the first fault
        broker.loop.watch(sock.fileno(), self._serve)
        broker.announce_to(self._send)

    def run(self) -> str:
        """Until the machine halts; returns why. Every process is then dead, and the platform told."""
        broker = self._broker
        while broker.halted is None:
            broker.loop.run_once(self._end_step())
            self._scheduler.notice()
        reason = STOPPED if self._stopping else broker.halted
        report_if_asked(lambda kind, **fields: self._send(kind, fields))
        self._send("halting", {"reason": reason})  # first, so that nobody takes what follows for the cause
        self._scheduler.end()
        broker.bring_down()
        self._scheduler.close()
        self._send("halt", {"reason": reason})
        deadline_ns = now_ns() + _FAREWELL_MS * 1_000_000
        while self._outbox.waits and now_ns() < deadline_ns:
            broker.loop.run_once(_FAREWELL_MS)
        return reason

    def debug_tables(self) -> Mapping[str, Table]:
        """What the debug port shows, a page at a time."""
        hypervisor, loop = self._broker.hypervisor, self._broker.loop

        def partitions(after: int) -> dict[str, object]:
            page = list_partitions(hypervisor.machine, after)
            return {"rows": page["partitions"], "more": page["more"]}

        def queue(after: int) -> dict[str, object]:
            page = self._scheduler.report(after)
            return {"rows": page.pop("partitions"), "more": page.pop("more"), **page}

        return {
            "partitions": partitions,
            "ports": lambda after: list_ports(hypervisor.machine, after),
            "queue": queue,
            "hypervisor": lambda after: portrait(hypervisor, loop),
            "objects": lambda after: list_objects(self._broker, after),
            "processes": lambda after: list_processes(self._broker),
        }

    def _serve(self, events: int) -> None:
        try:
            if events & select.EPOLLOUT:
                self._outbox.flush()
            received = codec.receive_message(self._socket, ADOPT_DESCRIPTORS_MAX)
        except BlockingIOError:
            self._broker.loop.watch_writable(self._socket.fileno(), self._outbox)
            return
        except codec.DecodeError as error:
            self._send("error", {"reason": str(error)})
            return
        except OSError:
            received = None
        if received is None:
            self._broker.halted = self._broker.halted or "the platform is gone"
            return
        message, fds = received
        match message:
            case [str() as verb, dict() as args]:
                self._answer(verb, args, fds)
            case _:
                codec.close_all(fds)
                self._send("error", {"reason": "not [verb, map]"})

    def _answer(self, verb: str, args: dict[str, object], fds: list[int]) -> None:
        echo = {"request": args.pop("request")} if "request" in args else {}
        handed: list[int] = []
        try:
            if verb == "adopt":
                result = self._adopt(args, fds)
                fds = []
            elif verb == "list":
                result = list_partitions(self._broker.hypervisor.machine, _integer(args, "after", 0))
            elif verb == "show":
                result = show_partition(self._broker.hypervisor.machine, self._named(args))
            elif verb == "kill":
                partition = self._named(args)
                number = _integer(args, "signal", int(signal.SIGKILL))
                if number >= signal.NSIG:
                    raise _Refused(f"there is no signal {number}")
                if number == signal.SIGKILL:
                    self._broker.kill(partition.id)
                else:
                    self._broker.signal(partition.id, number)
                    self._scheduler.signalled(partition.id, number)
                result = {"id": partition.id}
            elif verb == "ports":
                owner = self._named(args).id if "name" in args else None
                machine = self._broker.hypervisor.machine
                result = list_ports(machine, _integer(args, "after", 0), owner)
            elif verb == "sched":
                result = self._scheduler.report(_integer(args, "after", 0))
            elif verb == "schedule":
                result = self._schedule(args)
            elif verb in ("pause", "resume"):
                result = self._pause(args, paused=verb == "pause")
            elif verb == "state":
                result = self._state(args)
            elif verb == "slots":
                result, handed = self._slots(args)
            elif verb == "hypervisor":
                result = portrait(self._broker.hypervisor, self._broker.loop)
            elif verb in FAULT_VERBS:
                result = self._break(verb, args)
            elif verb == "warm":
                self._broker.standby.warm()
                result = {}
            elif verb == "reboot":
                result = self._reboot(args)
            elif verb == "stop":
                result = self._stop(args)
            else:
                raise _Refused(f"unknown verb {verb!r}")
        except _Refused as refused:
            verb, result = "error", {"verb": verb, "reason": str(refused)}
        finally:
            codec.close_all(fds)
        self._send(verb, result | echo, handed)

    def _send(self, verb: str, fields: Mapping[str, object], fds: list[int] | None = None) -> None:
        """Takes the descriptors over."""
        try:
            self._outbox.send([verb, fields], fds or ())
        except OSError:  # its end of file is on the way
            self._outbox.close()
        self._broker.loop.watch_writable(self._socket.fileno(), self._outbox)

    def _named(self, args: dict[str, object]) -> Partition:
        name = args.get("name")
        found = self._broker.hypervisor.machine.by_path(name) if isinstance(name, str) else None
        if found is None:
            raise _Refused(f"no partition is named {name!r}")
        return found

    def _schedule(self, args: dict[str, object]) -> dict[str, object]:
        partition = self._named(args)
        if partition.id == ROOT_PARTITION:
            raise _Refused("the root is not scheduled: it serves everybody else")
        changed = {code: _integer(args, key) for key, code in SHARE_PROPERTIES.items() if key in args}
        try:
            effects = self._broker.hypervisor.set_shares(partition.id, changed, now_ns())
        except Refused as refused:
            raise _Refused("weight is 1 to 10000, reserve and cap 0 to 100%, and reserve <= cap") from refused
        self._broker.carry_out(effects)
        return {"id": partition.id}

    def _pause(self, args: dict[str, object], *, paused: bool) -> dict[str, object]:
        """Guests stop before those who serve them, and go on after them."""
        machine = self._broker.hypervisor.machine
        if self._ending is not None:
            raise _Refused("the machine is ending")
        named = self._named(args) if "name" in args else machine.partitions[ROOT_PARTITION]
        if named.id == ROOT_PARTITION and "name" in args:
            raise _Refused("the root serves everybody else: pause the whole machine with --all")
        live = [each for each in pausing.tree(machine, named) if each.id in self._broker.live_partitions]
        if not live:
            raise _Refused(f"{named.name} does not run")
        changed = [each for each in live if each.suspended is not paused]
        order = [each.id for each in (reversed(changed) if paused else changed)]
        self._broker.carry_out(self._broker.hypervisor.pause(order, paused, now_ns()))
        return {"names": [machine.path(each) for each in changed]}

    def _state(self, args: dict[str, object]) -> dict[str, object]:
        from runtime.hypervisor.state_to_save import partition_state, processor_state

        machine, partition = self._broker.hypervisor.machine, self._paused(args)
        if "vp" not in args:
            return partition_state(machine, partition)
        vp = partition.vps.get(_integer(args, "vp"))
        if vp is None:
            raise _Refused(f"{partition.name} has no such processor")
        return processor_state(machine, partition, vp)

    def _slots(self, args: dict[str, object]) -> tuple[dict[str, object], list[int]]:
        from runtime.hypervisor.state_to_save import slots_after

        result, handles = slots_after(self._paused(args), _integer(args, "after", 0))
        try:
            with self._broker.host.descriptors(tuple(handles)) as fds:
                return result, [os.dup(fd) for fd in fds]
        except OSError as error:
            raise _Refused(str(error)) from error

    def _paused(self, args: dict[str, object]) -> Partition:
        partition = self._named(args)
        if not partition.suspended:
            raise _Refused(f"{partition.name} is not paused")
        return partition

    def _resume_all(self) -> None:
        """Who is to end has to hear of it."""
        machine = self._broker.hypervisor.machine
        paused = [each.id for each in machine.partitions.values() if each.suspended]
        self._broker.carry_out(self._broker.hypervisor.pause(paused, False, now_ns()))

    def _adopt(self, args: dict[str, object], fds: list[int]) -> dict[str, object]:
        name, root_args = args.get("name"), args.get("args", {})
        if not isinstance(name, str) or not isinstance(root_args, dict):
            raise _Refused("adopt wants a name, and args as a map")
        memory_pages, pid = _integer(args, "memory_pages"), _integer(args, "pid")
        if not 2 <= len(fds) <= ADOPT_DESCRIPTORS_MAX:
            raise _Refused(f"adopt wants 2 to {ADOPT_DESCRIPTORS_MAX} descriptors, not {len(fds)}")
        sock = socket.socket(fileno=fds[0])
        try:
            console_fd = fds[2] if len(fds) > 2 else None
            self._broker.adopt(name, memory_pages, root_args, pid, sock, fds[1], console_fd, fds[3:])
        except (ValueError, OSError) as error:
            sock.detach()
            raise _Refused(str(error)) from error
        return {"id": ROOT_PARTITION}

    def _break(self, verb: str, args: dict[str, object]) -> dict[str, object]:
        if self._faults is None:
            from runtime.hypervisor.broker_faults import BrokerFaults

            self._faults = BrokerFaults(self._broker)
        try:
            return self._faults.answer(verb, args)
        except ValueError as error:
            raise _Refused(str(error)) from error

    # -- stopping and starting again

    def _stop(self, args: dict[str, object]) -> dict[str, object]:
        if not self._stopping:
            self._stopping = True
            self._resume_all()
            self._broker.hypervisor.stop()
            self._scheduler.end()  # so that everybody hears what comes
            self._ending = OrderlyEnd(self._broker, min(_integer(args, "grace_ms", 0), GRACE_MS_MAX))
        return {}

    def _reboot(self, args: dict[str, object]) -> dict[str, object]:
        machine = self._broker.hypervisor.machine
        if self._ending is not None or ROOT_PARTITION not in self._broker.live_partitions:
            raise _Refused("it is ending, or starting, already")
        self._resume_all()
        self._broker.hypervisor.begin_reboot()
        grace_ms = min(_integer(args, "grace_ms", 0), GRACE_MS_MAX)
        self._ending = OrderlyEnd(self._broker, grace_ms, lambda: not machine.rebooting)
        return {}

    def _end_step(self) -> int | None:
        """What is due of a stop or a reboot; returns how long, in ms, until the next may be."""
        if self._ending is None:
            return None
        if (left_ms := self._ending.step()) is not None:
            return left_ms
        self._ending = None
        if self._stopping:
            self._broker.halted = self._broker.halted or STOPPED
            return 0
        if self._broker.hypervisor.machine.rebooting:  # out of time; what follows, follows from its end
            self._broker.kill(ROOT_PARTITION)
        return None


def _integer(args: dict[str, object], name: str, default: int | None = None) -> int:
    value = args.get(name, default)
    if type(value) is not int or value < 0:
        raise _Refused(f"{name} must be a whole number, not {value!r}")
    return value


def serve(
    power_fd: int,
    broker: Broker,
    scheduling: SchedulerKind = SchedulerKind.AUTO,
    debug_fd: int | None = None,
) -> str:
    """Run the machine on an inherited power socket until it halts; returns why."""
    with socket.socket(fileno=power_fd) as sock:
        power = PowerSocket(broker, sock, scheduling)
        if debug_fd is not None:
            DebugPort(broker.loop, socket.socket(fileno=debug_fd), power.debug_tables())
        return power.run()
