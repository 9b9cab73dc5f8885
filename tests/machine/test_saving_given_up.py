"""Ctrl-C of `partvisor save`, `restore` and `backup`: there is no file, and the partition goes on as it was."""

import signal
from pathlib import Path
from typing import Final

import pytest

from runtime.exits import ExitCode
from runtime.machine.incubator import Incubated, incubator_for
from runtime.machine.management_client import ManagementClient, RequestRefused
from runtime.machine.rundir import find_machines
from tests.machine.conftest import PATIENCE_S, Boot, RunningMachine, machine_toml, until

pytestmark = pytest.mark.machine

GIVEN_UP: Final = "partvisor: given up; nothing has changed\n"
NOT_COPIED: Final = "partvisor: interrupted: {} is as it was, and one goes on\n"
PAGES: Final = 20_000  # enough for a save to be met in the middle of
PROGRAM: Final = f'''
import time

def slow(partition):
    """Comes to rest when it is told to, by kvp; repeats, between two writes, what it is told."""
    integration = partition.integration
    words = integration.key_values

    freezes = 0

    def come_to_rest():
        nonlocal freezes
        freezes += 1
        partition.report("freezes", number=freezes)
        while words.get("rest") != str(freezes) and not integration.stopping.wait(0.01):
            pass

    integration.on_freeze = come_to_rest
    partition.on_save(lambda: b"kept")
    partition.report("began", state=(partition.restored_state or b"").decode())
    said = None
    while not integration.stopping.wait(0.01):
        with integration.writing():
            if words.get("say") != said:
                said = words.get("say")
                partition.report("says", word=said)

def large(partition):
    """Much memory, none of it zero."""
    memory = partition.map_memory(0x80_0000, {PAGES}).memory
    if partition.restored_state is None:
        for page in range({PAGES}):
            memory[page * 4096 : page * 4096 + 8] = (page + 1).to_bytes(8, "little")
    partition.on_save(lambda: b"kept")
    wrong = [page for page in range({PAGES}) if memory[page * 4096] != (page + 1) % 256]
    partition.report("began", wrong=len(wrong))
    while not partition.integration.stopping.wait(0.02):
        partition.report("runs")
'''


def start(machine: RunningMachine, *arguments: str) -> Incubated:
    """A command in a process of its own."""
    return incubator_for(machine.environment).run(arguments, machine.environment)


def end_of(command: Incubated) -> tuple[int, str]:
    """Its exit code, and what it says when something is wrong."""
    code = command.wait(PATIENCE_S)
    with command.stdout, command.stderr:
        return code, command.stderr.read()


def happened(machine: RunningMachine, kind: str, **fields: object) -> bool:
    return any(
        event["kind"] == kind and event["fields"].items() >= fields.items() for event in list(machine.events)
    )


def test_ctrl_c_of_a_save_leaves_the_partition_as_it_was_and_no_file(
    boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "giving_up.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folder = tmp_path / "saved"
    folder.mkdir()
    machine = boot(
        machine_toml(
            '[[partition]]\nname = "one"\nprogram = "giving_up:slow"\nmemory = "16MiB"\nintegration = true\n'
            '[[partition.device]]\nname = "disk0"\n',
            devices='[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "file"\n'
            f'path = "{tmp_path}/disk.img"\nsize = "64KiB"\n',
        )
    )
    machine.wait_for("guest.began", "one")
    (machine_folder,) = find_machines([machine.runtime_dir])
    save = "save", "one", str(folder / "one.saved")
    backup = "backup", "one", "disk0", str(folder / "disk0.backup")
    for number, words, was_paused in ((1, save, False), (2, save, True), (3, backup, False)):
        if was_paused:
            assert machine.command("pause", "one").returncode == 0
        saving = start(machine, *words)
        until(lambda number=number: happened(machine, "guest.freezes", number=number))  # type: ignore[misc]
        saving.send_signal(signal.SIGINT)
        machine.command("kvp", "one", "set", "rest", str(number))
        said = GIVEN_UP if words is save else NOT_COPIED.format(words[-1])
        assert end_of(saving) == (ExitCode.INTERRUPTED, said)
        if not was_paused:  # it was told to go on before the command ended, and not by a timer later
            with (
                ManagementClient(machine_folder) as client,
                pytest.raises(RequestRefused, match="frozen"),
            ):
                client.request("integration", name="one", service="vss", order={"operation": "thaw"})
        assert list(folder.iterdir()) == []
        assert (machine.command("resume", "one").stdout == "resumed: one\n") is was_paused
        assert machine.command("kvp", "one", "set", "say", f"word {number}").returncode == 0
        until(lambda number=number: happened(machine, "guest.says", word=f"word {number}"))  # type: ignore[misc]
    assert not happened(machine, "partition.saved")
    saving = start(machine, *save, "--go-on")
    until(lambda: happened(machine, "guest.freezes", number=4))
    machine.command("kvp", "one", "set", "rest", "4")
    assert end_of(saving) == (0, "")
    assert [path.name for path in folder.iterdir()] == ["one.saved"]


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_save_is_given_up_in_the_middle_of_its_file_and_a_restore_too(
    boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    (tmp_path / "giving_up_late.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folder = tmp_path / "saved"
    folder.mkdir()
    file = folder / "one.saved"
    file.write_text("what stood there before")
    machine = boot(
        machine_toml(
            '[[partition]]\nname = "one"\nprogram = "giving_up_late:large"\nmemory = "160MiB"\n'
            "integration = true\n",
            '[[partition]]\nname = "two"\nprogram = "partitions.guests.idle:main"\nmemory = "16MiB"\n',
        )
    )
    machine.wait_for("guest.runs", "one")
    saving = start(machine, "save", "one", str(file))
    until(lambda: len(list(folder.iterdir())) == 2)  # it is being written
    saving.send_signal(number)
    assert end_of(saving) == (ExitCode.INTERRUPTED, GIVEN_UP)
    assert file.read_text() == "what stood there before"
    assert list(folder.iterdir()) == [file]
    count = len(machine.events)
    until(lambda: any(event["kind"] == "guest.runs" for event in machine.events[count:]))
    assert not happened(machine, "partition.saved")
    assert machine.command("save", "one", str(file)).returncode == 0
    restoring = start(machine, "restore", "one", str(file))
    copies = Path(f"/proc/{machine.pid('platform')}/fd")
    until(lambda: any("memfd:restored" in str(each.readlink()) for each in _links(copies)))
    restoring.send_signal(number)
    assert end_of(restoring) == (ExitCode.INTERRUPTED, GIVEN_UP)
    assert not any("memfd:restored" in str(each.readlink()) for each in _links(copies))
    assert not happened(machine, "partition.restored")
    assert machine.command("restore", "one", str(file)).returncode == 0
    until(lambda: sum(event["kind"] == "guest.began" for event in machine.events) == 2)
    assert [event["fields"]["wrong"] for event in machine.events if event["kind"] == "guest.began"] == [0, 0]


def _links(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if each.is_symlink()]
