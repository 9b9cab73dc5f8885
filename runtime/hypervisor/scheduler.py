"""The scheduler of one machine: looks at the partitions, measures them, asks the policy, has a mechanism act.

It sleeps until some partition has a weight, reserve or cap of its own. Then every partition but the root is
scheduled; the root, the broker and the platform never are, so whoever could mend something can always run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from bus.yielded_time import QUIET_INTERVAL_MS, USE_INTERVAL_MS
from runtime.abi import ROOT_PARTITION, WHOLE_PROCESSOR, PartitionProperty
from runtime.hypervisor import heartbeat
from runtime.hypervisor.cpu_time import CpuMeter, cpu_ns
from runtime.hypervisor.loop import Loop, now_ns
from runtime.hypervisor.machine import Machine
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.processes import WatchedProcess
from runtime.hypervisor.program import Process
from runtime.hypervisor.scheduling import Policy
from runtime.hypervisor.scheduling_account import Member
from runtime.hypervisor.scheduling_cgroups import Cgroups, can_do, places
from runtime.hypervisor.scheduling_mechanisms import Mechanism, MechanismFailed, SchedulerKind, Signals
from runtime.hypervisor.scheduling_shares import DEFAULT_SHARES, Shares
from runtime.hypervisor.service_time import ServiceTime

BOOKS_NS: Final = 100_000_000  # between two looks where the kernel does the scheduling
_AFFINITY_NS: Final = 1_000_000_000  # between two looks at where processes may run
_YOUNG_NS: Final = (
    5_000_000_000  # of its life, in which a process that starts binds itself: we look at each step
)
_ALARM: Final = "scheduler"
_USE_ALARM: Final = "use of those with a cap"
_PROPERTIES: Final = (PartitionProperty.CPU_WEIGHT, PartitionProperty.CPU_RESERVE, PartitionProperty.CPU_CAP)


class Scheduler:
    """Owned by the broker, which reports what changed. Costs nothing while there is nothing to schedule."""

    def __init__(
        self, loop: Loop, machine: Machine, kind: SchedulerKind, service: ServiceTime | None = None
    ) -> None:
        self._loop, self._machine, self._kind = loop, machine, kind
        self._service = service or ServiceTime(machine)
        self._mechanism: Mechanism | None = None
        self._policy: Policy | None = None
        self._processes: dict[int, WatchedProcess] = {}  # of partitions but the root; the pidfds are ours
        self._meters: dict[int, CpuMeter] = {}
        self._stopped_by_hand: set[int] = set()  # by the platform
        self._not_ours: set[int] = set()  # stopped by hand or suspended by its parent: not ours to continue
        self._affinity: dict[int, frozenset[int]] = {}
        self._young: dict[int, int] = {}  # until when
        self._confined: Mapping[int, tuple[int, ...]] = {}
        self._stepped_ns = self._looked_ns = 0
        self._used_ns: int | None = (
            None  # when the use of those with a cap was looked at; None: nobody has one
        )
        self._seen_version = 0
        self._failure: str | None = None  # why a mechanism that was asked for is not there
        self._closed = False

    # -- what may have changed

    def notice(self) -> None:
        """After anything that may have changed partitions, their processes or properties. Cheap."""
        if self._seen_version != self._machine.scheduling_version and not self._closed:
            self._seen_version = self._machine.scheduling_version
            self._refresh()

    def _refresh(self) -> None:
        if not any(shares_of(partition) != DEFAULT_SHARES for partition in self._machine.partitions.values()):
            self._end()
            return
        if self._policy is None:
            self._policy = Policy(os.sched_getaffinity(0))
            self._stepped_ns = now_ns()
            self._loop.alarm_at(_ALARM, self._stepped_ns, self._step)
        self._look(self._policy)

    def signalled(self, partition: int, signal_number: int) -> None:
        """The platform sent it a signal. One that was stopped stays so; any other must hear what it was sent."""
        if signal_number == signal.SIGSTOP:
            self._stopped_by_hand.add(partition)
        elif signal_number == signal.SIGCONT:
            self._stopped_by_hand.discard(partition)
        if self._policy is not None:
            self._look(self._policy)
            if partition in self._processes and partition not in self._not_ours:
                self._processes[partition].kill(signal.SIGCONT)

    def end(self) -> None:
        """The machine goes down: everybody runs, for good."""
        self._closed = True
        if self._mechanism is not None:
            self._mechanism.let_all()
        self._loop.cancel(_ALARM)
        self._note_held(frozenset())

    def close(self) -> None:
        """Nothing is left behind. Best when the processes are gone."""
        self._closed = True
        self._end()

    # -- the work

    def _end(self) -> None:
        self._loop.cancel(_ALARM)
        self._loop.cancel(_USE_ALARM)
        self._used_ns = None
        if self._mechanism is not None:
            self._mechanism.close()
            self._mechanism = None
        self._note_held(frozenset())
        for partition in list(self._processes):
            self._forget(partition)
        self._policy, self._confined = None, {}
        self._service.count(False)

    def _look(self, policy: Policy) -> None:
        """Who is there, and what may each do."""
        self._looked_ns = now_ns()
        self._look_at_processes()
        self._service.count(True)
        self._affinity = {each: self._processors_of(each, policy) for each in self._processes}
        members = self._members(policy)
        policy.set_members(members)
        self._use_mechanism(members)
        if self._used_ns is None and self._service.capped:
            self._used_ns = now_ns()
            self._look_at_use()

    def _look_at_use(self) -> None:
        """Of those with a cap, for all who work for them."""
        now, capped = now_ns(), self._service.capped
        if not capped or self._used_ns is None:
            self._used_ns = None
            return
        own = {each: cpu_ns(self._processes[each].pid) for each in capped if each in self._processes}
        is_yielding = self._mechanism is not None and not self._mechanism.needs_slices
        known = {each: ns for each, ns in own.items() if ns is not None}
        is_busy = self._service.look(known, now - self._used_ns, is_yielding=is_yielding)
        pause_ms = USE_INTERVAL_MS if is_busy else QUIET_INTERVAL_MS
        self._used_ns = now
        self._loop.alarm_at(_USE_ALARM, now + pause_ms * 1_000_000, self._look_at_use)
        self._service.mark()

    def _look_at_processes(self) -> None:
        partitions = self._machine.partitions
        pids = {
            each.id: each.pid
            for each in partitions.values()
            if each.id != ROOT_PARTITION
            and each.process is Process.RUNNING
            and each.pid
            not in (None, os.getpid())  # a driver that was loaded into ourselves is not to be held
        }
        for partition, process in list(self._processes.items()):
            if pids.get(partition) != process.pid:
                self._forget(partition)
        for partition, pid in pids.items():
            if partition not in self._processes:
                with contextlib.suppress(OSError):  # no descriptor left: not scheduled until there is one
                    self._processes[partition] = WatchedProcess(partition, pid, os.pidfd_open(pid))
                    self._meters[partition] = CpuMeter(pid)
                    self._young[partition] = self._looked_ns + _YOUNG_NS
        self._stopped_by_hand &= pids.keys()
        self._not_ours = self._stopped_by_hand | self._suspended()

    def _suspended(self) -> set[int]:
        return {
            each for each in self._processes if (one := self._machine.partitions.get(each)) and one.suspended
        }

    def _forget(self, partition: int) -> None:
        if self._mechanism is not None:
            self._mechanism.forget(partition)
        self._processes.pop(partition).close()
        if (meter := self._meters.pop(partition, None)) is not None:
            meter.close()
        self._affinity.pop(partition, None)
        self._young.pop(partition, None)

    def _members(self, policy: Policy) -> list[Member]:
        partitions = self._machine.partitions
        there = self._processes.keys() & partitions.keys()
        kept = set(there)
        for each in there:
            while (parent := partitions[each].parent) not in (None, ROOT_PARTITION):
                assert parent is not None
                kept.add(parent)
                each = parent
        return [
            Member(
                id=each,
                parent=None if partitions[each].parent == ROOT_PARTITION else partitions[each].parent,
                shares=shares_of(partitions[each]),
                vps=max(len(partitions[each].vps), 1),
                processors=self._affinity.get(each, policy.processors),
                has_work=each in there and each not in self._not_ours,
            )
            for each in sorted(kept)
        ]

    def _processors_of(self, partition: int, policy: Policy) -> frozenset[int]:
        """What its process has bound itself to, as its configuration said."""
        known = self._affinity.get(partition)
        if known is None or partition not in self._confined:
            with contextlib.suppress(OSError):
                allowed = os.sched_getaffinity(self._processes[partition].pid)
                known = frozenset(allowed) & policy.processors or policy.processors
        return known or policy.processors

    def _use_mechanism(self, members: Sequence[Member]) -> None:
        """The one there is, unless it cannot do what is asked now."""
        everything = [member.shares for member in members]
        if isinstance(self._mechanism, Cgroups) and not all(map(can_do, everything)):
            self._change_mechanism(Signals())
        if self._mechanism is None:
            self._change_mechanism(self._choose(everything))
        assert self._mechanism is not None
        try:
            self._mechanism.set_members(members, self._processes)
        except MechanismFailed as error:
            self._failure = str(error)
            self._change_mechanism(Signals())
            self._mechanism.set_members(members, self._processes)

    def _change_mechanism(self, other: Mechanism) -> None:
        if self._mechanism is not None:
            self._mechanism.close()
        self._mechanism = other

    def _choose(self, everything: Iterable[Shares]) -> Mechanism:
        self._failure = None
        if self._kind is SchedulerKind.SIGNALS or not all(map(can_do, everything)):
            return Signals()
        for kind, place in places():
            if self._kind in (SchedulerKind.AUTO, kind):
                try:
                    return Cgroups(kind, place)
                except MechanismFailed as error:
                    self._failure = str(error)
        if self._kind is not SchedulerKind.AUTO:
            self._failure = self._failure or f"{self._kind.value}: no cpu controller that we may use"
        return Signals()

    def _step(self) -> None:
        self.notice()  # of what came in the same round of the loop
        policy, mechanism = self._policy, self._mechanism
        if policy is None or mechanism is None:
            return
        now = now_ns()
        if now - self._looked_ns > _AFFINITY_NS or self._has_changed(policy, now):
            self._look(policy)
            mechanism = self._mechanism
            assert mechanism is not None
        elapsed_ns = max(now - self._stepped_ns, 1)
        samples = {
            partition: meter.sample(elapsed_ns)
            for partition, meter in self._meters.items()
            if not (mechanism.needs_slices and self._is_at_rest(partition))
        }
        decision = policy.step(elapsed_ns, samples, self._service.take())
        self._stepped_ns = now
        if mechanism.needs_slices:
            mechanism.carry_out(decision)
            self._confined = decision.confined
            self._note_held(decision.held)
            delay_ns = decision.next_ns
        else:
            policy.let_all()
            delay_ns = BOOKS_NS
        self._loop.alarm_at(_ALARM, now + delay_ns, self._step)
        self._service.mark()

    def _has_changed(self, policy: Policy, now: int) -> bool:
        """What nobody reports: somebody is suspended or goes on, a young process has bound itself to processors."""
        if self._stopped_by_hand | self._suspended() != self._not_ours:
            return True
        for partition, until_ns in list(self._young.items()):
            if now > until_ns:
                del self._young[partition]
            elif self._affinity.get(partition) != self._processors_of(partition, policy):
                return True
        return False

    def _is_at_rest(self, partition: int) -> bool:
        """Held since before the last sample: its clock stands still."""
        since_ns = self._machine.partitions[partition].held_since_ns
        return since_ns is not None and since_ns < self._stepped_ns

    def _note_held(self, held: frozenset[int]) -> None:
        now = now_ns()
        for partition in self._processes:
            if (one := self._machine.partitions.get(partition)) is None:
                continue
            if partition in held and one.held_since_ns is None:
                heartbeat.hold(one, now)
            elif partition not in held and one.held_since_ns is not None:
                heartbeat.let(one, now)

    # -- what the platform asks

    def report(self, after: int = 0, count: int = 64) -> dict[str, object]:
        """What each has, wants and should have had, in ns since it is scheduled; the reader takes differences."""
        policy, mechanism = self._policy, self._mechanism
        paths = {each.id: self._machine.path(each) for each in self._machine.partitions.values()}
        ids = sorted(
            each.id
            for each in self._machine.partitions.values()
            if each.id > max(after, ROOT_PARTITION) and each.process is Process.RUNNING
        )
        rows: list[dict[str, object]] = []
        for each in ids[:count]:
            partition = self._machine.partitions[each]
            shares = shares_of(partition)
            account = policy.accounts.get(each) if policy is not None else None
            rows.append(
                {
                    "id": each,
                    "name": paths[each],
                    "weight": shares.weight,
                    "reserve": shares.reserve,
                    "cap": shares.cap,
                    "vps": max(len(partition.vps), 1),
                    "cpus": sorted(self._affinity.get(each, ())),
                    "cpu_ns": cpu_ns(partition.pid),
                    "accounted_ns": account.used_ns if account is not None else None,
                    "due_ns": round(account.due_ns) if account is not None else None,
                    "held": partition.held_since_ns is not None,
                }
            )
        return {
            "mechanism": mechanism.name if mechanism is not None else None,
            "note": self._failure,
            "slice_ns": policy.slice_ns if policy is not None else None,
            "now_ns": now_ns(),
            "broker_cpu_ns": time.process_time_ns(),
            "partitions": rows,
            "more": len(ids) > count,
        }


def shares_of(partition: Partition) -> Shares:
    values = partition.properties
    weight, reserve, cap = (values.get(code) for code in _PROPERTIES)
    return Shares(
        DEFAULT_SHARES.weight if weight is None else weight,
        reserve or 0,
        WHOLE_PROCESSOR if cap is None else cap,
    )
