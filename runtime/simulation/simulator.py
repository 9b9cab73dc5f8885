"""Carries out a schedule's actions, one at a time, on the real state machine in a world of plain objects.

No clock, process or descriptor is involved, and nothing is drawn at random here: the same actions lead to the same run,
whose digest says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from runtime.abi import (
    ROOT_PARTITION,
    ExitStatus,
    HvStatus,
    HypercallCode,
    PartitionState,
    PortType,
    RegisterName,
)
from runtime.hypervisor.dispatch import Hypervisor
from runtime.hypervisor.effects import CloseDoorbell, Effect
from runtime.hypervisor.machine import ROOT_FAILURES_MAX, RootFailurePolicy
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.program import Process
from runtime.hypervisor.replies import Reply
from runtime.simulation.accounts import EVERYBODY, Accounts
from runtime.simulation.actions import ROOT_LABEL, Action, ActionKind
from runtime.simulation.mail import Mail
from runtime.simulation.touched import TouchedPartitions
from runtime.simulation.violation import Violation, hold
from runtime.simulation.world import World

MEMORY_PAGES: Final = 1 << 20
FULL_CHECK_STEPS: Final = 2_000  # between two looks at everything; what a step touched is looked at after it
_TOLD_AT_ONCE: Final = 64
_KINDS: Final = {kind: kind.value for kind in ActionKind}
_NEVER: Final = 2**63
_FIRST_PID: Final = 1_000
_DIGEST_BYTES: Final = 8
_SUCCESS: Final = HvStatus.SUCCESS
# A call that asks the host for two things gives the first back when there is no second.
_UNDOING: Final = frozenset({CloseDoorbell})


def _or_never(when_ns: int | None) -> int:
    return _NEVER if when_ns is None else when_ns


class Simulation:
    """One machine, from its root's adoption on."""

    def __init__(
        self, policy: RootFailurePolicy = RootFailurePolicy.STANDBY, *, every_step: bool = True
    ) -> None:
        """`every_step`: keep books and a digest, and look at the books after each step; else whoever runs this looks,
        now and then."""
        self._every_step = every_step
        self.world: Final = World()
        self.hypervisor: Final = Hypervisor(self.world, self.world, policy)
        self.machine: Final = self.hypervisor.machine
        self.table: Final = TouchedPartitions()
        self.machine.partitions = self.table
        self.labels: dict[str, int] = {ROOT_LABEL: ROOT_PARTITION}
        self._labels_by_id: dict[int, str] = {ROOT_PARTITION: ROOT_LABEL}
        self.steps = 0  # actions that did something
        self.inputs = 0  # hypercalls and reports that the state machine answered
        self.refusals = 0
        self.statuses: set[tuple[int, HvStatus]] = set()  # (call code, status) that came up
        self._told: list[str] = []  # not yet in the digest
        self._digest: Final = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        self.mail: Final = Mail(self.world)
        effects = self.hypervisor.adopt_root("root", MEMORY_PAGES, {}, _FIRST_PID, 0, successor_files=1)
        self.world.carry_out(effects)
        self.world.root_files = 1
        self.accounts: Final = Accounts(self.machine, self.table, self.world, self.mail)

    @property
    def digest(self) -> str:
        """Of all actions so far and what came of them."""
        self._tell()
        return self._digest.hexdigest()

    def partition(self, label: str) -> Partition | None:
        """Who bears a label and is still there. Leaves no trace."""
        return dict.get(self.table, self.labels.get(label, 0))

    def label_of(self, identity: int) -> str:
        return self._labels_by_id[identity]

    def perform(self, action: Action) -> Reply | None:
        """One action; whatever it names that is not there, it leaves alone. Returns a call's reply.

        Raises: Violation.
        """
        if self.world.halted is not None and action.kind is not ActionKind.END:
            return None
        return _PERFORM[action.kind](self, action)

    # -- actions -------------------------------------------------------------------------------------------

    def _call(self, action: Action) -> Reply | None:
        caller = self.labels.get(action.who)
        if caller is None or self._is_mute(caller):
            return None
        args, named = action.args, [caller]
        if type(args) is dict:
            args = dict(args)
            for name, value in args.items():
                if type(value) is str:
                    if value not in self.labels:
                        return None
                    args[name] = value = self.labels[value]
                    named.append(value)
        self._begin(action.fail_at)
        try:
            reply, effects = self.hypervisor.handle(
                caller, action.code, args, action.files, self.world.now_ns
            )
        except Violation:
            raise
        except Exception as error:
            raise Violation(
                f"the state machine raised {type(error).__name__}", f"{error!r} at {action}"
            ) from error
        self.world.fail_at = 0
        refused = False
        if reply.status is HvStatus.CALL_PENDING:
            self.world.pending[caller] += 1
        elif reply.status is _SUCCESS:
            self._note(action, caller, args, reply)
        else:
            hold(not reply.values and not reply.handles, "a refusal that says more", reply)
            self.refusals += 1
            # A post that finds the port full has first tried to make room: what waited may have been delivered.
            refused = reply.status is not HvStatus.INSUFFICIENT_BUFFERS
            undoes = reply.status is HvStatus.INSUFFICIENT_MEMORY and _UNDOING.issuperset(map(type, effects))
            hold(not refused or not effects or undoes, "a refusal with effects", effects)
        if type(action.code) is int:
            self.statuses.add((action.code, reply.status))
        self._end(action, named, effects, reply, refused=refused)
        return reply

    def _is_mute(self, caller: int) -> bool:
        """It waits for an answer; or its process has ended, and its socket with it, though the partition lives on."""
        partition = dict.get(self.table, caller)
        return bool(self.world.pending.get(caller)) or (
            partition is not None and partition.process is Process.ENDED
        )

    def _note(self, action: Action, caller: int, args: Any, reply: Reply) -> None:
        """What the models must know of a call that was granted, before its deliveries are looked at."""
        code = action.code
        if code == HypercallCode.POST_MESSAGE:
            connection = dict.__getitem__(self.table, caller).connections[args["connection"]]
            owner = dict.__getitem__(self.table, connection.port_partition)
            assert connection.port is not None
            assert owner.ports[connection.port].type is PortType.MESSAGE
            self.mail.accept(owner.id, connection.port, args["payload"])
        elif code == HypercallCode.POST_MESSAGE_DIRECT:
            self.mail.is_direct = True
        elif code == HypercallCode.CREATE_PARTITION:
            hold(action.label not in self.labels, "a schedule gives each label once", action.label)
            child: Any = reply.values["partition"]
            label = action.label or f"#{child}"
            self.labels[label], self._labels_by_id[child] = child, label
        elif code == HypercallCode.SET_VP_REGISTERS:
            target = dict.__getitem__(self.table, args.get("partition", caller))
            vp = target.vps[args["vp"]]
            for name, _ in args["registers"]:
                if name == RegisterName.EOM and vp.takes_messages:
                    self.mail.signal_end_of_message((target.id, vp.index))
        elif code == HypercallCode.GET_BIRTH and reply.values["files"]:
            del self.world.files[caller]  # handed over

    def _receive(self, action: Action) -> None:
        if (identity := self.labels.get(action.who)) is not None:
            self.mail.receive((identity, action.number))
            pages = self.world.vps.get(identity, {}).get(action.number)
            if pages is not None:
                pages[1][:] = bytes(len(pages[1]))
            self._record(action)

    def _started(self, action: Action) -> None:
        identity = self.labels.get(action.who, 0)
        if identity not in self.world.starting:
            return
        self._begin()
        del self.world.starting[identity]
        self.world.running.add(identity)
        self._report(
            action,
            identity,
            lambda: self.hypervisor.process_started(identity, _FIRST_PID + identity, self.world.now_ns),
        )

    def _exited(self, action: Action) -> None:
        identity, world = self.labels.get(action.who, 0), self.world
        if identity not in world.starting and identity not in world.running:
            return
        self._begin()
        world.starting.pop(identity, None)
        world.running.discard(identity)
        world.doomed.pop(identity, None)
        world.stopped.discard(identity)
        world.pending.pop(identity, None)  # nobody is there to be answered
        is_first_root = identity == ROOT_PARTITION and self.machine.root_generation == 1
        status = None if is_first_root else ExitStatus(action.number, None)  # that one is another's child
        whose = EVERYBODY if self.machine.rebooting else identity
        generation = self.machine.root_generation

        def report() -> list[Effect]:
            was_rebooting = self.machine.rebooting
            effects = self.hypervisor.process_exited(identity, status, "ended", world.now_ns)
            if was_rebooting and self.machine.root_generation != generation:
                self.mail.wipe((ROOT_PARTITION, 0))
            return effects

        self._report(action, whose, report)

    def _reboot(self, action: Action) -> None:
        """The root is killed for it; what follows, follows from its end."""
        self._begin()
        self.hypervisor.begin_reboot()
        self._report(action, EVERYBODY, lambda: self.hypervisor.kill(ROOT_PARTITION))

    def _kill(self, action: Action) -> None:
        identity = self.labels.get(action.who, 0)
        if identity in dict.keys(self.table):
            self._begin()
            self._report(action, identity, lambda: self.hypervisor.kill(identity))

    def _advance(self, action: Action) -> None:
        """Time passes, and every timer that is due goes off in order."""
        world = self.world
        until_ns = world.now_ns + action.number * 1_000_000
        while world.halted is None and (due := self._next_timer()) is not None and due[0] <= until_ns:
            world.now_ns = max(due[0], world.now_ns)
            self._begin()
            self._report(action, due[1], due[2])
        world.now_ns = until_ns
        self._record(action)

    def _next_timer(self) -> tuple[int, int, Callable[[], list[Effect]]] | None:
        """(when, whose, what to report): the first that is due, and it is taken off the list when reported."""
        world, hypervisor = self.world, self.hypervisor
        heartbeat_ns = min(world.timers_ns.values(), default=_NEVER)
        others_ns = min(_or_never(world.vp_timer_ns), _or_never(world.statistics_timer_ns))
        if min(heartbeat_ns, others_ns) == _NEVER:
            return None
        if heartbeat_ns <= others_ns:
            who = min(who for who, when_ns in world.timers_ns.items() if when_ns == heartbeat_ns)

            def heartbeat() -> list[Effect]:
                del world.timers_ns[who]
                return hypervisor.heartbeat_due(who, world.now_ns)

            return heartbeat_ns, who, heartbeat
        if others_ns == world.vp_timer_ns:

            def timers() -> list[Effect]:
                world.vp_timer_ns = None
                return hypervisor.timers_due(world.now_ns)

            return others_ns, EVERYBODY, timers

        def statistics() -> list[Effect]:
            world.statistics_timer_ns = None
            return hypervisor.statistics_due(world.now_ns)

        return others_ns, EVERYBODY, statistics

    def break_on_purpose(self, act: Callable[[], object]) -> None:
        """Arm or heal faults of the state machine's own. Raises whatever `act` raises; then nothing is different."""
        action = Action(ActionKind.ADVANCE)
        self._begin()
        act()
        self._report(action, EVERYBODY, lambda: self.hypervisor.break_on_purpose(_nothing, self.world.now_ns))

    def _take_down(self, action: Action) -> None:
        """The root finalizes and deletes whoever is left. Then it has every page back, and nothing else is there."""
        world, root = self.world, dict.__getitem__(self.table, ROOT_PARTITION)
        if world.halted is not None:
            self.accounts.check_all()
            return
        for child in list(root.children):
            self._take_down_child(child)
        for identity in [*world.starting, *sorted(world.running - {ROOT_PARTITION})]:
            if identity != ROOT_PARTITION:
                self._exited(Action(ActionKind.EXITED, self.label_of(identity)))
        for child in list(root.children):
            self._must(HypercallCode.DELETE_PARTITION, child)
        self.accounts.check_all()
        hold(dict.keys(self.table) == {ROOT_PARTITION}, "partitions that nobody can end")
        hold(root.pool.available + root.pool.in_use == MEMORY_PAGES, "pages lost")
        left = (world.vps.keys() | world.files.keys() | world.watches) - {ROOT_PARTITION}
        hold(not any(world.vps.get(each) for each in left), "resources left behind", left)
        self._record(action)

    def _take_down_child(self, child: int) -> None:
        partition = dict.__getitem__(self.table, child)
        if partition.state is PartitionState.UNINITIALIZED:
            if partition.pool.available:
                self._must(HypercallCode.WITHDRAW_MEMORY, child, pages=partition.pool.available)
        elif partition.state is PartitionState.ACTIVE:
            self._must(HypercallCode.FINALIZE_PARTITION, child)

    def _must(self, code: HypercallCode, child: int, **args: object) -> None:
        values = {"partition": self.label_of(child), **args}
        reply = self._call(Action(ActionKind.CALL, code=int(code), args=values))
        hold(reply is not None and reply.status is _SUCCESS, "the root cannot end a child", (code, reply))

    # -- around each input ---------------------------------------------------------------------------------

    def _begin(self, fail_at: int = 0) -> None:
        self.world.begin_step(fail_at)
        self.mail.is_direct = False
        self.table.forget()

    def _report(self, action: Action, identity: int, report: Callable[[], list[Effect]]) -> None:
        try:
            effects = report()
        except Exception as error:
            raise Violation(
                f"the state machine raised {type(error).__name__}", f"{error!r} at {action}"
            ) from error
        self._end(action, [identity], effects, None, refused=False)

    def _end(
        self,
        action: Action,
        named: Iterable[int],
        effects: list[Effect],
        reply: Reply | None,
        *,
        refused: bool,
    ) -> None:
        if effects:
            self.world.carry_out(effects, action.files)
        if self._every_step:
            self.accounts.close_step(named, refused=refused)
        else:
            self.mail.check_deliveries(self.table)
            self.table.forget()
        if self.world.halted is not None:
            failures = len(self.machine.root_failures_ns)
            wanted = self.machine.on_root_failure is RootFailurePolicy.HALT
            hold(wanted or failures > ROOT_FAILURES_MAX or not self.machine.root_is_up, "halt for no reason")
        self.inputs += 1
        if self._every_step and self.inputs % FULL_CHECK_STEPS == 0:
            self.accounts.check_all()
        self._record(action, effects, reply)

    def _record(self, action: Action, effects: object = None, reply: Reply | None = None) -> None:
        self.steps += 1
        if not self._every_step:  # whoever runs this has a digest of its own
            return
        said = "" if reply is None else f"{int(reply.status)} {reply.values or ''}"
        self._told.append(f"{_KINDS[action.kind]} {action.who} {action.code} {said} {effects or ''}\n")
        if len(self._told) >= _TOLD_AT_ONCE:
            self._tell()

    def _tell(self) -> None:
        self._digest.update("".join(self._told).encode())
        self._told.clear()


def _nothing() -> None:
    """Only what has come due, and what follows."""


_PERFORM: Final[Mapping[ActionKind, Callable[[Simulation, Action], Reply | None]]] = MappingProxyType(
    {
        ActionKind.CALL: Simulation._call,
        ActionKind.RECEIVE: Simulation._receive,
        ActionKind.STARTED: Simulation._started,
        ActionKind.EXITED: Simulation._exited,
        ActionKind.KILL: Simulation._kill,
        ActionKind.REBOOT: Simulation._reboot,
        ActionKind.ADVANCE: Simulation._advance,
        ActionKind.END: Simulation._take_down,
    }
)
