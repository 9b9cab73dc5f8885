"""A partition's disk, exported over NBD, as programs see it that nobody here wrote."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.machine.conftest import PATIENCE_S, Boot, RunningMachine, machine_toml
from tests.partitions.nbd_pair import FUA, Client

pytestmark = pytest.mark.machine
DISK_BYTES = 16 << 20


def nbd_machine(disk: str, architecture: str = "microkernelized", **settings: str) -> str:
    """`disk`: what its table says beyond name and kind."""
    return machine_toml(
        '[[partition]]\nname = "export"\nprogram = "partitions.guests.nbd:main"\nargs = { device = "disk0" }\n'
        '[[partition.device]]\nname = "disk0"\n[[partition.file]]\nname = "nbd"\nmode = "listen"\n',
        devices=f'[[root.device]]\nname = "disk0"\nkind = "disk"\n{disk}\n',
        architecture=architecture,
        **settings,
    )


def file_disk(path: Path) -> str:
    return f'backend = "file"\npath = "{path}"\nsize = {DISK_BYTES}'


def overlay_disk(base: Path, path: Path | None) -> str:
    over = f"size = {DISK_BYTES}" if path is None else f'path = "{path}"'
    return f'backend = "overlay"\nbase = "{base}"\n{over}'


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def uri_of(machine: RunningMachine) -> str:
    return str(machine.wait_for("guest.nbd_ready")["fields"]["uri"])


def path_of(uri: str) -> str:
    return uri.partition("socket=")[2]


def test_real_programs_find_a_disk_that_keeps_what_they_write(
    boot: Boot, scratch: Path, tmp_path: Path
) -> None:
    """With those that are installed; the raw client always."""
    image = tmp_path / "disk.img"
    machine = boot(nbd_machine(file_disk(image)))
    uri, source, back = uri_of(machine), str(scratch / "source"), str(scratch / "back")
    assert Path(path_of(uri)).stat().st_mode & 0o777 == 0o600
    with Client(path_of(uri)) as client:
        client.write(DISK_BYTES - 4096, b"raw!" * 1024, FUA)
        assert client.read(DISK_BYTES - 4096, 4096) == b"raw!" * 1024
        shown = machine.command("authority")
        assert shown.returncode == 0, shown.stdout + shown.stderr
        assert "clients of export.nbd" in shown.stdout
    Path(source).write_bytes(os.urandom(DISK_BYTES))
    if shutil.which("nbdinfo"):
        (told,) = json.loads(run("nbdinfo", "--json", uri))["exports"]
        assert (told["export-name"], told["export-size"]) == ("disk0", DISK_BYTES)
        assert told["can_multi_conn"]
        assert told["can_trim"]
        assert told["can_zero"]
        assert told["can_fua"]
    if shutil.which("nbdcopy"):
        run("nbdcopy", "--flush", source, uri)
        assert image.read_bytes() == Path(source).read_bytes()
        run("nbdcopy", uri, back)
        assert Path(back).read_bytes() == Path(source).read_bytes()
    if shutil.which("qemu-img"):
        assert json.loads(run("qemu-img", "info", "--output=json", uri))["virtual-size"] == DISK_BYTES
        run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri)
    if shutil.which("fio"):
        run(
            *("fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", "--rw=randrw", "--bsrange=4k-64k"),
            *("--iodepth=32", "--size=8M", "--verify=crc32c", "--randseed=1", f"--aux-path={scratch}"),
        )
    machine.process.send_signal(signal.SIGTERM)
    machine.wait()
    assert not Path(path_of(uri)).exists()


def test_an_export_outlives_its_root_and_an_overlay_its_machine(boot: Boot, tmp_path: Path) -> None:
    """What was written is there afterwards, on the same connection; nothing that is asked fails; the base stays."""
    base, overlay, content = tmp_path / "base", tmp_path / "overlay", os.urandom(DISK_BYTES)
    base.write_bytes(content)
    text = nbd_machine(overlay_disk(base, overlay), on_root_failure="restart")
    machine = boot(text)
    with Client(path_of(uri_of(machine))) as client:
        client.write(512, b"before" + bytes(506))
        os.kill(machine.pid("root"), signal.SIGKILL)
        client.write(1024, b"meanwhile" + bytes(503), FUA)
        wanted = content[:512] + b"before" + bytes(506) + b"meanwhile" + bytes(503) + content[1536:8192]
        assert client.read(0, 8192) == wanted
    machine.wait_for("root.restored")
    machine.destroy()
    assert machine.leftovers() == []  # who dies with it may be the last to let go of the overlay
    with Client(path_of(uri_of(boot(text)))) as client:
        assert client.read(0, 8192) == wanted
        assert client.read(DISK_BYTES - 8192, 8192) == content[-8192:]
    assert base.read_bytes() == content


@pytest.mark.soak
@pytest.mark.parametrize("architecture", ["disaggregated", "monolithic", "hosted"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_an_overlay_is_the_same_wherever_its_server_runs(
    boot: Boot, tmp_path: Path, architecture: str, in_memory: bool
) -> None:
    base = tmp_path / "base"
    base.write_bytes(b"b" * DISK_BYTES)
    disk = overlay_disk(base, None if in_memory else tmp_path / "overlay")
    machine = boot(nbd_machine(disk, architecture, on_root_failure="restart"))
    with Client(path_of(uri_of(machine))) as client:
        client.write(0, b"o" * 512)
        os.kill(machine.pid("root"), signal.SIGKILL)
        assert client.read(0, 1024) == b"o" * 512 + b"b" * 512


@pytest.mark.soak
@pytest.mark.parametrize("architecture", ["disaggregated", "monolithic", "hosted"])
def test_it_is_there_under_each_architecture_with_rings(
    boot: Boot, tmp_path: Path, architecture: str
) -> None:
    machine = boot(nbd_machine(file_disk(tmp_path / "disk.img"), architecture))
    with Client(path_of(uri_of(machine))) as client:
        client.write(4096, b"x" * 65536)
        assert client.read(4096, 65536) == b"x" * 65536


@pytest.mark.soak
def test_without_rings_it_says_in_one_line_that_it_is_not(boot: Boot, tmp_path: Path) -> None:
    machine = boot(nbd_machine(file_disk(tmp_path / "disk.img"), "microkernel"))
    machine.wait_for("partition.exited", "export")
    (said,) = [event["fields"]["text"] for event in machine.events if event["kind"] == "output"]
    assert said.startswith("nbd: an export needs a ring")
