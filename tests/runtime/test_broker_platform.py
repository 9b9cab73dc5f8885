"""The broker process and the platform: what that may ask for, and how the machine ends, with nothing left."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import codec
from runtime.abi import HypervisorGone
from tests.runtime.broker_process import GUEST, BrokerProcess, broker_process, is_alive, wait_until


@pytest.fixture
def broker() -> Iterator[BrokerProcess]:
    with broker_process() as running:
        yield running


def test_the_platform_lists_shows_and_kills_by_name(broker: BrokerProcess) -> None:
    child = broker.spawn("linger")
    pid = broker.event("partition.started", id=child)["pid"]
    listed = broker.request("list", {})
    assert [row["name"] for row in listed["partitions"]] == ["root", f"guest{child}"]
    shown = broker.request("show", {"name": f"guest{child}"})
    assert (shown["id"], shown["pid"], shown["state"], shown["vps"]) == (child, pid, "active", [0])
    assert shown["module"] == GUEST
    assert broker.request("kill", {"name": f"guest{child}"})["id"] == child
    broker.event("partition.exited", id=child, signal=signal.SIGKILL)


@pytest.mark.parametrize(
    ("verb", "fields"),
    [
        ("dance", {}),
        ("show", {"name": "nobody"}),
        ("show", {}),
        ("kill", {"name": 5}),
        ("adopt", {"name": "second", "memory_pages": 100, "pid": 1}),
        ("list", {"after": -1}),
    ],
)
def test_a_request_that_cannot_be_done_is_an_error_with_a_reason(
    broker: BrokerProcess, verb: str, fields: dict[str, object]
) -> None:
    answer = broker.request(verb, fields)
    assert (answer["verb"], bool(answer["reason"])) == ("error", True)


def test_stop_asks_the_root_when_no_child_is_left(broker: BrokerProcess) -> None:
    polite, stubborn = broker.spawn("linger"), broker.spawn("ignore SIGTERM")
    pid = _stubborn(broker, stubborn)
    broker.request("stop", {"grace_ms": 60_000})
    assert broker.event("partition.exited", id=polite)["signal"] == signal.SIGTERM
    assert broker.root_process.poll() is None
    os.kill(pid, signal.SIGKILL)
    assert broker.root_process.wait(20) == -signal.SIGTERM
    assert broker.event("halt")["reason"] == "stopped"
    assert broker.process.wait(20) == 0


def test_stop_kills_who_does_not_listen(broker: BrokerProcess) -> None:
    stubborn = broker.spawn("ignore SIGTERM")
    _stubborn(broker, stubborn)
    broker.request("stop", {"grace_ms": 50})
    assert broker.event("partition.exited", id=stubborn)["signal"] == signal.SIGKILL
    assert broker.root_process.wait(20) == -signal.SIGTERM
    assert broker.event("halt")["reason"] == "stopped"


def _stubborn(broker: BrokerProcess, child: int) -> int:
    """Wait until it ignores SIGTERM; its pid."""
    pid: int = broker.event("partition.started", id=child)["pid"]
    wait_until(lambda: _ignored(pid) >> (signal.SIGTERM - 1) & 1)
    return pid


def _ignored(pid: int) -> int:
    """Its signals that are, as bits."""
    return int(Path(f"/proc/{pid}/status").read_text().split("SigIgn:")[1].split()[0], 16)


@pytest.mark.parametrize("how", ["process dies", "socket closes"])
def test_the_machine_halts_with_its_root_and_nothing_is_left(broker: BrokerProcess, how: str) -> None:
    child = broker.spawn("linger")
    pid = broker.event("partition.started", id=child)["pid"]
    if how == "process dies":
        broker.root_process.kill()
    else:
        broker.port.close()
    halt = broker.event("halt")
    assert halt["reason"].startswith("the root partition died while it booted (")
    assert not is_alive(pid)
    assert broker.process.wait(20) == 1
    broker.root_process.wait(20)


def test_calls_after_the_hypervisor_is_gone_say_so(broker: BrokerProcess) -> None:
    broker.process.kill()
    broker.process.wait()
    with pytest.raises(HypervisorGone):
        broker.port.get_partition_id()


def test_nothing_outlives_a_killed_broker(broker: BrokerProcess) -> None:
    child = broker.spawn("linger")
    pid = broker.event("partition.started", id=child)["pid"]
    children = Path(f"/proc/{broker.process.pid}/task/{broker.process.pid}/children").read_text().split()
    assert str(pid) in children
    assert len(children) == 2  # and the zygote
    broker.process.kill()
    broker.process.wait()
    for each in children:
        wait_until(lambda each=each: not is_alive(int(each)))


def test_nothing_outlives_the_platform(broker: BrokerProcess) -> None:
    pid = broker.event("partition.started", id=broker.spawn("linger"))["pid"]
    broker.power.close()
    broker.process.wait(20)
    assert not is_alive(pid)


def test_a_zygote_that_cannot_start_does_not_take_the_broker_along() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "runtime.hypervisor", "--zygote-module", "no.such.module"]
    process = subprocess.Popen(
        [*command, "--power-fd", str(theirs.fileno())],
        cwd=Path(__file__).parents[2],
        pass_fds=[theirs.fileno()],
        stderr=subprocess.DEVNULL,
    )
    theirs.close()
    ours.settimeout(20)
    codec.send_message(ours, ["list", {}])
    assert codec.receive_message(ours) == (["list", {"partitions": [], "more": False}], [])
    ours.close()
    assert process.wait(20) == 1


@pytest.mark.parametrize(
    "arguments", [[], ["--power-fd"], ["--power-fd", "x"], ["--what", "1", "--power-fd", "3"]]
)
def test_bad_options_are_a_usage_error(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "runtime.hypervisor", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"usage" in done.stdout
