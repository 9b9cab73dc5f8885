"""Calls that are answered later: real sockets, a real broker, a guest that waits for its port accesses."""

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from bus import native
from bus.intercept_messages import InterceptAccess, PortIntercept
from runtime.abi import HvStatus, HypercallError, InterceptType, PartitionState
from runtime.hypervisor.loop import Loop
from runtime.hypervisor.sockets import PartitionSockets
from tests.runtime.broker_process import BrokerProcess, broker_process, is_alive, wait_readable, wait_until

_PORT = 0x3F8


@pytest.fixture
def broker() -> Iterator[BrokerProcess]:
    with broker_process() as running:
        running.port.enable_synic(0, [0])
        yield running


def _intercept(broker: BrokerProcess) -> tuple[int, PortIntercept]:
    """The next one that its parent is told of: (child, message)."""
    while (message := native.synic_take(broker.sim, 0)) is None:
        wait_readable(broker.line_fd)
        os.read(broker.line_fd, 8)
    if message[3]:
        broker.port.end_of_message(0)
    return message[1], PortIntercept.decode(message[2])


def _spawn(broker: BrokerProcess, count: int) -> int:
    """A guest that reads from port 3F9 and writes what it got to 3F8; its exit code is what it read last."""
    child = broker.spawn("access ports", count=count, links=False, start=False)
    broker.port.intercept_ports(child, _PORT, _PORT + 7)
    broker.port.start_vp(child)
    return child


def test_each_access_waits_for_its_own_answer(broker: BrokerProcess) -> None:
    children = [_spawn(broker, 20) for _ in range(3)]
    said: dict[int, list[int]] = {child: [] for child in children}
    for _ in range(3 * 40):
        child, message = _intercept(broker)
        if message.header.access is InterceptAccess.WRITE:
            said[child].append(message.rax)
        answer = (child * 31 + len(said[child])) % 256
        broker.port.complete_intercept(child, 0, InterceptType.IO_PORT, answer)
    for child in children:
        answers = [(child * 31 + turn) % 256 for turn in range(1, 21)]
        assert said[child] == [0, *answers[:-1]]
        wait_until(lambda child=child: broker.port.get_state(child) is PartitionState.FINALIZED)
        status = broker.port.get_exit_status(child)
        assert status is not None
        assert status.code == answers[-1]


def test_a_partition_that_waits_can_be_killed_and_everybody_else_goes_on(broker: BrokerProcess) -> None:
    waiting, other = _spawn(broker, 1), _spawn(broker, 1)
    for _ in range(2):
        _intercept(broker)
    broker.port.finalize(waiting)
    wait_until(lambda: broker.port.get_state(waiting) is PartitionState.FINALIZED)
    with pytest.raises(HypercallError) as refused:
        broker.port.complete_intercept(waiting, 0, InterceptType.IO_PORT)
    assert refused.value.status is HvStatus.INVALID_PARTITION_STATE
    broker.port.complete_intercept(other, 0, InterceptType.IO_PORT)
    assert _intercept(broker)[0] == other


def test_a_process_that_dies_while_it_waits_is_reaped_like_any_other(broker: BrokerProcess) -> None:
    child = _spawn(broker, 1)
    _intercept(broker)
    pid = int(broker.event("partition.started", id=child)["pid"])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))
    assert broker.event("partition.exited", id=child)["signal"] == signal.SIGKILL
    with pytest.raises(HypercallError):
        broker.port.complete_intercept(child, 0, InterceptType.IO_PORT)


class _Ends:
    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.loop, self.served = Loop(), 0
        self.sockets = PartitionSockets(self.loop, self._serve)
        self.sockets.add(2, self.ours)

    def _serve(self, partition: int) -> None:
        sock = self.sockets.readable(partition)
        assert sock is not None
        assert sock.recv(10)
        self.served += 1


def test_who_calls_again_before_its_answer_waits_and_does_not_keep_the_loop_awake() -> None:
    ends = _Ends()
    ends.theirs.send(b"1")
    ends.loop.run_once(0)
    assert ends.served == 1
    ends.sockets.hold(2)
    ends.theirs.send(b"2")
    for _ in range(3):
        ends.loop.run_once(0)
    assert ends.served == 1
    assert ends.loop._epoll.poll(0) == []  # it sleeps, though something is there
    assert ends.sockets.let_go(2) is ends.ours
    assert ends.sockets.let_go(2) is None
    ends.loop.run_once(0)
    assert ends.served == 2
    ends.sockets.close(2)
    ends.theirs.close()


@pytest.mark.parametrize("was_woken", [False, True])
def test_a_socket_that_is_held_can_be_closed(was_woken: bool) -> None:
    ends = _Ends()
    ends.sockets.hold(2)
    if was_woken:
        ends.theirs.close()
        ends.loop.run_once(0)
    ends.sockets.close(2)
    assert 2 not in ends.sockets
    assert ends.sockets.let_go(2) is None
    assert ends.sockets.readable(2) is None
    ends.loop.run_once(0)
    ends.theirs.close()
