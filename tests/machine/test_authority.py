"""A partition holds the descriptors that it was handed, and no others."""

import contextlib
import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from runtime.abi import GUEST_PRIVILEGES, Privilege
from runtime.authority.comparing import find_excess
from runtime.authority.inspection import Report, inspect
from runtime.config.architecture import Architecture
from runtime.machine.rundir import MachineFolder
from runtime.machine.user_networks import find_program
from tests.machine.conftest import PATIENCE_S, Boot, RunningMachine, machine_toml

pytestmark = pytest.mark.machine

WITH_GUEST_TAPS: Final = (
    tuple(one for one in Architecture if one is not Architecture.MONOLITHIC)
    if Path("/dev/net/tun").exists()
    else ()
)
HOLD: Final = "tests.machine.authority_programs:hold"


def test_a_guest_is_born_with_its_own_descriptors_and_no_others(boot: Boot) -> None:
    """Sockets: its hypercalls and the console; memory: its VP's two pages, each mapped; its line. Nothing of others."""
    machine = boot(
        machine_toml(
            '[[partition]]\nname = "guest"\nprogram = "tests.machine.guest_programs:list_descriptors"\n'
            'memory = "16MiB"\n'
        )
    )
    links = machine.wait_for("guest.descriptors", "guest")["fields"]["links"]
    kinds = Counter(link.split(":")[0] for link in links if not link.startswith(("/dev/", "pipe:")))
    assert len({link for link in links if link.startswith("socket:")}) == 2  # the console may be stderr, too
    assert kinds.pop("anon_inode") == 1
    pages = [link for link in links if link.startswith("/memfd:")]
    assert len(pages) == 4  # SIM and SIEF: the descriptor, and the one that Python's mmap keeps
    assert not [link for link in links if link.startswith("/") and not link.startswith(("/dev/", "/memfd:"))]
    assert len([link for link in links if link.startswith("pipe:")]) <= 2  # stdout and stderr are the test's


# -- held against granted --------------------------------------------------------------------------------------

DEVICES: Final = "".join(
    f'[[root.device]]\nname = "{name}"\nkind = "{kind}"\n{more}'
    for name, kind, more in (
        ("disk0", "disk", 'backend = "file"\npath = "disk0.img"\nsize = "1MiB"\n'),
        ("disk1", "disk", 'backend = "memory"\nsize = "1MiB"\n'),
        ("echo0", "echo", ""),
        ("link0", "link", ""),
        ("switch0", "switch", ""),
    )
)


def partition(
    name: str, devices: dict[str, str] | None = None, program: str = HOLD, more: str = "", **args: object
) -> str:
    """`devices`: how to open each."""
    given = {"open": devices or {}, **args}
    arguments = ", ".join(f"{key} = {_inline(value)}" for key, value in given.items())
    text = (
        f'[[partition]]\nname = "{name}"\nprogram = "{program}"\nmemory = "16MiB"\nargs = {{ {arguments} }}\n'
    )
    return text + more + "".join(f'[[partition.device]]\nname = "{device}"\n' for device in devices or {})


def _inline(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_inline(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def outer_networks() -> dict[str, str]:
    """The backends that this host allows."""
    found = {}
    if WITH_GUEST_TAPS and os.geteuid() == 0:
        found["net1"] = f'backend = "tap"\ninterface = "pva{os.getpid()}"\n'
    if find_program() is not None:
        found["net2"] = 'backend = "user"\n'
    return found


@contextlib.contextmanager
def visitors(machine: RunningMachine, architecture: Architecture) -> Iterator[None]:
    """Programs of the host: one at each end of a stream, and one that captures."""
    (folder,) = machine.runtime_dir.iterdir()
    with contextlib.ExitStack() as held:
        if architecture is not Architecture.MONOLITHIC:
            listener = held.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(folder / "stream-two_5000"))
            listener.listen()
            listener.settimeout(PATIENCE_S)
            held.enter_context(listener.accept()[0])
            caller = held.enter_context(socket.socket(socket.AF_UNIX))
            caller.settimeout(PATIENCE_S)
            caller.connect(str(folder / "stream-one"))
            caller.sendall(b"CONNECT 5000\n")
            assert caller.recv(100) == b"OK 5000\n"
        if architecture is not Architecture.MONOLITHIC:
            watcher = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            watcher.settimeout(PATIENCE_S)
            watcher.connect(str(folder / "capture"))
            watcher.send(b'{"name": "net0"}')
            assert json.loads(watcher.recv(1000))["ok"]
        yield


def everything(architecture: str) -> str:
    """A machine with all that a config can ask for: both routes, a tree, a link, a switch, emulated devices, files."""
    tree = [
        partition("outer", {"disk0": "disk"}, "partitions.guests.parent:main").replace("16MiB", "64MiB"),
        partition("inner", {"disk0": "disk"}, more='parent = "outer"\n'),
    ]
    one = partition(
        "one", {"disk0": "disk", "disk1": "disk", "echo0": "echo", "link0": "link"}, statistics=True
    )
    two = partition("two", {"disk0": "disk", "link0": "borrow", "switch0": "switch"}, more="vps = 2\n")
    three = partition("three", {"switch0": "switch"}, more='intercepts = "direct"\n', legacy=True)
    three += '[[partition.emulated]]\nkind = "uart"\n[[partition.emulated]]\nkind = "ide"\ndevice = "disk1"\n'
    if architecture != Architecture.MICROKERNELIZED:
        three = three.replace('[[partition.emulated]]\nkind = "ide"\ndevice = "disk1"\n', "")
    devices = DEVICES
    if architecture != Architecture.MONOLITHIC:
        three += '[[partition.device]]\nname = "line0"\n[[partition.device]]\nname = "net0"\n'
        three = three.replace("open = {", 'open = { line0 = "serial", net0 = "net",')
        devices += '[[root.device]]\nname = "line0"\nkind = "serial"\nbackend = "pty"\n'
        devices += '[[root.device]]\nname = "net0"\nkind = "net"\nbackend = "switch"\n'
        one = one.replace("args = {", "streams = true\nargs = { listens = true,")
        two = two.replace("args = {", 'streams = true\nargs = { connects = ["one", "host"],')
        for name, more in outer_networks().items():
            devices += f'[[root.device]]\nname = "{name}"\nkind = "net"\n{more}'
            two += f'[[partition.device]]\nname = "{name}"\n'
            two = two.replace("open = {", f'open = {{ {name} = "net",').replace("16MiB", "64MiB")
    if architecture in WITH_GUEST_TAPS:
        three = three.replace('net0 = "net"', 'net0 = "tap"') + '[partition.tap]\ndevice = "net0"\n'
    one = one.replace('name = "disk1"\n', 'name = "disk1"\nsignal_route = "broker"\n')
    names = [*(flag.name for flag in GUEST_PRIVILEGES), Privilege.ACCESS_STATS_CALLS.name]
    one = one.replace(
        'name = "one"\n', f'name = "one"\nprivileges = {[str(name).lower() for name in names]}\n'
    )
    two += '[[partition.file]]\nname = "notes"\npath = "notes.txt"\nmode = "write"\n'
    settings = {"architecture": architecture, "on_root_failure": "standby"}
    return machine_toml(one, two, three, *tree, devices=devices, **settings)


def look(machine: RunningMachine) -> Report:
    """As the command does, without the time that a command takes to start."""
    (folder,) = (
        MachineFolder(path, "test", machine.process.pid, 0) for path in machine.runtime_dir.iterdir()
    )
    return inspect(folder)


def holdings(report: Report, process: str) -> set[tuple[str, str]]:
    return {(str(held.kind), held.subject) for held in report.holdings if held.process == process}


@pytest.mark.parametrize("architecture", list(Architecture))
def test_every_process_holds_what_the_config_grants_and_nothing_else(
    boot: Boot, architecture: Architecture
) -> None:
    """Every descriptor and shared mapping of every process has a name, and the name is among the grants."""
    machine = boot(everything(architecture), options=("--trace", "/dev/null"))
    machine.wait_for("machine.ready")
    with visitors(machine, architecture):
        for name in ("one", "two", "three", "outer/inner"):
            machine.wait_for("guest.holding", name)
        report = look(machine)
    assert [one.row() for one in report.excess] == []
    assert (report.strangers, report.silent) == ([], None)
    assert set(report.unreadable) == _hidden(architecture)
    assert report.is_clean == (not report.unreadable)
    reaching = [held for held in report.holdings if held.kind != "own"]
    assert len(find_excess(report.holdings, ())) == len(reaching) > 0  # a config that grants nothing
    _check_that_it_looked(report, architecture)


def _hidden(architecture: Architecture) -> set[str]:
    """passt lets nobody look into it but root."""
    has_one = architecture is not Architecture.MONOLITHIC and "net2" in outer_networks()
    return {"passt"} if has_one and os.geteuid() != 0 else set()


def _check_that_it_looked(report: Report, architecture: Architecture) -> None:
    """What must be there, so that an empty report is no good one."""
    names = {"platform", "hypervisor", "zygote", "standby", "janitor", "root", "one", "two", "three", "outer"}
    assert names < set(report.processes)
    one, inner = holdings(report, "one"), holdings(report, "outer/inner")
    assert {("hypercalls", "one"), ("synic", "one"), ("statistics", "one"), ("vectors", "one")} <= one
    assert {("reference", "one"), ("trace", "one"), ("line", "one"), ("console", "platform")} <= one
    assert ("pages", "one: link0") in holdings(report, "two")  # the lender's
    assert ("doorbell", "one from two") in holdings(report, "two")
    assert ("pages", "outer/inner") in holdings(report, "outer")
    assert ("doorbell", "outer/inner from outer") in inner
    server = {
        Architecture.MICROKERNELIZED: "root",
        Architecture.MONOLITHIC: "hypervisor",
        Architecture.HOSTED: "one.vmm",
    }.get(architecture, "disk0")
    if architecture is Architecture.MICROKERNEL:
        assert ("socket", "disk0") in one
        assert ("socket", "one") in holdings(report, "disk0")
    else:
        assert ("pages", "one: disk0") in holdings(report, server)
        rung = "disk0" if server == "hypervisor" else server  # there it is a partition without a process
        assert ("doorbell", f"{rung} from one") in one
    if architecture is not Architecture.MONOLITHIC:
        assert {("socket", "streams of one"), ("socket", "streams of two")} <= holdings(report, "root")
        assert ("pages", "one: streams") in holdings(report, "root")
        has_switch = "root" if architecture is Architecture.MICROKERNELIZED else "net0"
        assert ("socket", "captures") in holdings(report, has_switch)
    if architecture in WITH_GUEST_TAPS:
        assert ("file", "/dev/net/tun") in holdings(report, "three")
        assert ("pipe", "three") in holdings(report, "programs of three")
    if architecture is Architecture.MICROKERNELIZED and find_program() is not None:
        assert ("socket", "passt") in holdings(report, "root")
    if architecture is Architecture.DISAGGREGATED:  # each driver has the pages of its own channels
        assert _shared(report, "disk0") == {"one: disk0", "two: disk0", "outer: disk0"}
        assert _shared(report, "disk1") == {"one: disk1"}


def _shared(report: Report, process: str) -> set[str]:
    return {subject for kind, subject in holdings(report, process) if kind == "pages" and subject != process}


def test_what_a_partition_took_from_another_is_reported(boot: Boot) -> None:
    """Memory, doorbells, its identity at the hypervisor: each by its name, and nobody else is accused.

    The thief has no sandbox; all that it does is to use what the host lets processes of one user do to each other.
    """
    thief = partition(
        "thief", program="tests.machine.authority_programs:steal", more='sandbox = "off"\n', victim="one"
    )
    victim = partition("one", {"disk0": "disk"}, more='sandbox = "off"\n')
    disk = DEVICES.partition('[[root.device]]\nname = "disk1"')[0]
    machine = boot(machine_toml(victim, thief, devices=disk))
    machine.wait_for("guest.holding", "one")
    machine.wait_for("guest.holding", "thief")
    done = machine.command("authority", "--json")
    report: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode, report["clean"]) == (1, False)
    found = report["unexplained"] + report["beyond_the_config"]
    assert {row["process"] for row in report["beyond_the_config"]} == {"thief"}
    assert all("thief" in (row["process"], row["what"].split()[-1]) for row in report["unexplained"])
    stolen = {(row["kind"], row["subject"]) for row in found}
    assert {
        ("pages", "one: disk0"),
        ("line", "one"),
        ("doorbell", "one from root"),
        ("doorbell", "root from one"),
        ("hypercalls", "one"),
    } <= stolen
    (pages,) = (row for row in found if row["kind"] == "pages")
    assert pages["mapped_pages"] > 0
    assert "hypervisor has not handed it out" in pages["why"]
