"""What the hypervisor keeps of a partition, and its memory, come back with it: nothing of it is its program's work."""

import time
from pathlib import Path
from typing import Final

import pytest

from runtime.abi import PAGE_BYTES
from runtime.machine.saved_file import load
from tests.machine.conftest import Boot, idle_partition, machine_toml

pytestmark = pytest.mark.machine

PAGES: Final = 600  # more than one run of a file
FILLED: Final = (3, 4, 555)
PROGRAM: Final = f'''
from bus.synic import TimerExpired
from runtime.abi import RegisterName, sint_register

NAMES = [RegisterName.SCONTROL, RegisterName.SIMP, RegisterName.SIEFP] + [sint_register(n) for n in range(16)]

def keeping(partition):
    """VP 1 and the pages are set up once, by the one that begins."""
    vp, memory = partition.vps[1], partition.map_memory(0x500, {PAGES}).memory
    if partition.restored_state is None:
        for page in {FILLED}:
            memory[page * 4096 : (page + 1) * 4096] = bytes([page % 251]) * 4096
        vp.enable((5, 6, 7), vector=0x40)
        vp.event_flags[7 * 256 + 1] = 1 << 1  # flag 9
        now = partition.reference_time()
        vp.timers[0].one_shot(now + 10_000_000, sint=5)
        vp.timers[1].periodic(12_000_000, sint=6)
        then = partition.reference_time()
        partition.on_save(lambda: b"kept")
        registers = partition.hypercalls.get_vp_registers(NAMES, 1)
        partition.report("began", one_shot=now + 10_000_000, first=now, last=then, registers=registers)
        partition.integration.stopping.wait()
        return
    registers = partition.hypercalls.get_vp_registers(NAMES, 1)
    came_back = partition.reference_time()
    expired = {{}}
    while len(expired) < 2:
        for sint in (5, 6):
            for kind, sender, payload in vp.take_messages(sint):
                expired.setdefault(sint, TimerExpired.decode(payload).expired)
        if len(expired) < 2:
            vp.wait(100)
    partition.report(
        "goes_on",
        state=partition.restored_state.decode(),
        filled=[page for page in range({PAGES}) if any(memory[page * 4096 : (page + 1) * 4096])],
        right=all(memory[page * 4096 : (page + 1) * 4096] == bytes([page % 251]) * 4096 for page in {FILLED}),
        flags=vp.take_events(7),
        registers=registers,
        time=came_back,
        one_shot=expired[5],
        periodic=expired[6],
    )
'''


def test_memory_clock_timers_and_synic_come_back_by_themselves(
    boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keeping_state.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    file = tmp_path / "one.saved"
    machine = boot(
        machine_toml(
            '[[partition]]\nname = "one"\nprogram = "keeping_state:keeping"\nmemory = "16MiB"\nvps = 2\n'
            "integration = true\n",
            idle_partition("two"),
        )
    )
    began = machine.wait_for("guest.began", "one")["fields"]
    machine.command("pause", "one")  # it has to run to come to rest, and is let
    assert "No such file" in machine.command("save", "one", "/nowhere/at/all").stderr
    assert (done := machine.command("save", "one", str(file))).returncode == 0, done.stderr
    spoilt = tmp_path / "spoilt.saved"
    data = bytearray(file.read_bytes())
    data[-PAGE_BYTES] ^= 1  # in the last page
    spoilt.write_bytes(data)
    assert "its memory has changed" in machine.command("restore", "one", str(spoilt)).stderr
    saved = load(file).description.hypervisor
    before = time.monotonic()
    assert (done := machine.command("restore", "one", str(file))).returncode == 0, done.stderr
    found = machine.wait_for("guest.goes_on", "one")["fields"]
    passed = int((time.monotonic() - before) * 10_000_000)
    assert found["state"] == "kept"
    assert found["filled"] == list(FILLED)
    assert found["right"] is True
    assert found["flags"] == [9]
    assert found["registers"] == began["registers"]
    assert saved.reference_time <= found["time"] <= saved.reference_time + passed
    assert found["one_shot"] == began["one_shot"]
    assert began["first"] <= found["periodic"] - 12_000_000 <= began["last"]
