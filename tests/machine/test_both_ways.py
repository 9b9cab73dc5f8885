"""One network driver, one line, one guest, in each of the five architectures: the same results, and who is in between.

What is said of processes is read from /proc, or found by stopping them.
"""

import contextlib
import json
import os
import signal
import time
import tty
from pathlib import Path
from typing import Any, Final

import pytest

from tests.machine.conftest import Boot, machine_toml
from tests.stopping import stop

pytestmark = pytest.mark.machine

PROGRAM: Final = '''
from partitions.sdk.net import NetDriver

ADDRESS = bytes.fromhex("020000000001")


class Mirror(NetDriver):
    """Sends each frame back to who sent it. Its file is open as long as it is."""

    mtu = 4000

    def __init__(self, context):
        super().__init__(context)
        self._frames = []

    def transmit(self, frames):
        self._frames += [bytes(frame[6:12]) + ADDRESS + bytes(frame[12:]) for frame in frames]
        return len(frames)

    def receive(self, limit):
        frames, self._frames = self._frames[:limit], self._frames[limit:]
        return frames


def exchange(nic, payloads):
    nic.send([ADDRESS + nic.mac + b"\\x88\\xb5" + payload for payload in payloads])
    back = []
    while len(back) < len(payloads):
        back += nic.receive(64, 60)
    return back == [nic.mac + ADDRESS + b"\\x88\\xb5" + payload for payload in payloads]


def main(partition):
    open_line = partition.open_serial
    with partition.open_net("net0") as nic, open_line("line0") as line, open_line("loop0") as loop:
        well = [exchange(nic, [bytes([n]) * size for n in range(40)]) for size in (46, 1500, 4000)]
        nic.flush(10)
        data, back = bytes(range(256)) * 40, b""
        taken = loop.write(data, 10)
        while len(back) < len(data):
            back += loop.read(3000, 60)
        partition.report(
            "said", mtu=nic.mtu, link=nic.link_up, well=well, in_flight=nic.in_flight, taken=taken, back=back == data,
            flushed=loop.flush(10), nothing=[loop.read(1, 0).decode(), nic.receive(1, 0)], net=nic.statistics(),
            loop=loop.statistics(),
        )
        while (word := line.read(100, 60)) != b".":
            if word[:1] == b"n":
                exchange(nic, [word])
            line.write(word.upper())
'''
SAID: Final = {
    "mtu": 4000,
    "link": True,
    "well": [True] * 3,
    "in_flight": 0,
    "taken": 10240,
    "back": True,
    "flushed": True,
    "nothing": ["", []],
    "net": {
        "frames_sent": 120,
        "frames_received": 120,
        "bytes_sent": 40 * (46 + 1500 + 4000 + 3 * 14),
        "bytes_received": 40 * (46 + 1500 + 4000 + 3 * 14),
        **dict.fromkeys(("errors", "dropped", "malformed", "unknown_ids", "link_changes", "in_flight"), 0),
    },
    "loop": {"bytes_written": 10240, "bytes_read": 10240, "malformed": 0},
}
CROSSED: Final = {  # by architecture: whom bytes of the line cross, and whom frames do
    "microkernelized": (["root"], ["root"]),
    "disaggregated": (["line0"], ["net0"]),
    "monolithic": (["hypervisor"], ["hypervisor"]),
    "hosted": (["guest.vmm", "line0"], ["guest.vmm", "net0"]),
    "microkernel": (["line0"], ["net0"]),
}
STILL_S: Final = 0.15  # an answer that does not come within that time waits for somebody
PATIENCE_S: Final = 20.0
_EVERY_TIME: Final = ("hosted", "microkernel")  # other tests see the others every time


def answers(terminal: int, word: bytes, patience_s: float) -> bool:
    """Whether the guest's whole answer to it comes within that time."""
    answer, deadline = b"", time.monotonic() + patience_s
    while len(answer) < len(word) and time.monotonic() < deadline:
        try:
            answer += os.read(terminal, len(word) - len(answer))
        except BlockingIOError:
            time.sleep(0.002)
    assert word.upper().startswith(answer)
    return answer == word.upper()


def has_open(pid: int, target: Path) -> bool:
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            links.append(entry.readlink())
    return target in links


def check_way(terminal: int, kind: bytes, pids: dict[str, int], way: set[str]) -> None:
    """Each process is stopped in its turn: the answer waits for it if, and only if, it is on the way.

    For what has to come there is all the patience in the world: on a busy host it may be late.
    """
    for index, (name, pid) in enumerate(pids.items()):
        word = kind + str(index).encode()  # another one each time: an answer is an answer to this
        stop(pid)
        os.write(terminal, word)
        try:
            if name in way:
                assert not answers(terminal, word, STILL_S), f"{name} is not on the way"
            else:
                assert answers(terminal, word, PATIENCE_S), f"{name} is on the way"
        finally:
            os.kill(pid, signal.SIGCONT)
        if name in way:
            assert answers(terminal, word, PATIENCE_S), f"after {name} went on"


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=[pytest.mark.soak] * (name not in _EVERY_TIME)) for name in CROSSED],
)
def test_a_network_and_a_line_work_alike_in_each_architecture_and_cross_the_processes_that_they_are_said_to(
    boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    (tmp_path / "both.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    backing = tmp_path / "adapter"
    backing.touch()
    devices: dict[str, dict[str, Any]] = {
        "net0": {"kind": "net", "driver": "both:Mirror", "path": str(backing)},
        "line0": {"kind": "serial", "backend": "pty"},
        "loop0": {"kind": "serial", "driver": "partitions.serial.loopback:LoopbackSerial"},
    }
    tables = [
        "\n".join(
            [
                "[[root.device]]",
                f'name = "{name}"',
                *(f"{key} = {json.dumps(what)}" for key, what in keys.items()),
            ]
        )
        for name, keys in devices.items()
    ]
    guest = '[[partition]]\nname = "guest"\nprogram = "both:main"\nmemory = "32MiB"\n'
    guest += "".join(f'[[partition.device]]\nname = "{name}"\n' for name in devices)
    patience = "machine.hang_ms=60000", "machine.stuck_ms=60000"  # who is stopped here is not hung
    machine = boot(
        machine_toml(guest, devices="\n".join(tables) + "\n", architecture=architecture), *patience
    )
    assert machine.wait_for("guest.said")["fields"] == SAID
    line, net = CROSSED[architecture]
    names = {event["partition"] for event in machine.events if event["kind"] == "partition.started"} - {
        "guest"
    }
    hypervisor = machine.pid("hypervisor")
    pids = {name: machine.pid(name) for name in (*sorted(names), "root", "hypervisor")}
    own = {name: pid for name, pid in pids.items() if name == "hypervisor" or pid != hypervisor}
    shown = json.loads(machine.command("show", "guest", "--json").stdout)["devices"]
    served = {row["device"]: [one["process"] for one in row["served_by"]] for row in shown}
    assert served == {
        name: [f"pv-{one}".replace("line0", name) for one in (net if name == "net0" else line)]
        for name in devices
    }
    assert {name for name, pid in own.items() if has_open(pid, backing)} == {net[-1]}
    terminals = {
        name
        for name, pid in own.items()
        if has_open(pid, Path("/dev/pts/ptmx")) or has_open(pid, Path("/dev/ptmx"))
    }
    assert terminals == {"root", line[-1]}  # which keeps it open, while processes of the driver come and go
    path = machine.wait_for("serial.ready")["fields"]["path"]
    terminal = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        tty.setraw(terminal)
        os.write(terminal, b"ready")
        assert answers(terminal, b"ready", PATIENCE_S)
        check_way(terminal, b"hello", own, set(line))
        check_way(terminal, b"network", own, {*line, *net})
        os.write(terminal, b".")
        assert machine.wait() == 0, machine.errors
    finally:
        os.close(terminal)
