"""Captures wherever the switch is: by whom the frames are seen, in which file, and what a death of the switch costs."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from runtime.config.architecture import Architecture
from tests.machine.conftest import PARTVISOR, PATIENCE_S, Boot, RunningMachine, machine_toml
from tests.machine.test_network_backends import frames_of

pytestmark = [pytest.mark.machine, pytest.mark.soak]

TALKERS: Final = '''
import time


def talk(partition):
    """Frames with their number and the name of who sends them, for ever: left begins, right answers each."""
    name, count = partition.name.encode(), 0
    with partition.open_net("net0") as nic:
        while True:
            if name == b"left" or nic.receive(64, 60):
                count += 1
                frame = b"\\xff" * 6 + nic.mac + b"\\x88\\xb5" + name + count.to_bytes(8, "big") + bytes(46)
                nic.send([frame], 1)
            if name == b"left":
                nic.receive(64, 1)
                time.sleep(0.002)
            if count == 20:
                partition.report("talking")
'''
NETWORK: Final = '[[root.device]]\nname = "net0"\nkind = "net"\nbackend = "switch"\n'
TYPE: Final = b"\x88\xb5"


def talker(name: str) -> str:
    return (
        f'[[partition]]\nname = "{name}"\nprogram = "talkers:talk"\nmemory = "32MiB"\n'
        '[[partition.device]]\nname = "net0"\n'
    )


class Capturing:
    """`partvisor capture`, as a user runs it."""

    def __init__(self, machine: RunningMachine, *words: str) -> None:
        self.process = subprocess.Popen(
            [*PARTVISOR, "capture", *words, "--json"],
            env=machine.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def told(self) -> dict[str, Any]:
        output, errors = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0, errors
        told: dict[str, Any] = json.loads(output)
        return told


def senders(frames: list[bytes]) -> set[bytes]:
    assert all(frame[12:14] == TYPE for frame in frames)
    return {frame[14 : -(8 + 46)] for frame in frames}


def numbers_of(frames: list[bytes], sender: bytes) -> list[int]:
    at = 14 + len(sender)
    return [int.from_bytes(one[at : at + 8], "big") for one in frames if one[14:at] == sender]


def see_on(machine: RunningMachine, long: Path, out: Path) -> None:
    """What `left` sends and hears is captured in `out`, and then later frames stand in `long`, too, from whoever has
    the switch now."""
    assert Capturing(machine, "left", str(out), "--count", "20").told()["frames"] == 20
    last = max(numbers_of(frames_of(out), b"left"))
    deadline = time.monotonic() + PATIENCE_S
    while max(_numbers_in(long.read_bytes()), default=0) <= last:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _numbers_in(data: bytes) -> Iterator[int]:
    """As `numbers_of`, while the file is being written."""
    head = TYPE + b"left"
    at = data.find(head)
    while 0 <= at <= len(data) - len(head) - 8:
        yield int.from_bytes(data[at + len(head) :][:8], "big")
        at = data.find(head, at + 1)


@pytest.mark.parametrize("architecture", list(Architecture))
def test_a_capture_has_each_frame_once_wherever_the_switch_is(
    boot: Boot, architecture: Architecture, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network's, and one port's; a death of who has the switch interrupts, and a root's death only where it is it."""
    (tmp_path / "talkers.py").write_text(TALKERS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    machine = boot(
        machine_toml(
            talker("left"),
            talker("right"),
            devices=NETWORK,
            architecture=str(architecture),
            on_root_failure="restart",
        )
    )
    for name in ("left", "right"):
        machine.wait_for("guest.talking", name)
    out, long = scratch / "all.pcap", scratch / "long.pcap"
    whole = Capturing(machine, "net0", str(long))
    first = Capturing(machine, "net0", str(out), "--count", "60").told()
    assert first["frames"] == 60
    frames = frames_of(out)
    assert senders(frames) == {b"left", b"right"}
    for sender in (b"left", b"right"):
        numbers = numbers_of(frames, sender)
        assert numbers == sorted(set(numbers))
        if not first["dropped"]:
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    if shutil.which("tshark"):
        shown = subprocess.run(["tshark", "-r", str(out)], capture_output=True, text=True, check=True).stdout
        assert shown.count("\n") == 60
    assert machine.command("capture", "net0", str(out), "--port", "outside").returncode != 0
    refused = machine.command("capture", "net9", str(out))
    assert (refused.returncode != 0, "net9" in refused.stderr) == (True, True)

    see_on(machine, long, out)
    if architecture is not Architecture.MICROKERNELIZED:
        machine.command("crash", "root")
        machine.wait_for("root.restored")
        see_on(machine, long, out)
    if architecture is not Architecture.MONOLITHIC:  # there the hypervisor has the switch
        machine.command("crash", "root" if architecture is Architecture.MICROKERNELIZED else "net0")
        see_on(machine, long, out)
    whole.process.send_signal(signal.SIGINT)
    told = whole.told()
    assert told["interruptions"] == (0 if architecture is Architecture.MONOLITHIC else 1)
    assert told["lost"] is None
    assert len(frames_of(long)) == told["frames"]
