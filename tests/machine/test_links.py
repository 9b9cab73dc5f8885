"""Two guests that talk to each other: by a link that only they touch, and through the root's switch."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from runtime.config.document import ConfigError
from runtime.config.loading import load
from runtime.measure.bench_claim import EXIT_NOT_MEASURED, run
from runtime.measure.claim_decision import Peers
from runtime.measure.claim_ways import GUEST_WAYS, PROCESS_WAYS
from tests.machine.conftest import Boot, machine_toml

pytestmark = pytest.mark.machine

PROGRAM = """
import contextlib
import time
from bus.native import RingClosed
from partitions.links.peer import borrow_link, lend_link, open_switch

def _open(partition):
    name = partition.args["device"]
    if name == "switch0":
        return open_switch(partition, name)
    return lend_link(partition, name) if partition.args["role"] == "client" else borrow_link(partition, name)

def client(partition):
    with _open(partition) as channel:
        for number in range(1, 200):
            text = b"%08d" % number * (number % 40 + 1)
            assert channel.exchange(text, number) == text[::-1]
        partition.report("asked", exchanges=number, mapped=len(channel.statistics()))
        if partition.args.get("stays"):
            time.sleep(600)
        channel.send(b"over" * 2)

def server(partition):
    time.sleep(0.3)  # so that the client's first request, or its offer of pages, has to wait
    with _open(partition) as channel:
        reply, identity = None, 0
        with contextlib.suppress(RingClosed):  # the client may have left, and its rings with it, before we read on
            while (packet := channel.reply_and_receive(reply, identity))[3] != b"over" * 2:
                reply, identity = packet[3][::-1], packet[2]

def late(partition):
    if partition.args["role"] == "server":
        time.sleep(0.3)
    with _open(partition) as channel:
        if partition.args["role"] == "client":
            channel.send(b"farewell")
        else:
            partition.report("heard", word=channel.receive()[3].decode())
"""


def two_guests(
    kind: str, device: str, route: str, stays: bool = False, program: str | None = None, **more: str
) -> str:
    partitions = [
        f"""
[[partition]]
name = "{role}"
program = "talk:{program or role}"
memory = "16MiB"
args = {{ role = "{role}", device = "{device}", stays = {str(stays).lower()} }}
[[partition.device]]
name = "{device}"
signal_route = "{route}"
waiting = "block"
"""
        for role in ("client", "server")
    ]
    return machine_toml(*partitions, devices=f'[[root.device]]\nname = "{device}"\nkind = "{kind}"\n', **more)


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "talk.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("talk")
@pytest.mark.parametrize(("kind", "device"), [("link", "link0"), ("switch", "switch0")])
def test_two_guests_talk_to_each_other(boot: Boot, kind: str, device: str) -> None:
    """Through the hypervisor's router; the next test has the direct route."""
    machine = boot(two_guests(kind, device, "broker"))
    assert machine.wait_for("guest.asked", "client")["fields"]["exchanges"] == 199
    assert machine.wait() == 0, (
        machine.errors,
        [e["fields"]["text"] for e in machine.events if e["kind"] == "output"],
    )


@pytest.mark.usefixtures("talk")
def test_what_was_sent_arrives_though_its_sender_has_left(boot: Boot) -> None:
    """Before the other guest opens its port."""
    machine = boot(two_guests("switch", "switch0", "broker", program="late"))
    assert machine.wait_for("guest.heard", "server")["fields"]["word"] == "farewell"
    assert machine.wait() == 0


def mappings_of(pid: int) -> set[str]:
    """The memory slots that a process has mapped."""
    return set(re.findall(r"/memfd:(slot-\d+)", Path(f"/proc/{pid}/maps").read_text()))


@pytest.mark.usefixtures("talk")
def test_of_a_link_the_root_touches_nothing_and_a_switch_shares_nothing_between_guests(boot: Boot) -> None:
    """Whose pages each process has mapped, while both guests wait with everything open."""
    for kind, device in (("link", "link0"), ("switch", "switch0")):
        machine = boot(two_guests(kind, device, "direct", stays=True), f'machine.name="{kind}"')
        machine.wait_for("guest.asked", "client")
        client, server, root = (mappings_of(machine.pid(who)) for who in ("client", "server", "root"))
        if kind == "link":
            assert len(client & server) == 1
            assert not client & root  # the lender's rings; of the borrower's it has the idle ones
        else:
            assert not client & server
            assert client & root
            assert server & root
        machine.process.send_signal(signal.SIGTERM)
        machine.wait()


@pytest.mark.usefixtures("talk")
def test_a_link_outlives_the_root_and_ends_with_either_guest(boot: Boot) -> None:
    machine = boot(two_guests("link", "link0", "direct", stays=True, on_root_failure="restart"))
    machine.wait_for("guest.asked", "client")
    os.kill(machine.pid("root"), signal.SIGKILL)
    machine.wait_for("root.restored")
    assert not [event for event in machine.events if event["kind"] == "vmbus.channel_closed"]
    os.kill(machine.pid("client"), signal.SIGKILL)
    broken = machine.wait_for("vmbus.channel_broken")
    assert (broken["fields"]["guest"], broken["fields"]["reason"]) == (
        "server",
        "the other end of the link is closed",
    )
    assert machine.wait() != 0  # the server's program has lost its channel


LINKED = '[[root.device]]\nname = "x"\nkind = "{kind}"\n{more}\n'
END = (
    '[[partition]]\nname = "{name}"\nprogram = "partitions.guests.idle:main"\n'
    '[[partition.device]]\nname = "x"\n{more}'
)


@pytest.mark.parametrize(
    ("kind", "ends", "more", "wanted"),
    [
        ("link", 1, "", "a [[partition.device]] of that name in two partitions"),
        ("switch", 3, "", "a [[partition.device]] of that name in two partitions"),
        ("link", 0, "", "a [[partition.device]] of that name in two partitions"),
        ("switch", 2, 'backend = "memory"', 'nothing with kind = "switch"'),
        ("link", 2, 'size = "1MiB"', 'nothing with kind = "link"'),
    ],
)
def test_a_link_that_joins_not_two_is_refused(
    tmp_path: Path, kind: str, ends: int, more: str, wanted: str
) -> None:
    config = tmp_path / "machine.toml"
    partitions = [END.format(name=f"p{index}", more="") for index in range(ends)] or [
        END.format(name="p0", more="").partition("[[partition.device]]")[0]
    ]
    config.write_text(machine_toml(*partitions, devices=LINKED.format(kind=kind, more=more)))
    with pytest.raises(ConfigError, match=re.escape(wanted)):
        load(config)


def test_both_ends_of_a_link_have_the_same_rings(tmp_path: Path) -> None:
    config = tmp_path / "machine.toml"
    ends = [END.format(name=f"p{size}", more=f'ring_bytes = "{size}KiB"\n') for size in (16, 32)]
    config.write_text(machine_toml(*ends, devices=LINKED.format(kind="link", more="")))
    with pytest.raises(ConfigError, match="as at the other end"):
        load(config)
    config.write_text(machine_toml(*ends, devices=LINKED.format(kind="switch", more="")))
    load(config)


# -- the benchmark: its shape, never its figures


def test_what_cannot_be_measured_has_its_own_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cpus=(0, 0), as_json=True) == EXIT_NOT_MEASURED
    told = capsys.readouterr()
    assert told.out == ""
    assert "two CPUs" in told.err


def test_json_is_whole_whatever_the_verdict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.measure.bench_claim.QUICK_ROUNDS", 1)
    monkeypatch.setattr("runtime.measure.bench_claim.QUICK_SECONDS", 0.0005)
    assert run(quick=True, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "undecided"  # of one round nothing is known
    assert {cell["orders_of_magnitude"] for cell in told["cells"]} == {"undecided"}
    assert all(cell["factor"]["low"] is None for cell in told["cells"])
    assert told["made_of"]
    assert {row["peers"] for row in told["rounds_ns"]} == set(Peers)
    assert {row["way"] for row in told["rounds_ns"]} == {*GUEST_WAYS, *PROCESS_WAYS}
    assert all(ns > 0 for row in told["rounds_ns"] for ns in row["ns"])
