"""Guests without enlightenments on whole machines, and what becomes of their accesses when roots die."""

import contextlib
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path
from typing import Final

import pytest

from tests.machine.conftest import PATIENCE_S, Boot, RunningMachine, until
from tests.machine.pc_machine import needs_unicorn, pc_machine

pytestmark = pytest.mark.machine

REPOSITORY: Final = Path(__file__).parents[2]
KILLS: Final = 4


def lines_of(machine: RunningMachine, partition: str = "pc") -> list[str]:
    """What it said on its serial line."""
    return [
        str(event["fields"]["text"])
        for event in machine.events
        if event["kind"] == "output"
        and event["partition"] == partition
        and event["fields"]["stream"] == "serial"
    ]


@pytest.mark.parametrize("intercepts", ["hypervisor", "direct"])
def test_a_python_guest_drives_a_pc_by_its_ports(boot: Boot, tmp_path: Path, intercepts: str) -> None:
    uart = r'input = "good day\n"'
    machine = boot(
        pc_machine(
            tmp_path, "partitions.guests.legacy:main", args="listen = true", uart=uart, intercepts=intercepts
        )
    )
    found = machine.wait_for("guest.legacy", "pc")["fields"]
    assert machine.wait() == 0, machine.errors
    assert found["matches"] is True
    assert found["sectors"] == 2048
    assert found["interrupts"] == 4
    assert found["typed"] == "good day"
    assert abs(found["clock"] - time.time()) < 3600  # the host's clock, not 1970
    lines = lines_of(machine)
    assert lines[-1] == "you said: good day"
    assert "keyboard controller: self test passed" in lines
    assert any("8 sectors from 1: written and read back" in line for line in lines)
    assert (tmp_path / "disk.img").read_bytes()[512:1024] != bytes(512)


def _pattern(boots: int) -> bytes:
    """The sector that the boot sector writes: its count, "PV", and words made of the count."""
    words = [boots, 0x5650, *((boots + left) & 0xFFFF for left in range(254, 0, -1))]
    return struct.pack("<256H", *words)


@needs_unicorn
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_boot_sector_verifies_what_the_boot_before_it_wrote(
    boot: Boot, tmp_path: Path, is_whole: bool
) -> None:
    sector = bytearray(_pattern(6))
    if not is_whole:
        sector[100] ^= 1
    (tmp_path / "disk.img").write_bytes(bytes(512) + sector + bytes((1 << 20) - 1024))
    file = f'[[partition.file]]\nname = "boot"\npath = "{REPOSITORY}/configs/bootsector.bin"\n'
    machine = boot(pc_machine(tmp_path, "partitions.guests.boot_sector:main", file=file))
    halted = machine.wait_for("guest.halted", "pc")["fields"]
    machine.wait()
    if is_whole:
        said = [
            "sector 1: verified, written by boot 0006",
            "sector 1: written, flushed and read back by boot 0007",
        ]
    else:
        said = ["sector 1: WRONG DATA"]
    assert lines_of(machine) == ["boot sector: running in real mode", *said]
    assert halted["ax"] == (0 if is_whole else 1)
    assert (tmp_path / "disk.img").read_bytes()[512:1024] == (_pattern(7) if is_whole else sector)


@pytest.mark.skipif(shutil.which("objcopy") is None, reason="binutils are not installed")
def test_the_boot_sector_is_what_its_source_makes(tmp_path: Path) -> None:
    made = tmp_path / "boot.bin"
    subprocess.run([REPOSITORY / "scripts" / "bootsector", made], check=True)
    assert made.read_bytes() == (REPOSITORY / "configs" / "bootsector.bin").read_bytes()


def test_machine_code_without_unicorn_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    from types import SimpleNamespace
    from typing import Any, cast

    from partitions.vp.machine_code import MachineCode, MachineCodeError

    monkeypatch.setitem(sys.modules, "unicorn", cast(Any, None))
    with pytest.raises(MachineCodeError, match=r"pip install 'partvisor\[emulation\]'"):
        MachineCode(cast(Any, SimpleNamespace(hypercalls=None)), 4096)


def test_garbage_in_a_direct_intercept_page_hurts_nobody(boot: Boot, tmp_path: Path) -> None:
    program = "tests.machine.guest_programs:spoil_the_page"
    machine = boot(pc_machine(tmp_path, program, intercepts="direct"))
    assert machine.wait_for("guest.spoiled", "pc")["fields"]["right"] is True
    assert machine.wait() == 0, machine.errors
    assert not [event for event in machine.events if event["kind"] == "root.failed"]


@pytest.mark.parametrize("intercepts", ["hypervisor", "direct"])
def test_no_access_is_lost_or_done_twice_when_roots_die(boot: Boot, tmp_path: Path, intercepts: str) -> None:
    """Killed at random instants; each death falls into some access of the guest, or into what follows from one."""
    rng = random.Random(intercepts)
    program = "tests.machine.guest_programs:work_a_pc"
    machine = boot(pc_machine(tmp_path, program, intercepts=intercepts, on_root_failure="standby"))
    machine.wait_for("output", "pc")
    killed: list[int] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(killed) < KILLS:
        assert time.monotonic() < deadline, machine.events[-20:]
        pids = [event["fields"]["pid"] for event in machine.events if event["kind"] == "root.started"]
        if pids[-1] in killed:
            time.sleep(0.002)
            continue
        time.sleep(rng.uniform(0, 0.1))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[-1], signal.SIGKILL)
        killed.append(pids[-1])
    said_so_far = len(lines_of(machine))
    until(lambda: len(lines_of(machine)) > said_so_far)
    os.kill(machine.pid("pc"), signal.SIGTERM)
    worked = machine.wait_for("guest.worked", "pc")["fields"]
    assert machine.wait() == 0, machine.errors
    assert worked["wrong"] == 0
    said = [re.fullmatch(r"round (\d+) right", line) for line in lines_of(machine)]
    assert all(said), lines_of(machine)
    numbers = [int(found[1]) for found in said if found is not None]
    assert sorted(set(numbers)) == list(range(worked["rounds"]))  # each; one may be said twice
    assert numbers == sorted(numbers)
