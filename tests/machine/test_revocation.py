"""A grant that was taken back is gone: from a driver that lives, and keeps every mapping that it ever had."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.machine.conftest import Boot, RunningMachine, machine_toml
from tests.machine.hostile_driver import MODE_VARIABLE
from tests.machine.test_authority import look

pytestmark = pytest.mark.machine

# In the process that roots, and with them the zygote of all partitions, are forked from. An ordinary user's root is
# executed, in a namespace of its own.
SITE = """
import sys
if {"runtime.machine.incubating", "partitions.power_on"} & set(sys.orig_argv):
    from tests.machine import hostile_driver
    hostile_driver.install()
"""


@pytest.fixture
def with_driver(
    boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], RunningMachine]:
    """with_driver(mode) -> a machine whose driver is the hostile one."""

    def start(mode: str) -> RunningMachine:
        (tmp_path / "sitecustomize.py").write_text(SITE)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
        monkeypatch.setenv(MODE_VARIABLE, mode)
        disk = '[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "file"\npath = "d.img"\nsize = "1MiB"\n'
        guest = (
            '[[partition]]\nname = "guest"\nprogram = "tests.machine.hostile_driver:guest"\nmemory = "16MiB"\n'
            f'args = {{ mode = "{mode}" }}\n[[partition.device]]\nname = "disk0"\n'
        )
        # The others let go, when they have a processor.
        soon = {"stuck_ms": 300} if mode == "ignores-stop" else {}
        return boot(machine_toml(guest, devices=disk, architecture="disaggregated", **soon))

    return start


@pytest.mark.parametrize("mode", ["clings", "rescinds"])
def test_a_driver_that_keeps_a_mapping_keeps_nothing_of_its_guests(
    with_driver: Callable[[str], RunningMachine], mode: str
) -> None:
    """It saw what it was given. After the close, or the rescind, it finds zeros, what it writes there goes nowhere, and
    what the guest does on the next channel, or still does in the old one's buffers, it does not see."""
    machine = with_driver(mode)
    machine.wait_for("guest.was_seen", "guest")
    machine.wait_for("guest.emptied", "disk0")
    assert machine.wait_for("guest.done", "guest")["fields"] == {"spoilt": 0, "kept": True}
    if mode == "rescinds":
        assert machine.wait_for("guest.lost", "guest")["fields"]["spoilt"] == 0
    prowled = machine.wait_for("guest.prowled", "disk0")["fields"]
    assert prowled["passes"] > 0
    assert (prowled["spied"], prowled["writes_arrive"]) == (0, True)  # they arrive where nobody else is
    excess = look(machine).excess
    assert {one.held.process for one in excess} == {"disk0"}
    assert all("has taken back" in one.held.what for one in excess)


def test_a_driver_that_does_not_let_go_is_ended_and_its_guest_goes_on(
    with_driver: Callable[[str], RunningMachine],
) -> None:
    machine = with_driver("ignores-stop")
    assert machine.wait_for("driver.unresponsive", None)["fields"]["device"] == "disk0"
    assert machine.wait_for("guest.done", "guest")["fields"] == {"spoilt": 0, "kept": True}


def test_a_guest_goes_on_beside_pages_that_its_server_does_not_let_go_of(boot: Boot) -> None:
    """Neither they nor their page numbers are used again; the next openings get others."""
    programs = "tests.machine.authority_programs"
    disk = '[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "memory"\nsize = "1MiB"\n'
    tree = [
        f'[[partition]]\nname = "{name}"\nprogram = "{programs}:{program}"\nmemory = "{memory}MiB"\n{more}'
        '[[partition.device]]\nname = "disk0"\n'
        for name, program, memory, more in (
            ("outer", "cling", 64, ""),
            ("inner", "open_again", 16, 'parent = "outer"\n'),
        )
    ]
    machine = boot(machine_toml(*tree, devices=disk))
    machine.wait_for("guest.clings", "outer")
    first, *later = machine.wait_for("guest.opened_again", "outer/inner")["fields"]["places"]
    assert first not in later
    assert len(set(later)) == 1  # those were let go of
