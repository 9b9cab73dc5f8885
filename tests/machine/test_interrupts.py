"""Several VPs of a configured partition: timers of each, and what `partvisor interrupts` says of its ports."""

import json
from typing import Any

import pytest

from tests.machine.conftest import Boot, RunningMachine, machine_toml, until
from tests.machine.guest_programs import LAST_VP

pytestmark = pytest.mark.machine


def ports_of(machine: RunningMachine, *partition: str) -> list[dict[str, Any]]:
    shown = machine.command("interrupts", *partition, "--json")
    assert shown.returncode == 0, shown.stderr
    ports: list[dict[str, Any]] = json.loads(shown.stdout)["ports"]
    return ports


def is_accounted_for(port: dict[str, Any]) -> bool:
    """Once nothing is under way: the router may have taken in what it has not passed on yet."""
    done = port["merged"] + port["suppressed"] + port["delivered"] + port["waiting"]
    return bool(port["sent"] == done)


def test_each_vp_ticks_and_every_interrupt_is_accounted_for(boot: Boot) -> None:
    machine = boot(
        machine_toml(
            '[[partition]]\nname = "guest"\nprogram = "tests.machine.guest_programs:tick_on_every_vp"\n'
            'memory = "32MiB"\nvps = 4\n[[partition.device]]\nname = "disk0"\n',
            devices='[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "memory"\nsize = "1MiB"\n',
            signal_route="broker",
            waiting="block",
        )
    )
    ticked = machine.wait_for("guest.ticked", "guest")["fields"]
    assert all(count >= 5 for count in ticked["ticks"])
    assert ticked["passed"] >= 5 * 20_000  # no timer was early
    until(lambda: all(map(is_accounted_for, ports_of(machine))), lambda: ports_of(machine))
    ports = ports_of(machine)
    messages = [port for port in ports if port["type"] == "message"]
    events = [port for port in ports if port["type"] == "event"]
    assert sum(port["delivered"] for port in messages) >= 10  # the channel's opening, both ways
    assert [port["route"] for port in events] == ["broker"] * len(events)
    assert any(port["delivered"] for port in events)
    of_guest = machine.command("interrupts", "guest", "--json")
    guest = {port["partition"] for port in json.loads(of_guest.stdout)["ports"]}
    assert len(guest) == 1
    assert guest < {port["partition"] for port in ports}
    table = machine.command("interrupts", "guest")
    assert table.stdout.split()[:3] == ["partition", "port", "type"]
    nobody = machine.command("interrupts", "nobody")
    assert nobody.returncode != 0
    assert "nobody" in nobody.stderr


@pytest.mark.parametrize("route", ["broker", "direct"])
def test_a_channels_interrupts_move_to_another_vp_under_load(boot: Boot, route: str) -> None:
    """With a flag left where nobody looks, or a ring that went to the wrong line, the disk would stand still."""
    machine = boot(
        machine_toml(
            '[[partition]]\nname = "guest"\nprogram = "tests.machine.guest_programs:move_under_load"\n'
            'memory = "32MiB"\nvps = 4\n[[partition.device]]\nname = "disk0"\n',
            devices='[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "memory"\nsize = "1MiB"\n',
            signal_route=route,
            waiting="block",
        )
    )
    moved = machine.wait_for("guest.moved", "guest")["fields"]
    assert moved["moves"] >= 12
    assert "VP 4" in moved["refused"]
    until(lambda: all(map(is_accounted_for, ports_of(machine, "guest"))), lambda: ports_of(machine))
    (port,) = [port for port in ports_of(machine, "guest") if port["type"] == "event"]
    assert (port["vp"], port["route"]) == (LAST_VP, route)
