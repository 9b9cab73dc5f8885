"""A guest with a screen on a whole machine: VNC clients, ours and somebody else's, draw on it; its root dies."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from partitions.display.mouse_wire import Buttons
from partitions.guests.bitmap_font import GLYPH_WIDTH, rows_of
from partitions.guests.paint import BLACK, CELL_HEIGHT, CELL_WIDTH, COLOURS, MARGIN, SCALE, WHITE
from runtime.machine.screen_client import Look, look_at
from tests.machine.conftest import PATIENCE_S, Boot, RunningMachine, machine_toml, until
from tests.partitions.rfb_client import DESKTOP_SIZE, RAW, ZRLE, RfbClient
from tests.stopping import stop

pytestmark = pytest.mark.machine

RED = COLOURS[Buttons.LEFT]
DEVICES = "".join(
    f'[[root.device]]\nname = "{kind}0"\nkind = "{kind}"\n' for kind in ("keyboard", "mouse", "video")
)
PAINTER = '[[partition]]\nname = "painter"\nprogram = "partitions.guests.paint:main"\nmemory = "32MiB"\n' + (
    'args = { screen = "video0" }\n'
    + "".join(f'[[partition.device]]\nname = "{kind}0"\n' for kind in ("keyboard", "mouse", "video"))
)


def painter(**settings: str) -> str:
    devices = DEVICES + 'width = 320\nheight = 200\nvnc = "127.0.0.1:0"\n'
    return machine_toml(PAINTER, devices=devices, on_root_failure="restart", **settings)


def addresses(machine: RunningMachine) -> dict[str, str]:
    done = machine.command("screen", "painter", "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def viewer(machine: RunningMachine) -> RfbClient:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(addresses(machine)["unix"])
    return RfbClient(sock)


def reads(look: Look, text: str, line: int = 0) -> bool:
    """Whether that text stands there, pixel by pixel."""
    for place, character in enumerate(text):
        for row, bits in enumerate(rows_of(character)):
            for column in range(GLYPH_WIDTH):
                x = MARGIN + place * CELL_WIDTH + column * SCALE
                y = MARGIN + line * CELL_HEIGHT + row * SCALE
                wanted = BLACK if bits >> (GLYPH_WIDTH - 1 - column) & 1 else WHITE
                if look.pixel(x, y) != wanted:
                    return False
    return True


def png(path: Path) -> tuple[int, int, bytes]:
    """Width, height, RGB rows of a PNG with no filter, as ours are."""
    data = path.read_bytes()
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    start = data.index(b"IDAT") + 4
    rows = zlib.decompress(data[start : start + int.from_bytes(data[start - 8 : start - 4], "big")])
    step = 1 + 3 * width
    assert all(rows[at] == 0 for at in range(0, len(rows), step))
    return width, height, b"".join(rows[at + 1 : at + step] for at in range(0, len(rows), step))


def test_what_is_typed_and_painted_stands_on_the_screen_and_outlives_the_root(
    boot: Boot, tmp_path: Path
) -> None:
    machine = boot(painter())
    machine.wait_for("guest.painting", "painter")
    assert machine.wait_for("screen.ready", "painter")["fields"] == {
        key: value for key, value in addresses(machine).items() if key != "name"
    }
    path = Path(addresses(machine)["unix"])
    with viewer(machine) as held:
        held.type("Ab 1?")
        held.until(MARGIN + 2 * SCALE, MARGIN, BLACK)
        held.point(50, 100, 1)
        held.point(150, 150, 1)
        held.until(150, 150, RED)
        held.point(150, 150, 0)
        until(lambda: reads(look_at(path), "AB 1?"))
        seen = look_at(path)
        assert (seen.name, seen.width, seen.height) == ("painter", 320, 200)
        assert seen.pixel(50, 150) == seen.pixel(150, 100) == WHITE
        assert all(seen.pixel(50 + step, 100 + step // 2) == RED for step in range(0, 101, 5))
        held.key(ord("z"), True)  # and never up
        held.point(10, 190, 1)
        held.until(10, 190, RED)
        _the_picture_is_a_file(machine, tmp_path, path)
        _nobody_holds_more_than_is_granted(machine)
        stop(machine.pid("root"))
        early = socket.socket(socket.AF_UNIX)
        early.connect(str(path))  # nobody is there to let it in; and then there is nobody at all
        os.kill(machine.pid("root"), signal.SIGKILL)
        with RfbClient(early) as waited:
            assert waited.name == "painter"
        machine.wait_for("root.restored")
        with pytest.raises(ConnectionError):  # its viewers went with it
            held.until(0, 0, RED)
    _another_root_serves_them(machine, path)
    _somebody_elses_viewer(machine, tmp_path)
    assert machine.command("stop").returncode == 0
    assert machine.wait() == 0


def _nobody_holds_more_than_is_granted(machine: RunningMachine) -> None:
    """While a viewer is there."""
    done = machine.command("authority", "root", "--json")
    found = json.loads(done.stdout)
    assert "viewers of painter" in str(found["processes"]["root"])
    assert "screen" not in str([found["unexplained"], found["beyond_the_config"]])


def _the_picture_is_a_file(machine: RunningMachine, folder: Path, path: Path) -> None:
    file = folder / "ours.png"
    done = machine.command("screen", "painter", "--png", str(file))
    assert (done.returncode, done.stdout) == (0, f"{file}: 320 x 200 pixels\n")
    seen = look_at(path)
    assert png(file) == (320, 200, seen.pixels)
    assert machine.command("screen", "painter", "--png", "/nowhere/x.png").returncode == 1
    assert machine.command("screen", "nobody").returncode == 3


def _another_root_serves_them(machine: RunningMachine, path: Path) -> None:
    """All that stood there stands there, by the same address; keys and buttons are up."""
    until(lambda: reads(look_at(path), "AB 1?Z"))
    assert look_at(path).pixel(150, 150) == RED
    with viewer(machine) as again:
        again.set_encodings([ZRLE, DESKTOP_SIZE, RAW])
        again.ask(incremental=False)
        again.update()
        again.point(30, 190, 0)
        again.point(200, 60, 1)
        again.until(200, 60, RED)
        again.point(200, 60, 0)
        again.type("!")
        until(lambda: reads(look_at(path), "AB 1?Z!"))
    assert look_at(path).pixel(20, 190) == WHITE  # the button that was held painted nothing on the way
    rows = json.loads(machine.command("show", "painter", "--json").stdout)["devices"]
    assert {row["device"]: row["malformed"] for row in rows} == {"keyboard0": 0, "mouse0": 0, "video0": 0}


def _somebody_elses_viewer(machine: RunningMachine, folder: Path) -> None:
    """vncdotool types, clicks and captures, by the port."""
    vncdo = shutil.which("vncdo", path=str(Path(sys.executable).parent)) or shutil.which("vncdo")
    if vncdo is None:
        pytest.skip("vncdotool is not installed: pip install vncdotool")
    from PIL import Image  # comes with it

    host, _, port = addresses(machine)["tcp"].rpartition(":")
    shot = folder / "shot.png"
    words = ["key", "enter", "type", "vnc", "move", "100", "90", "mousedown", "3", "move", "110", "90"]
    steps = [*words, "mouseup", "3", "pause", "0.3", "capture", str(shot)]
    done = subprocess.run(
        [vncdo, "-s", f"{host}::{port}", *steps], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    with Image.open(shot) as image:
        pixels = image.convert("RGB").tobytes()
        look = Look("", image.width, image.height, pixels)
    assert (look.width, look.height) == (320, 200)
    assert reads(look, "VNC", line=1)
    assert all(look.pixel(x, 90) == COLOURS[Buttons.RIGHT] for x in range(100, 111))


@pytest.mark.soak
@pytest.mark.parametrize("architecture", ["disaggregated", "monolithic", "hosted", "microkernel"])
def test_a_screen_is_there_in_every_architecture(boot: Boot, architecture: str) -> None:
    machine = boot(painter(architecture=architecture))
    machine.wait_for("guest.painting", "painter")
    with viewer(machine) as held:
        held.type("hi")
        held.point(50, 100, 1)
        held.until(50, 100, RED)
    until(lambda: reads(look_at(Path(addresses(machine)["unix"])), "HI"))
    machine.command("stop")
    assert machine.wait() == 0
