"""Consoles and integration services on a whole machine: terminals, pairs, backups, graceful ends, and dead roots."""

import json
import os
import pty
import select
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from runtime.config.document import ConfigError
from runtime.config.loading import load
from runtime.machine.backup import BackupFailed, back_up
from runtime.machine.console_client import connect
from runtime.machine.management_client import ManagementClient, RequestRefused
from runtime.machine.management_wire import ManagementStatus
from runtime.machine.rundir import MachineFolder, find_machines
from tests.machine.conftest import PARTVISOR, PATIENCE_S, Boot, RunningMachine, machine_toml, until

pytestmark = pytest.mark.machine

PROGRAM = '''
import time


def talker(partition):
    """Says back in capitals what is typed, until the host wants it to end."""
    integration = partition.integration
    integration.key_values.publish("state", "well")
    with partition.open_serial("line0") as line:
        while not integration.stopping.is_set():
            if data := line.read(1000, 0.05):
                line.write(data.upper())
    told = integration.last_shutdown
    off_ns = abs(integration.host_time_ns() - time.time_ns())
    partition.report("left", reason=told.message, off_ns=off_ns, malformed=integration.malformed)


def pairs(partition):
    """Two blocks that are always the same, but for the moment between two writes. It never asks to be told to end."""
    integration = partition.integration
    count = 0
    with partition.open_disk("disk0") as disk:
        while True:
            count += 1
            with integration.writing():
                disk.write(0, count.to_bytes(8, "little") * 64)
                time.sleep(0.002)
                disk.write(512, count.to_bytes(8, "little") * 64)
            if count == 3:
                partition.report("writing")
'''


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "services.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    devices = (
        '[[root.device]]\nname = "line0"\nkind = "serial"\nbackend = "console"\n'
        f'[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "file"\npath = "{tmp_path}/disk.img"\n'
        'size = "256KiB"\n'
    )
    partition = '[[partition]]\nname = "{}"\nprogram = "{}"\nmemory = "16MiB"\n'
    return machine_toml(
        partition.format("talker", "services:talker")
        + 'integration = true\n[[partition.device]]\nname = "line0"\n',
        partition.format("writer", "services:pairs")
        + 'integration = true\n[[partition.device]]\nname = "disk0"\n',
        partition.format("pc", "partitions.guests.legacy:main")
        + "args = { listen = true }\n"
        + "".join(f'[[partition.emulated]]\nkind = "{kind}"\n' for kind in ("uart", "keyboard", "rtc"))
        + '[[partition.emulated]]\nkind = "ide"\ndevice = "disk1"\n',
        devices=devices
        + '[[root.device]]\nname = "disk1"\nkind = "disk"\nbackend = "memory"\nsize = "1MiB"\n',
        on_root_failure="restart",
    )


def hear(line: socket.socket, words: bytes) -> bytes:
    """What it says, until it has said that."""
    line.settimeout(PATIENCE_S)
    heard = b""
    while words not in heard:
        data = line.recv(1000)
        assert data, heard
        heard += data
    return heard


def is_consistent(path: Path) -> bool:
    with path.open("rb") as file:
        data = file.read(1024)
    return data[:512] == data[512:] and data != bytes(1024)


def refused(folder: MachineFolder, name: str) -> RequestRefused:
    with pytest.raises(RequestRefused) as caught:
        connect(folder, name, log=False)
    return caught.value


def test_an_operator_talks_to_guests_and_none_of_it_ends_with_the_root(
    boot: Boot, config: str, tmp_path: Path
) -> None:
    machine = boot(config)
    machine.wait_for("machine.ready")
    (folder,) = find_machines([machine.runtime_dir])
    _one_terminal_at_a_time(folder)
    _a_pc_by_its_port(folder)
    machine.wait_for("guest.writing", "writer")
    with ManagementClient(folder) as client:
        allowed = machine.command("authority", "--json")
        assert allowed.returncode == 0, allowed.stdout
        _pairs_of_keys_and_values(client)
        _copies_are_consistent(client, tmp_path)
        _the_root_dies_in_the_middle(machine, client, tmp_path)
        with closing(connect(folder, "talker", log=False)) as line:
            line.sendall(b"still there\n")
            hear(line, b"STILL THERE")
        until(lambda: client.request("show", name="talker").get("heartbeat") == "healthy")
        _a_terminal_detaches(machine)
        client.stop()
    assert machine.wait() == 0, machine.errors
    left = machine.wait_for("guest.left", "talker")["fields"]
    assert left["reason"] == "stopped by request"
    assert left["malformed"] == 0
    assert left["off_ns"] < 60 * 10**9  # of two clocks of one host; the one was told to the guest
    exits = {
        event["partition"]: event["fields"] for event in machine.events if event["kind"] == "partition.exited"
    }
    assert exits["talker"]["code"] == 0
    assert exits["writer"]["signal"] == "SIGTERM" or exits["writer"]["code"] != 0  # it did not ask to be told


def _one_terminal_at_a_time(folder: MachineFolder) -> None:
    with closing(connect(folder, "talker", log=False)) as line:
        line.sendall(b"good day\n")
        assert hear(line, b"\n") == b"GOOD DAY\n"
        other = refused(folder, "line0")
        assert other.status is ManagementStatus.BUSY
        assert f"process {os.getpid()}" in str(other)
    assert 'kind = "uart"' in str(refused(folder, "writer"))
    assert refused(folder, "nobody").status is ManagementStatus.NOT_FOUND


def _a_pc_by_its_port(folder: MachineFolder) -> None:
    with closing(connect(folder, "pc", log=False)) as line:
        line.sendall(b"hello PC\n")
        hear(line, b"you said: hello PC")


def _pairs_of_keys_and_values(client: ManagementClient) -> None:
    def ask(**order: str) -> object:
        return client.request("integration", name="talker", service="kvp", order=order)

    assert ask(operation="set", key="rôle", value="database") == {
        "pool": "external",
        "key": "rôle",
        "value": "database",
    }
    assert ask(operation="get", key="rôle") == {"pool": "external", "key": "rôle", "value": "database"}
    assert ask(operation="get", key="state") == {"pool": "guest", "key": "state", "value": "well"}
    assert ask(operation="list", pool="external") == {
        "pairs": [{"pool": "external", "key": "rôle", "value": "database"}]
    }
    ask(operation="delete", key="rôle")
    for wrong in (
        {"operation": "get", "key": "rôle"},
        {"operation": "set", "key": "k", "value": "v", "pool": "guest"},  # not the host's
        {"operation": "set", "key": "k" * 300, "value": "v"},
        {"operation": "burn", "key": "k"},
        {},
    ):
        with pytest.raises(RequestRefused):
            ask(**wrong)


def _copies_are_consistent(client: ManagementClient, tmp_path: Path) -> None:
    disk, out = tmp_path / "disk.img", tmp_path / "copy.img"
    until(lambda: not is_consistent(disk))  # the check finds what it is to find, where nobody rests
    seen = set()
    for _ in range(8):
        done = back_up(client, "writer", "disk0", out)
        assert is_consistent(out)
        assert done["bytes"] == 256 << 10
        seen.add(out.read_bytes()[:8])
    assert len(seen) > 1  # in between it went on
    for name, device, words in (
        ("writer", "disk1", "it has disk0"),
        ("nobody", "disk0", "there are"),
        ("pc", "disk0", "it has none"),
        ("talker", "line0", "kept in a file"),
    ):
        with pytest.raises(BackupFailed, match=words):
            back_up(client, name, device, out)
    with pytest.raises(RequestRefused, match="not frozen"):
        client.request("integration", name="writer", service="vss", order={"operation": "thaw"})


def _the_root_dies_in_the_middle(machine: RunningMachine, client: ManagementClient, tmp_path: Path) -> None:
    """Between freeze and thaw. The guest rests all the while, and its successor thaws it."""
    client.request("integration", name="writer", service="vss", order={"operation": "freeze"})
    before = (tmp_path / "disk.img").read_bytes()
    client.request("crash", how="kill")
    machine.wait_for("root.restored")
    assert (tmp_path / "disk.img").read_bytes() == before
    assert client.request("integration", name="writer", service="vss", order={"operation": "thaw"}) == {}
    until(lambda: (tmp_path / "disk.img").read_bytes() != before)


def _a_terminal_detaches(machine: RunningMachine) -> None:
    """As a user has it: a real terminal, Ctrl-], and the log afterwards."""
    outside, inside = pty.openpty()
    with subprocess.Popen(
        [*PARTVISOR, "console", "talker"],
        stdin=inside,
        stdout=inside,
        stderr=subprocess.PIPE,
        env=machine.environment,
    ) as command:
        assert command.stderr is not None
        assert b"detach with Ctrl-]" in command.stderr.readline()
        os.write(outside, b"typed\n")
        heard = b""
        while b"TYPED" not in heard:
            assert select.select([outside], [], [], PATIENCE_S)[0], heard
            heard += os.read(outside, 100)
        os.write(outside, b"\x1d")
        assert command.wait(PATIENCE_S) == 0
    os.close(outside)
    os.close(inside)
    log = machine.command("console", "talker", "--log", "--json")
    texts = [line["text"] for line in json.loads(log.stdout)["lines"]]
    assert texts == ["GOOD DAY", "STILL THERE", "TYPED"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[partition]]\nname = "a"\nprogram = "partitions.guests.idle:main"\n'
         '[[partition]]\nname = "b"\nparent = "a"\nprogram = "partitions.guests.idle:main"\nintegration = true\n',
         'partitions with parent = "root"'),
        ('[[root.device]]\nname = "l"\nkind = "serial"\nbackend = "console"\npath = "x"\n', "no path with backend"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_load(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "m.toml"
    path.write_text(machine_toml(text))
    with pytest.raises(ConfigError, match=words):
        load(path)
