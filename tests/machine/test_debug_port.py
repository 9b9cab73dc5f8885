"""The hypervisor tells of itself whoever else is stopped or dead, and of its end; a reboot brings everything back."""

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from runtime import codec
from runtime.hypervisor.debug_port import CLIENTS_MAX
from tests.machine.conftest import PATIENCE_S, Boot, RunningMachine, idle_partition, machine_toml
from tests.stopping import stop

pytestmark = pytest.mark.machine

TWO: str = machine_toml(idle_partition("one"), idle_partition("two"))


def debug(machine: RunningMachine, *options: str) -> dict[str, Any]:
    done = machine.command("debug", "--json", *options)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def names(report: dict[str, Any]) -> list[str]:
    return [row["name"] for row in report["partitions"]]


def test_the_hypervisor_answers_while_root_and_platform_are_stopped(boot: Boot) -> None:
    machine = boot(TWO)
    machine.wait_for("machine.ready")
    for who in ("root", "platform"):
        stop(machine.pid(who))
    try:
        report = debug(machine, "--events", "1000")
    finally:
        for who in ("platform", "root"):
            os.kill(machine.pid(who), signal.SIGCONT)
    assert report["source"] == "hypervisor"
    assert names(report) == ["root", "one", "two"]
    assert report["ports"]
    assert {row["name"] for row in report["queue"]} == {"one", "two"}
    calls = [event["what"] for event in report["events"]]
    assert calls.count("CREATE_PARTITION") == 2
    numbers = [event["number"] for event in report["events"]]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    text = machine.command("debug", "test", "--events", "3").stdout
    assert "partitions:" in text
    assert "last 3 events:" in text
    shown = json.loads(machine.command("show", "hypervisor", "--json").stdout)
    assert shown["pid"] == machine.pid("hypervisor")
    assert shown["partition_modules"] == []
    assert 0 < shown["code_bytes"] < 600_000
    assert {"CREATE_PARTITION", "GET_BIRTH"} <= {row["call"] for row in shown["calls"]}


def test_a_stopped_hypervisor_is_read_from_its_flight_recorder(boot: Boot) -> None:
    machine = boot(TWO)
    machine.wait_for("machine.ready")
    stop(machine.pid("hypervisor"))
    try:
        report = debug(machine, "--events", "1000")
    finally:
        os.kill(machine.pid("hypervisor"), signal.SIGCONT)
    assert report["source"] == "flight recorder"
    assert "does not answer" in report["silent"]
    assert names(report) == ["root", "one", "two"]
    assert "CREATE_PARTITION" in [event["what"] for event in report["events"]]


def test_a_killed_hypervisor_leaves_its_last_events_where_that_was_asked_for(
    boot: Boot, tmp_path: Path
) -> None:
    path = tmp_path / "crash.bin"
    machine = boot(TWO, options=("--post-mortem", str(path)))
    machine.wait_for("machine.ready")
    os.kill(machine.pid("hypervisor"), signal.SIGKILL)
    assert machine.wait() == 1
    report = json.loads(machine.command("debug", "--post-mortem", str(path), "--json").stdout)
    assert names(report) == ["root", "one", "two"]
    assert "START_VIRTUAL_PROCESSOR" in [event["what"] for event in report["events"]]
    assert path.stat().st_mode & 0o077 == 0
    bad = machine.command("debug", "--post-mortem", str(tmp_path / "machine0.toml"))
    assert bad.returncode == 1
    assert "is no flight recording" in bad.stderr


@pytest.mark.parametrize("policy", ["halt", "standby"])
def test_a_reboot_brings_every_partition_back_and_nothing_of_the_old_ones(
    boot: Boot, policy: str, tmp_path: Path
) -> None:
    """The hypervisor stays, ids are new, and the root has as many pages as before. A good end leaves no recording."""
    path = tmp_path / "crash.bin"
    text = machine_toml(idle_partition("one"), idle_partition("two"), on_root_failure=policy)
    machine = boot(text, options=("--post-mortem", str(path)))
    machine.wait_for("machine.ready")
    before = debug(machine)
    broker = machine.pid("hypervisor")
    for _ in range(2 if policy == "halt" else 1):
        done = machine.command("reboot")
        assert done.returncode == 0, done.stderr
        after = debug(machine)
        assert names(after) == names(before)
        assert {row["id"] for row in after["partitions"]} & {row["id"] for row in before["partitions"]} == {1}
        assert not {row["pid"] for row in after["partitions"]} & {row["pid"] for row in before["partitions"]}
        pages = [[row["pages"] for row in report["partitions"]] for report in (before, after)]
        assert pages[0] == pages[1]
        assert len(after["ports"]) == len(before["ports"])
        before = after
    machine.remember()
    os.kill(broker, 0)  # raises if it is gone
    if policy == "standby":
        assert machine.command("crash", "root").returncode == 0
    assert machine.command("stop").returncode == 0
    assert machine.wait() == 0
    assert not path.exists()


@pytest.mark.soak
def test_a_partition_that_does_not_end_is_killed_for_the_reboot(boot: Boot) -> None:
    machine = boot(TWO)
    machine.wait_for("machine.ready")
    for who in ("one", "root"):
        stop(machine.pid(who))
    done = machine.command("reboot", "--json")
    assert done.returncode == 0, done.stderr
    assert names(debug(machine)) == ["root", "one", "two"]


def test_the_debug_port_lets_nobody_crowd_out_the_machine(boot: Boot) -> None:
    """Garbage gets an error, a client too many is sent away, one that does not read is dropped; the machine goes on."""
    machine = boot(TWO)
    machine.wait_for("machine.ready")
    (path,) = machine.runtime_dir.glob("*/debug")

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.settimeout(PATIENCE_S)
        client.connect(str(path))
        return client

    def ask(client: socket.socket, packet: bytes) -> Any:
        client.send(packet)
        return codec.decode(client.recv(codec.PACKET_BYTES_MAX))

    clients = [connect() for _ in range(CLIENTS_MAX)]
    for garbage in (
        b"\xff",
        codec.encode([1]),
        codec.encode(["partitions", {"after": -1}]),
        b"\x91\x91" * 300,
    ):
        assert ask(clients[0], garbage)[0] == "error"
    assert ask(clients[0], codec.encode(["partitions", {}]))[0] == "partitions"
    extra = connect()
    assert extra.recv(1) == b""
    flooder = clients[1]
    flooder.setblocking(False)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            flooder.send(codec.encode(["ports", {}]))
        except BlockingIOError:
            time.sleep(0.001)
        except OSError:  # it is dropped: a broken pipe, or a reset
            break
    else:
        pytest.fail("nobody minds a client that does not read")
    for client in (*clients, extra):
        client.close()
    assert names(debug(machine)) == ["root", "one", "two"]
