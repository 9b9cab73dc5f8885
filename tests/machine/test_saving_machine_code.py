"""A guest of machine code that is saved in the middle of its work, and goes on in another machine."""

import json
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from runtime.machine.saved_partition import SavedDevice, SavedReader, SavedWriter
from tests.machine.conftest import Boot, RunningMachine, idle_partition, until
from tests.machine.pc_machine import needs_unicorn, pc_machine

pytestmark = [pytest.mark.machine, needs_unicorn]

# Counts in memory, and says each number on its serial line, as four hexadecimal digits.
COUNTING: Final = bytes.fromhex(
    "31c0 8ed8 8ed0 bc0070"  # xor ax,ax; mov ds,ax; mov ss,ax; mov sp,0x7000
    "ff060005 8b1e0005 b90400"  # next: inc word [0x500]; mov bx,[0x500]; mov cx,4
    "c1c304 88d8 240f 0430"  # digit: rol bx,4; mov al,bl; and al,15; add al,'0'
    "3c39 7602 0407 baf803 ee e2eb"  # cmp al,'9'; jbe +2; add al,7; mov dx,0x3f8; out dx,al; loop digit
    "b00a ee b92c01 e2fe"  # mov al,10; out dx,al; mov cx,300; loop $
    "813e00050040 72d0 b80000 f4"  # cmp word [0x500],0x4000; jb next; mov ax,0; hlt
)
SECTOR: Final = COUNTING.ljust(510, b"\0") + b"\x55\xaa"
FEW: Final = 12  # numbers that are waited for


def counting(tmp_path: Path, intercepts: str, *others: str) -> str:
    boot = tmp_path / "boot.bin"
    boot.write_bytes(SECTOR)
    return pc_machine(
        tmp_path,
        "partitions.guests.boot_sector:main",
        *others,
        file=f'[[partition.file]]\nname = "boot"\npath = "{boot}"',
        intercepts=intercepts,
        integration=True,
    )


def numbers(machine: RunningMachine) -> list[int]:
    return [
        int(event["fields"]["text"], 16)
        for event in list(machine.events)
        if event["kind"] == "output" and event["fields"]["stream"] == "serial"
    ]


def said(machine: RunningMachine, *arguments: str) -> dict[str, Any]:
    done = machine.command(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("intercepts", [pytest.param("hypervisor", marks=pytest.mark.soak), "direct"])
def test_a_count_goes_on_in_another_machine_and_none_is_missing_or_twice(
    boot: Boot, tmp_path: Path, intercepts: str
) -> None:
    file = tmp_path / "pc.saved"
    toml = counting(tmp_path, intercepts)
    one = boot(toml)
    until(lambda: len(numbers(one)) >= FEW)
    assert "runs" in one.command("restore", "pc", str(file)).stderr
    answer = said(one, "save", "pc", str(file))
    assert answer["devices"] == ["uart", "keyboard", "rtc", "ide"]
    assert answer["memory_bytes"] >= 1 << 20
    assert answer["bytes"] < 200_000  # of its RAM, the pages that it has used
    one.wait()
    before = numbers(one)
    other = boot(toml, f"partition.pc.restore={file}")
    until(lambda: len(numbers(other)) >= FEW)
    other.command("stop")
    other.wait()
    heard = before + numbers(other)
    heard.pop()  # a line that was cut by the end
    assert heard == list(range(1, len(heard) + 1))
    assert [path.name for path in tmp_path.glob("*saved*")] == ["pc.saved"]


@pytest.mark.soak
def test_a_file_that_is_no_device_of_its_leaves_nothing_behind_and_a_good_one_goes_on(
    boot: Boot, tmp_path: Path
) -> None:
    """All checksums are right: it is the device that refuses what it finds there."""
    good, bad = tmp_path / "good.saved", tmp_path / "bad.saved"
    machine = boot(counting(tmp_path, "direct", idle_partition("two")))
    until(lambda: len(numbers(machine)) >= FEW)
    said(machine, "save", "pc", str(good))
    with good.open("rb") as file:
        reader = SavedReader(file)
        devices = [
            SavedDevice(one.kind, one.state[:-1] if one.kind == "ide" else one.state)
            for one in reader.description.devices
        ]
        with bad.open("wb") as spoilt:
            description = msgspec.structs.replace(reader.description, devices=devices)
            writer = SavedWriter(spoilt, description, reader.state)
            for run in reader.runs():
                writer.run(*run)
            writer.end()
    partitions = machine.command("list").stdout.splitlines()
    refused = machine.command("restore", "pc", str(bad))
    assert refused.returncode != 0
    assert "the saved state of its ide is none" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert len(machine.command("list").stdout.splitlines()) == len(partitions)
    count = len(numbers(machine))
    said(machine, "restore", "pc", str(good))
    until(lambda: len(numbers(machine)) >= count + FEW)
    machine.command("stop")
    machine.wait()
    heard = numbers(machine)[:-1]
    assert heard == list(range(1, len(heard) + 1))
