"""Time that the hypervisor spends on partitions: counted as theirs, and no more than a cap. With a clock of ours."""

import socket
from collections.abc import Iterator

import pytest

from runtime.abi import PartitionProperty
from runtime.hypervisor.loop import Loop
from runtime.hypervisor.partition import Partition
from runtime.hypervisor.scheduling import Policy
from runtime.hypervisor.scheduling_account import Member, Sample
from runtime.hypervisor.scheduling_shares import DEFAULT_SHARES, Shares
from runtime.hypervisor.service_time import LENT_NS, UNLIMITED_NS, ServiceTime
from runtime.hypervisor.sockets import PartitionSockets
from tests.runtime.hypervisor_world import World

CAPPED, FREE = 2, 3
MS = 1_000_000


class Counted:
    def __init__(self) -> None:
        self.machine = World().hypervisor.machine
        for number in (CAPPED, FREE):
            self.machine.partitions[number] = Partition(number, 1, 1, 0)
        self.machine.partitions[CAPPED].properties[PartitionProperty.CPU_CAP] = 0x10000 // 10
        self.now_ns = 0
        self.service = ServiceTime(self.machine, lambda: self.now_ns)

    def serve(self, caller: int, spent_ns: int) -> tuple[int, int] | None:
        self.now_ns += spent_ns
        return self.service.served(caller)


@pytest.fixture
def counted() -> Counted:
    return Counted()


def test_nothing_is_counted_while_the_scheduler_sleeps(counted: Counted) -> None:
    assert counted.serve(CAPPED, 10**12) is None
    assert counted.service.take() == {}
    counted.service.count(True)
    assert counted.serve(FREE, 5) is None
    counted.service.count(False)
    assert counted.service.take() == {}


def test_each_pays_for_what_it_caused_and_nobody_for_the_scheduler(counted: Counted) -> None:
    counted.service.count(True)
    counted.serve(FREE, 3)
    counted.now_ns += 100
    counted.service.mark()
    counted.serve(CAPPED, 4)
    counted.serve(1, 50)  # the root's own
    counted.machine.served_for = FREE  # an answer of the root's, to an access of this one's
    counted.serve(1, 7)
    assert counted.machine.served_for == 0
    assert counted.service.take() == {FREE: 10, CAPPED: 4}
    assert counted.service.take() == {}


def test_who_has_a_cap_rests_and_who_has_none_does_not(counted: Counted) -> None:
    counted.service.count(True)
    assert counted.serve(FREE, 10**9) is None
    debts = [counted.serve(CAPPED, 10 * MS) for _ in range(3)]
    assert debts[-1] is not None
    who, rest_ns = debts[-1]
    assert who == CAPPED
    assert rest_ns > 30 * MS  # a tenth: three turns are paid for by ten times as much, less the burst
    assert counted.service.allowance_ns(CAPPED) == LENT_NS
    assert counted.service.allowance_ns(FREE) == UNLIMITED_NS


def test_what_a_parent_did_for_its_child_is_the_childs_once_and_only_where_it_has_a_cap(
    counted: Counted,
) -> None:
    counted.service.count(True)
    counted.machine.worked_ns[CAPPED] = 10 * MS  # as the parent says, by a call that is about this one
    counted.machine.served_for = CAPPED
    assert counted.serve(1, 1) is not None, "in debt: its own calls wait"
    assert counted.machine.worked_ns == {}
    assert counted.service.take() == {CAPPED: 10 * MS + 1}
    counted.service.look({CAPPED: 0}, MS, is_yielding=False)
    assert counted.machine.capped_ns == {CAPPED: 10 * MS + 1}, "others who serve it hear of it"
    counted.machine.worked_ns[CAPPED] = 1
    counted.machine.partitions[CAPPED].properties[PartitionProperty.CPU_CAP] = 0x10000
    counted.service.count(True)
    assert counted.machine.worked_ns == {}


def test_what_the_host_took_from_calls_without_python_is_nobodys(counted: Counted) -> None:
    counted.service.count(True)
    counted.now_ns += 10
    counted.service.served_without_python({FREE: 60, CAPPED: 40})  # by the wall's clock; ten is what we had
    assert counted.service.take() == {FREE: 6, CAPPED: 4}


def charged_ns(counted: Counted) -> int:
    return int(counted.service._budgets[CAPPED].statistics()["served_ns"])


def test_what_one_with_a_cap_has_had_is_its_own_time_and_ours_and_of_others_nothing_is_kept(
    counted: Counted,
) -> None:
    counted.service.count(True)
    assert list(counted.service.capped) == [CAPPED]
    counted.service.look({CAPPED: 1000, FREE: 1000}, MS, is_yielding=False)
    counted.serve(CAPPED, 7)
    counted.serve(FREE, 7)
    assert counted.service.look({CAPPED: 1030, FREE: 1030}, MS, is_yielding=False)
    assert counted.machine.capped_ns == {CAPPED: 37}
    assert counted.service.look({CAPPED: 4}, MS, is_yielding=False) is False  # another process of it
    assert counted.service.look({}, MS, is_yielding=False) is False  # none
    counted.service.look({CAPPED: 9}, MS, is_yielding=False)
    assert counted.machine.capped_ns == {CAPPED: 42}
    assert charged_ns(counted) == 7
    counted.machine.partitions[CAPPED].properties[PartitionProperty.CPU_CAP] = 0x10000
    counted.service.count(True)
    assert counted.machine.capped_ns == {}


def test_where_nobody_takes_our_time_off_its_own_its_own_is_taken_off_ours(counted: Counted) -> None:
    counted.service.count(True)
    counted.service.look({CAPPED: 0}, 50 * MS, is_yielding=True)
    counted.service.look({CAPPED: MS}, 50 * MS, is_yielding=True)
    assert charged_ns(counted) == MS
    counted.service.look({CAPPED: 50 * MS}, 50 * MS, is_yielding=True)  # it burns all that it can get
    assert charged_ns(counted) < 5 * MS


class _Ends:
    """One partition's socket, whose every call puts it in debt."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.loop, self.served = Loop(), 0
        self.sockets = PartitionSockets(self.loop, self._serve)
        self.sockets.add(CAPPED, self.ours)

    def _serve(self, partition: int) -> None:
        sock = self.sockets.readable(partition)
        assert sock is not None
        assert sock.recv(10)
        self.served += 1


@pytest.fixture
def ends() -> Iterator[_Ends]:
    both = _Ends()
    yield both
    both.theirs.close()


def test_a_call_of_one_in_debt_waits_and_does_not_keep_the_loop_awake(ends: _Ends) -> None:
    ends.sockets.rest(CAPPED, 10**12)
    ends.theirs.send(b"1")
    for _ in range(3):
        ends.loop.run_once(0)
    assert ends.served == 0
    assert ends.sockets.rests(CAPPED)
    assert ends.loop._epoll.poll(0) == []
    ends.sockets.rest(CAPPED, 0)  # the debt is another
    while ends.served == 0:
        ends.loop.run_once(10)
    assert not ends.sockets.rests(CAPPED)
    ends.sockets.close(CAPPED)


def test_an_answer_that_was_waited_for_still_comes_and_the_next_call_waits(ends: _Ends) -> None:
    ends.sockets.hold(CAPPED)
    ends.sockets.rest(CAPPED, 10**12)
    assert ends.sockets.let_go(CAPPED) is ends.ours
    ends.theirs.send(b"1")
    ends.loop.run_once(0)
    assert ends.served == 0
    ends.sockets.close(CAPPED)  # with what is in it, and its alarm
    assert CAPPED not in ends.sockets
    ends.loop.run_once(0)
    assert not ends.loop._alarms


def test_time_that_others_work_for_it_counts_towards_a_cap() -> None:
    """A partition that hardly runs, and makes the hypervisor run, is held as if it had run."""
    policy = Policy([0])
    policy.set_members(
        [
            Member(CAPPED, None, Shares(DEFAULT_SHARES.weight, 0, 0x10000 // 10), 1, frozenset({0})),
            Member(FREE, None, DEFAULT_SHARES, 1, frozenset({0})),
        ]
    )
    held = 0
    for _ in range(200):
        served = 0 if policy.accounts[CAPPED].held else 8 * MS
        samples = {CAPPED: Sample(MS // 10 if served else 0, 0), FREE: Sample(MS, 0)}
        decision = policy.step(10 * MS, samples, {CAPPED: served})
        held += CAPPED in decision.held
        assert FREE not in decision.held
    assert held / 200 == pytest.approx(1 - 0.1 / 0.81, abs=0.06)


def test_service_makes_a_partition_that_runs_little_no_burner() -> None:
    """What it wants is judged by what it runs: it is not held for others as one that would take all there is."""
    policy = Policy([0])
    policy.set_members([Member(number, None, DEFAULT_SHARES, 1, frozenset({0})) for number in (2, 3)])
    for _ in range(300):
        decision = policy.step(10 * MS, {2: Sample(2 * MS, 0), 3: Sample(3 * MS, 0)}, {2: 3 * MS})
        assert not decision.held
