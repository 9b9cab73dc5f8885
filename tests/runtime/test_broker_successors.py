"""Roots that die under a real broker, and the processes that take their place."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import codec
from runtime.abi import HypervisorGone
from runtime.hypervisor.broker import EXIT_GRACE_MS
from tests.runtime.broker_process import BrokerProcess, broker_process, is_alive, wait_readable, wait_until


@pytest.fixture
def broker() -> Iterator[BrokerProcess]:
    with broker_process(on_root_failure="standby") as running:
        running.port.heartbeat(0)  # the root is up
        yield running


def _warm(broker: BrokerProcess) -> int:
    broker.request("warm", {})
    pid: int = broker.event("root.standby")["pid"]
    return pid


def _kill_root(broker: BrokerProcess) -> None:
    broker.root_process.kill()
    broker.root_process.wait()


def _children(broker: BrokerProcess) -> set[int]:
    text = Path(f"/proc/{broker.process.pid}/task/{broker.process.pid}/children").read_text()
    return {int(word) for word in text.split()}


def _stop_zygote(broker: BrokerProcess) -> int:
    """Before anything was forked it is the broker's one child. From now on spawns are asked for, and not answered."""
    (zygote,) = _children(broker)
    os.kill(zygote, signal.SIGSTOP)
    return zygote


def _root_row(broker: BrokerProcess) -> dict[str, object]:
    row: dict[str, object] = broker.request("show", {"name": "root"})
    return row


# -- the way it goes -----------------------------------------------------------------------------------------


def test_the_standby_becomes_the_root_with_the_same_pages_and_the_firmware(broker: BrokerProcess) -> None:
    """The successor's words come over the very descriptor that the first root's platform lent."""
    standby = _warm(broker)
    vp = broker.birth.vps[0]
    _kill_root(broker)
    born = broker.successor()
    assert (born["pid"], born["partition"], born["args"]) == (standby, 1, {"colour": "blue"})
    assert born["inodes"] == [os.fstat(fd).st_ino for fd in (vp.sim_fd, vp.sief_fd)]
    assert broker.event("partition.exited", name="root")["reason"] == "its process ended"
    assert broker.event("partition.started", name="root")["generation"] == 2
    assert _root_row(broker)["pid"] == standby
    assert broker.tell_root("get_partition_id") == 1


def test_a_standby_that_is_not_wanted_is_answered_nothing(broker: BrokerProcess) -> None:
    """It waits in its first call while others are served, and is no partition."""
    standby = _warm(broker)
    assert [row["name"] for row in broker.request("list", {})["partitions"]] == ["root"]
    broker.firmware.settimeout(0.05)
    with pytest.raises(TimeoutError):
        broker.successor()
    assert is_alive(standby)


def test_the_dead_roots_socket_is_dead_too(broker: BrokerProcess) -> None:
    """Whoever still holds it cannot speak as the root any more."""
    _kill_root(broker)
    broker.successor()
    with pytest.raises(HypervisorGone):
        broker.port.get_partition_id()


def test_restart_forks_the_successor_when_it_is_needed() -> None:
    with broker_process(on_root_failure="restart") as broker:
        broker.port.heartbeat(0)
        _kill_root(broker)
        first = broker.successor()["pid"]
        os.kill(first, signal.SIGKILL)
        assert broker.successor()["pid"] != first
        assert not is_alive(first)


def test_guests_and_their_messages_outlive_the_root(broker: BrokerProcess) -> None:
    """The message port is the dead root's; the page, the line and the order are the next one's."""
    child = broker.spawn("echo")
    assert broker.message() == (child, b"ready")
    pid = broker.event("partition.started", id=child)["pid"]
    broker.post(child, b"before")
    assert broker.message() == (child, b"before")
    _kill_root(broker)
    broker.successor()
    assert is_alive(pid)
    assert broker.tell_root("get_next_child") == child
    assert broker.tell_root("get_posted_messages", port=child) == 2
    broker.tell_root("post_message", connection=child, message_type=1, payload=b"after")
    wait_until(lambda: broker.tell_root("get_posted_messages", port=child) == 3)
    wait_readable(broker.line_fd)  # of the same interrupt line as ever
    broker.tell_root("finalize", partition=child)
    assert broker.event("partition.exited", id=child)["signal"] == signal.SIGKILL


def test_many_roots_one_after_the_other_and_never_two(broker: BrokerProcess) -> None:
    """Killed as soon as it speaks, each with a standby behind it or none; the broker's table stays as it was."""

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{broker.process.pid}/fd"))  # noqa: PTH208 -- only their number

    _kill_root(broker)
    pids = [broker.successor()["pid"]]
    steady = descriptors()
    for number in range(8):
        if number % 2:
            standby = _warm(broker)
        os.kill(pids[-1], signal.SIGKILL)
        pids.append(broker.successor()["pid"])
        assert not number % 2 or pids[-1] == standby
        assert not is_alive(pids[-2])
    assert broker.tell_root("files of a second birth") == 0
    wait_until(lambda: descriptors() <= steady)
    assert len(set(pids)) == len(pids)


def test_a_root_that_retires_makes_room_as_one_that_dies(broker: BrokerProcess) -> None:
    _kill_root(broker)
    for generation in range(3, 20):  # more than would be forgiven as failures
        broker.successor()
        broker.firmware.send(b"\x92\xa6retire\x80")
        broker.event("partition.started", name="root", generation=generation)


# -- hung, not dead ------------------------------------------------------------------------------------------


def test_a_stopped_root_is_killed_when_its_promise_is_broken(broker: BrokerProcess) -> None:
    standby = _warm(broker)
    broker.port.heartbeat(150)
    os.kill(broker.root_process.pid, signal.SIGSTOP)
    born = broker.successor()
    assert not is_alive(broker.root_process.pid)
    assert born["pid"] == standby
    assert broker.root_process.wait(20) == -signal.SIGKILL
    reason = broker.event("partition.exited", name="root")["reason"]
    assert reason == "hung: no heartbeat for 150 ms"


def test_a_stopped_successor_is_replaced_too_and_is_dead_before_the_next_is_born(
    broker: BrokerProcess,
) -> None:
    _kill_root(broker)
    for _ in range(3):
        pid = broker.successor()["pid"]
        codec.send_message(broker.firmware, ["promise, then stop", {"within_ms": 100}])
        broker.event("partition.exited", name="root", reason="hung: no heartbeat for 100 ms")
        assert not is_alive(pid)
    broker.successor()


def test_the_grace_for_a_closed_socket_is_not_taken_out_on_the_successor(broker: BrokerProcess) -> None:
    """A process that ends closes its socket shortly before. Long after it ended, the next one still lives."""
    _kill_root(broker)
    first = broker.successor()["pid"]
    os.kill(first, signal.SIGKILL)
    second = broker.successor()["pid"]
    time.sleep(1.5 * EXIT_GRACE_MS / 1000)
    assert _root_row(broker)["pid"] == second
    assert broker.tell_root("get_partition_id") == 1


def test_a_root_that_closes_its_socket_and_lives_on_is_killed_and_replaced(broker: BrokerProcess) -> None:
    broker.port.close()
    broker.successor()
    assert broker.root_process.wait(20) == -signal.SIGKILL


# -- what can go wrong meanwhile -----------------------------------------------------------------------------


def test_a_standby_that_dies_while_it_waits_is_followed_by_another(broker: BrokerProcess) -> None:
    first = _warm(broker)
    os.kill(first, signal.SIGKILL)
    second = broker.event("root.standby")["pid"]
    assert second != first
    wait_until(lambda: not Path(f"/proc/{first}").exists())  # reaped, not only dead
    _kill_root(broker)
    assert broker.successor()["pid"] == second


def test_sweeping_up_after_a_partition_leaves_the_standby_alone(broker: BrokerProcess) -> None:
    standby = _warm(broker)
    reader, writer = os.pipe()
    child = broker.spawn("leave an orphan", files=[writer])
    os.close(writer)
    orphan = int(os.read(reader, 20))
    os.close(reader)
    broker.event("partition.exited", id=child)
    wait_until(lambda: not is_alive(orphan))
    _kill_root(broker)
    assert broker.successor()["pid"] == standby


def test_a_zygote_that_is_lost_while_a_root_is_being_forked_costs_only_time(broker: BrokerProcess) -> None:
    zygote = _stop_zygote(broker)
    _kill_root(broker)
    broker.event("partition.exited", name="root")
    assert _root_row(broker)["process"] == "starting"
    os.kill(zygote, signal.SIGKILL)
    assert "zygote was lost" in broker.event("partition.exited", name="root")["reason"]
    broker.successor()
    assert zygote not in _children(broker)


def test_a_zygote_that_is_lost_while_a_standby_is_being_forked_costs_only_time(broker: BrokerProcess) -> None:
    zygote = _stop_zygote(broker)
    broker.request("warm", {})
    os.kill(zygote, signal.SIGKILL)
    standby = broker.event("root.standby")["pid"]
    _kill_root(broker)
    assert broker.successor()["pid"] == standby


def test_a_root_killed_while_it_is_being_forked_never_runs_on(broker: BrokerProcess) -> None:
    zygote = _stop_zygote(broker)
    _kill_root(broker)
    broker.event("partition.exited", name="root")
    broker.request("kill", {"name": "root"})
    os.kill(zygote, signal.SIGCONT)
    doomed = broker.event("partition.started", name="root", generation=2)["pid"]
    broker.event("partition.exited", name="root", reason="signal 9")  # and not because it was hung
    assert broker.event("partition.started", name="root", generation=3)["pid"] != doomed
    assert not is_alive(doomed)


def test_roots_that_die_as_fast_as_they_start_take_the_machine_down() -> None:
    with broker_process(on_root_failure="standby", args={"roots": "die at once"}) as broker:
        broker.port.heartbeat(0)
        child = broker.spawn("linger")
        pid = broker.event("partition.started", id=child)["pid"]
        _kill_root(broker)
        halt = broker.event("halt")
        assert halt["reason"].startswith("the root failed ")
        assert not is_alive(pid)
        assert broker.process.wait(20) == 1


# -- the machine's end ---------------------------------------------------------------------------------------


def test_a_stop_ends_root_and_standby_and_nobody_follows(broker: BrokerProcess) -> None:
    _kill_root(broker)
    root = broker.successor()["pid"]
    standby = _warm(broker)
    broker.request("stop", {"grace_ms": 10_000})
    broker.event("partition.exited", name="root", signal=signal.SIGTERM)
    assert broker.event("halt")["reason"] == "stopped"
    assert broker.process.wait(20) == 0
    assert not is_alive(root)
    assert not is_alive(standby)
    assert [fields["pid"] for kind, fields in broker.events if kind == "partition.started"] == [root]


def test_a_machine_whose_platform_is_gone_replaces_nobody(broker: BrokerProcess) -> None:
    standby = _warm(broker)
    broker.power.close()
    assert broker.process.wait(20) == 1
    assert not is_alive(standby)
    broker.firmware.settimeout(20)
    assert broker.firmware.recv(1) == b""  # nobody was born: it closed without a word


@pytest.mark.parametrize("number", [65, 9999, 2**40])
def test_a_signal_that_there_is_not_is_refused(broker: BrokerProcess, number: int) -> None:
    answer = broker.request("kill", {"name": "root", "signal": number})
    assert answer["verb"] == "error"
    assert broker.root_process.poll() is None
