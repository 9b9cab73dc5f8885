"""What bad input does to a whole machine: a typed refusal for whoever sent it, and nothing for anyone else."""

import hashlib
import os
from pathlib import Path

import pytest

from partitions.guests.hostile.tour import CALLS, LAST, REST, RING_ATTACKS
from runtime.attack.catalogue import ATTACKS
from tests.machine.conftest import Boot, idle_partition, machine_toml, until

pytestmark = pytest.mark.machine


def disk(name: str, text: str) -> str:
    return f'[[root.device]]\nname = "{name}"\nkind = "disk"\n{text}\n'


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_hostile_guest_hurts_nobody_else(boot: Boot, tmp_path: Path, seed: int) -> None:
    """A writer copies 24 MB beside a guest that attacks all in its reach; the sum agrees, nothing was allowed."""
    source = os.urandom(24_000_000)
    (tmp_path / "source").write_bytes(source)
    machine = boot(
        machine_toml(
            '[[partition]]\nname = "writer"\nprogram = "partitions.guests.copy:write_file"\nmemory = "32MiB"\n'
            f'args = {{ device = "good" }}\n[[partition.device]]\nname = "good"\n'
            f'[[partition.file]]\nname = "source"\npath = "{tmp_path / "source"}"\n',
            '[[partition]]\nname = "hostile"\nprogram = "partitions.guests.hostile:main"\nmemory = "16MiB"\n'
            f'args = {{ device = "bad", seed = {seed} }}\n[[partition.device]]\nname = "bad"\nring_bytes = 4096\n',
            devices=disk("good", f'backend = "file"\npath = "{tmp_path / "disk"}"\nsize = "32MiB"')
            + disk("bad", 'backend = "memory"\nsize = "1MiB"'),
        )
    )
    copied = machine.wait_for("guest.copied", "writer")
    assert copied["fields"]["sha256"] == hashlib.sha256(source).hexdigest()
    hostile = machine.wait_for("partition.exited", "hostile")
    assert hostile["fields"]["code"] == 0, machine.events
    assert machine.wait() == 0, machine.errors
    assert (tmp_path / "disk").read_bytes()[: len(source)] == source
    attacked = [event["fields"] for event in machine.events if event["kind"] == "guest.attacked"]
    allowed = {each.name: each for each in ATTACKS}
    assert {each["attack"] for each in attacked} == {*CALLS, *RING_ATTACKS, *REST, *LAST}
    for each in attacked:
        assert each["breaches"] == []
        assert each["made"] > 0 or "not offered again" in each["outcomes"], each
        assert all(allowed[each["attack"]].allows(outcome) for outcome in each["outcomes"]), each
    assert any(event["kind"] == "vmbus.protocol_error" for event in machine.events)


@pytest.mark.parametrize(
    ("device", "complaint"),
    [
        ('backend = "file"\npath = "{short}"\nsize = "1MiB"', "truncate -s 1048576"),
        ('backend = "file"\npath = "{odd}"', "is no disk"),
    ],
)
def test_a_disk_that_cannot_be_opened_stops_the_boot_with_the_remedy(
    boot: Boot, tmp_path: Path, device: str, complaint: str
) -> None:
    (tmp_path / "short").write_bytes(bytes(4096))
    (tmp_path / "odd").write_bytes(bytes(1000))
    text = device.format(short=tmp_path / "short", odd=tmp_path / "odd")
    machine = boot(machine_toml(idle_partition("one"), devices=disk("disk0", text)))
    assert machine.wait() == 1
    assert machine.errors.count("\n") == 1
    assert complaint in machine.errors


def test_two_machines_cannot_write_one_disk(boot: Boot, tmp_path: Path) -> None:
    device = disk("disk0", f'backend = "file"\npath = "{tmp_path / "disk"}"\nsize = "1MiB"')
    first = boot(machine_toml(idle_partition("one"), devices=device))
    first.wait_for("machine.ready")
    second = boot(machine_toml(idle_partition("one"), devices=device, name="second"))
    assert second.wait() == 1
    assert "in use by another machine" in second.errors
    assert first.process.poll() is None


def test_more_memory_than_the_machine_has_is_refused(boot: Boot) -> None:
    machine = boot(machine_toml(idle_partition("one"), memory="16MiB"))
    assert machine.wait() != 0
    assert "memory" in machine.errors.lower()


def test_a_program_that_raises_ends_with_its_traceback_and_nothing_else_does(boot: Boot) -> None:
    machine = boot(
        machine_toml(
            idle_partition("one"),
            '[[partition]]\nname = "bad"\nprogram = "partitions.guests.copy:write_file"\nmemory = "16MiB"\n',
        )
    )
    exited = machine.wait_for("partition.exited", "bad")
    assert exited["fields"]["code"] == 1

    def said() -> list[str]:  # it comes by another way than the end
        return [event["fields"]["text"] for event in machine.events if event["kind"] == "output"]

    until(lambda: any("KeyError" in text for text in said()), said)
    assert machine.process.poll() is None


def test_a_guest_whose_lists_would_burst_the_saved_state_is_reset_and_the_root_lives(boot: Boot) -> None:
    """The root saves what every guest has begun, in memory of a fixed size: whoever takes most of it loses it."""
    machine = boot(
        machine_toml(
            idle_partition("one"),
            '[[partition]]\nname = "greedy"\nprogram = "tests.machine.guest_programs:never_end_gpadls"\n'
            'memory = "16MiB"\n[[partition.device]]\nname = "disk0"\n',
            devices=disk("disk0", 'backend = "memory"\nsize = "1MiB"'),
        )
    )
    machine.wait_for("guest.begun", "greedy")
    machine.wait_for("vmbus.guest_state_too_large", "root")
    assert machine.command("show", "one").returncode == 0
    assert not [event for event in machine.events if event["kind"] == "root.exited"]
