"""Whole machines with a network and serial lines: two guests talk, terminals attach, and whoever serves them dies."""

import ctypes
import json
import os
import re
import select
import signal
import subprocess
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from runtime.config.architecture import Architecture
from runtime.config.document import ConfigError
from runtime.config.loading import load
from tests.machine.conftest import PATIENCE_S, Boot, RunningMachine, idle_partition, machine_toml

pytestmark = pytest.mark.machine
_CLONE_NEWNET: Final = 0x4000_0000

PROGRAM = '''
from contextlib import ExitStack
from bus.guids import NETWORK
from partitions.net.errors import NetProtocolError
from partitions.net.nic import Nic
from partitions.sdk.net import NetDriver
from partitions.sdk.serial import SerialDriver
import os


class Mirror(NetDriver):
    """Sends each frame back to who sent it."""

    mtu = 4000

    def __init__(self, context):
        super().__init__(context)
        self.mac = bytes.fromhex(context.args["mac"])
        self._frames = []

    def transmit(self, frames):
        self._frames += [bytes(frame[6:12] + b"\\2\\0\\0\\0\\0\\1" + frame[12:]) for frame in map(bytes, frames)]
        return len(frames)

    def receive(self, limit):
        frames, self._frames = self._frames[:limit], self._frames[limit:]
        return frames


class Printer(SerialDriver):
    """What is written is appended to a file; nothing is ever read."""

    def write(self, data):
        return os.write(self.context.backing_fd, data)

    def read(self, limit):
        return b""

    def __init__(self, context):
        super().__init__(context)
        os.lseek(context.backing_fd, 0, os.SEEK_END)


def mirrored(partition):
    with partition.open_net("net1") as nic:
        frames = [b"\\2\\0\\0\\0\\0\\1" + nic.mac + b"\\x88\\xb5" + os.urandom(size) for size in (1, 46, 4000)]
        for frame in frames:
            while frame[14:] not in [one[14:] for one in nic.receive(3, 0.5)]:
                nic.send([frame])  # again: whoever serves us may die meanwhile
        partition.report("mirrored", mac=nic.mac.hex(), mtu=nic.mtu, link=nic.link_up)


def late(partition):
    """Lends its buffers once the channel is open, as Linux does."""
    with partition.open_channel("net0", NETWORK, 1 << 20) as opened:
        at, half = len(opened.slot.memory) - len(opened.data), 1 << 19
        lend = partition.vmbus._lend
        names = [lend(opened.relid, opened.slot, at + part, half, ExitStack()) for part in (0, half)]
        try:
            nic = Nic(opened.channel, opened.data[:half], names[0], opened.data[half:], names[1])
            partition.report("late", mac=nic.mac.hex())
        except NetProtocolError as error:
            partition.report("late", error=str(error))


def echo(partition):
    """What comes is sent back in capitals, until it is a dot; then the lines of a printer, numbered."""
    with partition.open_serial("serial0") as line:
        while (data := line.read(1000, 60)) != b".":
            line.write(data.upper())
        line.flush(10)
    if "serial1" in partition.devices:
        with partition.open_serial("serial1") as line:
            for number in range(3000):
                line.write(b"line %06d\\n" % number)
                if number == 500:
                    partition.report("printing")
            partition.report("printed", flushed=line.flush(30))
'''


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def guest(name: str, program: str, devices: str, args: dict[str, Any]) -> str:
    table = ", ".join(f"{key} = {json.dumps(value)}" for key, value in args.items())
    rows = "".join(f'[[partition.device]]\nname = "{device}"\n' for device in devices.split())
    return f'[[partition]]\nname = "{name}"\nprogram = "{program}"\nmemory = "32MiB"\nargs = {{ {table} }}\n{rows}'


NETWORK = '[[root.device]]\nname = "net0"\nkind = "net"\nbackend = "switch"\n'
MIRROR = (
    '[[root.device]]\nname = "net1"\nkind = "net"\ndriver = "nets:Mirror"\nargs = { mac = "020000000099" }\n'
)
LINE = '[[root.device]]\nname = "serial0"\nkind = "serial"\nbackend = "pty"\n'


def talk(path: str, words: list[bytes]) -> list[bytes]:
    """As a terminal that is attached to a line: what comes back for each word."""
    terminal = os.open(path, os.O_RDWR | os.O_NOCTTY)
    try:
        tty.setraw(terminal)
        answers = []
        for word in words:
            os.write(terminal, word)
            answer = b""
            while word.upper() not in answer:
                assert select.select([terminal], [], [], PATIENCE_S)[0], (word, answer)
                answer += os.read(terminal, 100)
            answers.append(answer)
        return answers
    finally:
        os.close(terminal)


def say(path: str, word: bytes) -> None:
    terminal = os.open(path, os.O_RDWR | os.O_NOCTTY)
    os.write(terminal, word)
    os.close(terminal)


def ready_line(machine: RunningMachine, after: int = 0) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for event in machine.events[after:]:
            if event["kind"] == "serial.ready":
                return str(event["fields"]["path"])
        time.sleep(0.01)
    raise AssertionError(f"no line is ready: {machine.events}")


def _without_what_came_twice(line: bytes) -> bytes:
    """A line whose piece was taken in part, by a server that died before it could note that: the part is in front."""
    last = line[-len(b"line 000000") :]
    return last if last.startswith(line[: -len(last)]) else line


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize(
    "architecture",
    [
        "disaggregated",
        *(
            pytest.param(name, marks=pytest.mark.soak)
            for name in ("microkernelized", "hosted", "microkernel")
        ),
    ],
)
def test_guests_and_terminals_go_on_over_the_death_of_who_serves_them(
    boot: Boot, tmp_path: Path, architecture: str
) -> None:
    """Frames are lost, and none is wrong or comes twice; of what was written to a line, nothing is lost."""
    paper = tmp_path / "paper"
    paper.touch()
    load_args = {"device": "net0", "seconds": 0.6, "frame_bytes": 700, "verified": True}
    printer = (
        f'[[root.device]]\nname = "serial1"\nkind = "serial"\ndriver = "nets:Printer"\npath = "{paper}"\n'
    )
    has_rings = architecture != "microkernel"
    machine = boot(
        machine_toml(
            guest("rx", "partitions.guests.net_load:receive", "net0", {"device": "net0"}),
            guest("tx", "partitions.guests.net_load:send", "net0", load_args),
            guest("echo", "nets:echo", "serial0 serial1", {}),
            guest("mirrored", "nets:mirrored", "net1", {}),
            *([guest("late", "nets:late", "net0", {})] if has_rings else []),
            devices=NETWORK + LINE + printer + MIRROR,
            architecture=architecture,
            on_root_failure="restart",
        )
    )
    root = architecture == "microkernelized"
    path = ready_line(machine)
    assert talk(path, [b"one", b"two"]) == [b"ONE", b"TWO"]
    machine.wait_for("guest.net_listens")
    if has_rings:
        machine.wait_for(
            "guest.late"
        )  # before its driver dies: the next one would know what was lent to this one
    time.sleep(0.2)
    seen = len(machine.events)
    for name in ("root",) if root else ("net0", "serial0"):
        os.kill(machine.pid(name), signal.SIGKILL)
    if root:
        machine.wait_for("root.restored")
        path = ready_line(machine, seen)
    (answer,) = talk(path, [b"three"])
    assert answer in (b"THREE", b"TWOTHREE"), "what it could not note before it died comes again"
    say(path, b".")
    machine.wait_for("guest.printing")
    killed = [event for event in machine.events if event["kind"] == "root.started"][-1]["fields"]["pid"]
    os.kill(killed if root else machine.pid("serial1"), signal.SIGKILL)
    assert machine.wait_for("guest.printed")["fields"]["flushed"]
    sent = machine.wait_for("guest.net_sent")["fields"]
    found = machine.wait_for("guest.net_received")["fields"]
    mirrored = machine.wait_for("guest.mirrored")["fields"]
    assert mirrored == {"mac": "020000000099", "mtu": 4000, "link": True}
    if has_rings:
        late = machine.wait_for("guest.late")["fields"]
        assert ("mac" if root else "error") in late  # a driver partition knows what was lent before
    assert machine.wait() == 0, machine.errors
    assert (found["wrong"], found["twice"], found["malformed"]) == (0, 0, 0)
    assert 0 < found["frames"] <= sent["frames"]  # how many are lost is the host's affair
    lines = paper.read_bytes().splitlines()
    whole = [_without_what_came_twice(line) for line in lines]
    assert list(dict.fromkeys(whole)) == [b"line %06d" % number for number in range(3000)]
    assert len(lines) < 3000 + 2 * 2048 / 12


def in_a_network_of_its_own(work: Callable[[], None]) -> None:
    """In a thread, whose children have that network, too. Skips where that is not allowed."""
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) or not os.access(
                "/dev/net/tun", os.W_OK
            ):
                outcome.append(None)
                return
            work()
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if outcome and outcome[0] is None:
        pytest.skip("this host does not let us have a network namespace and a TAP")
    if outcome and outcome[0] is not None:
        raise outcome[0]


@pytest.mark.parametrize(
    "architecture",
    ["monolithic", *(pytest.param(name, marks=pytest.mark.soak) for name in ("hosted", "microkernel"))],
)
def test_the_hosts_own_ping_reaches_a_guest_through_a_tap_that_may_vanish(
    boot: Boot, architecture: str
) -> None:
    """With the switch where the driver is. What is damaged on the way is answered by nobody, on either side."""

    def work() -> None:
        device = '[[root.device]]\nname = "net0"\nkind = "net"\nbackend = "tap"\ninterface = "pvtest0"\n'
        args = {"device": "net0", "address": "10.77.0.2", "seconds": 60}
        machine = boot(
            machine_toml(
                guest("p", "partitions.guests.pingable:main", "net0", args),
                devices=device,
                architecture=architecture,
            )
        )
        machine.wait_for("guest.pingable")
        subprocess.run(["ip", "address", "add", "10.77.0.1/24", "dev", "pvtest0"], check=True)
        # Each waits for the one before: a guest that gets no processor for a while may drop frames, as on any wire.
        ping = ["ping", "-q", "-A", "-c", "100", "-W", "10", "-s", "1200", "10.77.0.2"]
        told = subprocess.run(ping, check=True, capture_output=True, text=True).stdout
        assert "100 received" in told
        subprocess.run(["ip", "link", "delete", "pvtest0"], check=True)
        assert machine.wait_for("guest.link")["fields"] == {"up": False}
        machine.process.send_signal(signal.SIGTERM)
        machine.wait()

    in_a_network_of_its_own(work)


@pytest.mark.parametrize(
    ("device", "machine", "ends", "wanted"),
    [
        ('kind = "net"', "", 1, '"switch", "tap", "user"; or a driver instead'),
        ('kind = "net"\nbackend = "tap"', "", 1, "a name"),
        ('kind = "net"\nbackend = "switch"\ninterface = "tap0"', "", 1, 'none but with backend = "tap"'),
        (
            'kind = "net"\nbackend = "memory"\nsize = "1MiB"',
            "",
            1,
            '"switch", "tap", "user", with kind = "net"',
        ),
        ('kind = "disk"\nbackend = "switch"', "", 1, '"file", "memory", "overlay", with kind = "disk"'),
        ('kind = "serial"\nbackend = "switch"', "", 1, '"pty", "socket", "console", with kind = "serial"'),
        ('kind = "serial"\nbackend = "socket"', "", 1, "a path"),
        ('kind = "serial"\nbackend = "pty"\nmtu = 1500', "", 1, 'none but with kind = "net"'),
        ('kind = "serial"\nbackend = "pty"', "", 2, "a serial line in one partition alone"),
        (
            'kind = "serial"\nbackend = "socket"\npath = "line"',
            "disaggregated",
            1,
            "nobody may be let connect",
        ),
        ('kind = "net"\nbackend = "switch"\nmtu = 100', "", 1, "576"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(
    tmp_path: Path, device: str, machine: str, ends: int, wanted: str
) -> None:
    config = tmp_path / "machine.toml"
    more = {"architecture": machine} if machine else {}
    guests = [guest(f"p{number}", "partitions.guests.idle:main", "x", {}) for number in range(ends)]
    config.write_text(machine_toml(*guests, devices=f'[[root.device]]\nname = "x"\n{device}\n', **more))
    with pytest.raises(ConfigError, match=re.escape(wanted)):
        load(config)


@pytest.mark.parametrize("architecture", list(Architecture))
def test_a_guest_may_have_a_tap_whatever_leads_to_its_network(
    tmp_path: Path, architecture: Architecture
) -> None:
    config = tmp_path / "machine.toml"
    attached = '[[partition.device]]\nname = "net0"\nring_bytes = "64KiB"\n[partition.tap]\ndevice = "net0"\n'
    net = '[[root.device]]\nname = "net0"\nkind = "net"\nbackend = "switch"\n'
    config.write_text(machine_toml(idle_partition("one") + attached, devices=net, architecture=architecture))
    (partition,) = load(config).partitions
    assert partition.tap is not None
