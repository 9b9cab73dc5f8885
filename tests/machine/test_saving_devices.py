"""A partition that is saved with every class of device in use: what it asked for is done once, and all work again."""

import json
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.machine.conftest import Boot, RunningMachine, machine_toml, until

pytestmark = [pytest.mark.machine, pytest.mark.soak]

BLOCK_BYTES: Final = 64 << 10
BLOCKS: Final = 1 << 14
PROGRAM: Final = f'''
import threading

SIZE = {BLOCK_BYTES}

def block(number, life):
    return (number.to_bytes(8, "little") + life.to_bytes(8, "little")) * (SIZE // 16)

def mirror(partition):
    """Sends each frame back."""
    with partition.open_net("net0") as nic:
        partition.report("mirrors")
        while True:
            asked = [frame for frame in nic.receive(64, 1) if frame[12:14] == b"\\x88\\xb5"]
            frames = [frame[6:12] + nic.mac + frame[12:] for frame in asked]
            if frames:
                nic.send(frames)

def busy(partition):
    """All devices at once, and nothing of it in integration.writing(): a save comes in the middle of anything."""
    words = (partition.restored_state or b"0 0").split()
    state = {{"answered": int(words[0]), "life": int(words[1]) + 1}}
    partition.on_save(lambda: b"%d %d" % (state["answered"], state["life"]))
    rounds = dict.fromkeys(("disk", "net", "serial", "video", "keyboard"), 0)

    def write(disk):
        for number in range(state["answered"]):
            data = disk.read(number * SIZE, 512)
            assert data[:8] == number.to_bytes(8, "little"), number  # it was told that this is written
        for number in range(state["answered"], {BLOCKS}):
            disk.write(number * SIZE, block(number, state["life"]))
            state["answered"] = number + 1
            yield

    def send(nic):
        frame = b"\\xff" * 6 + nic.mac + b"\\x88\\xb5" + bytes(500)
        while True:
            nic.send([frame])
            if any(one[12:14] == b"\\x88\\xb5" for one in nic.receive(64, 0.5)):
                yield

    def say(line):
        while True:
            line.write(b"a line of it\\n")
            assert line.flush(60)
            yield

    def paint(video):
        while True:
            video.fill(0, 0, 100, 100, rounds["video"])
            video.dirty(0, 0, 100, 100)
            yield

    def listen(keyboard):
        while True:
            keyboard.read(0.05)
            yield

    uses = {{
        "disk": (write, lambda: partition.open_disk("disk0")),
        "net": (send, lambda: partition.open_net("net0")),
        "serial": (say, lambda: partition.open_serial("serial0")),
        "video": (paint, lambda: partition.open_video("screen0", 320, 200)),
        "keyboard": (listen, lambda: partition.open_keyboard("keyboard0")),
    }}

    def use(name):
        work, opening = uses[name]
        try:
            with opening() as device:
                for _ in work(device):
                    rounds[name] += 1
        except Exception as error:
            if not partition.integration.stopping.is_set():  # otherwise all are being closed
                partition.report("failed", device=name, error=repr(error))

    for name in uses:
        threading.Thread(target=use, args=(name,), daemon=True).start()
    told = 0
    while not partition.integration.stopping.wait(0.05):
        if min(rounds.values()) >= told + 10:
            told = min(rounds.values())
            partition.report("worked", life=state["life"], rounds=dict(rounds))
'''
DEVICES: Final = """
[[root.device]]
name = "disk0"
kind = "disk"
backend = "file"
path = "{image}"
size = "1GiB"
[[root.device]]
name = "net0"
kind = "net"
backend = "switch"
[[root.device]]
name = "serial0"
kind = "serial"
backend = "console"
[[root.device]]
name = "screen0"
kind = "video"
[[root.device]]
name = "keyboard0"
kind = "keyboard"
"""


def lives(machine: RunningMachine) -> list[int]:
    return [event["fields"]["life"] for event in list(machine.events) if event["kind"] == "guest.worked"]


def _is_in_life(machine: RunningMachine, life: int) -> bool:
    return lives(machine)[-1:] == [life]


def _has_worked(machine: RunningMachine, count: int) -> bool:
    return len(lives(machine)) > count


def _told(machine: RunningMachine) -> str:
    lines = [f"{event['kind']} {event['partition']} {event['fields']}" for event in machine.events[-40:]]
    return "\n".join([machine.errors, *lines])


@pytest.mark.parametrize("architecture", ["microkernelized", "disaggregated"])
def test_what_was_under_way_is_done_once_and_every_device_works_again(
    boot: Boot, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "busy_devices.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    image, file, copy = tmp_path / "disk.img", tmp_path / "one.saved", tmp_path / "copy.saved"
    guest = (
        '[[partition]]\nname = "one"\nprogram = "busy_devices:busy"\nmemory = "64MiB"\nintegration = true\n'
    )
    guest += "".join(
        f'[[partition.device]]\nname = "{name}"\n'
        for name in ("disk0", "net0", "serial0", "screen0", "keyboard0")
    )
    other = (
        '[[partition]]\nname = "two"\nprogram = "busy_devices:mirror"\n[[partition.device]]\nname = "net0"\n'
    )
    toml = machine_toml(
        guest, other, devices=DEVICES.format(image=image), memory="512MiB", architecture=architecture
    )
    machine, answered = boot(toml), []
    for life in (1, 2):
        until(partial(_is_in_life, machine, life), lambda: _told(machine))
        done = machine.command("save", "one", str(copy), "--go-on", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["goes_on"]
        count = len(lives(machine))
        until(partial(_has_worked, machine, count + 1), lambda: _told(machine))  # it does
        done = machine.command("save", "one", str(file))
        assert done.returncode == 0, done.stderr
        assert "has changed" in machine.command("restore", "one", str(copy)).stderr  # it went on once already
        answered.append(_answered(file))
        done = machine.command("restore", "one", str(file))
        assert done.returncode == 0, done.stderr
    until(lambda: lives(machine)[-1:] == [3], lambda: _told(machine))
    bad = ("root.failed", "guest.failed")
    assert not [event for event in machine.events if event["kind"] in bad]
    machine.command("stop")
    machine.wait()
    found = _lives_on(image)
    assert len(found) >= answered[-1]
    for life, (begin, end) in enumerate(zip([0, *answered], [*answered, answered[-1]], strict=True), 1):
        assert set(found[begin:end]) <= {life}  # what was answered in a life is never overwritten by another


def _answered(file: Path) -> int:
    from runtime.machine.saved_file import load

    return int(load(file).state.split()[0])


def _lives_on(image: Path) -> list[int]:
    """Of each block, from the first on, the life that wrote it; each is whole."""
    found: list[int] = []
    with image.open("rb") as disk:
        while any(data := disk.read(BLOCK_BYTES)):
            assert data == data[:16] * (BLOCK_BYTES // 16)
            assert int.from_bytes(data[:8], "little") == len(found)
            found.append(int.from_bytes(data[8:16], "little"))
    return found
