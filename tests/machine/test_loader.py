"""The hypervisor that a copy of the root loads is the platform's child, and has nothing of the root's."""

import contextlib
import json
import os
import signal
import socket
from pathlib import Path

import psutil
import pytest
import trio

from runtime.loaded_code import ASK_VARIABLE
from runtime.loaded_code import EVENT as CODE_EVENT
from runtime.machine.loader import Loader
from runtime.machine.process import Child
from tests.machine.conftest import PATIENCE_S, Boot, idle_partition, machine_toml, until

_DISK = '[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "memory"\nsize = "1MiB"\n'
_OF_OTHER_DEVICES = {"display", "echo", "links", "nbd", "net", "programs", "streams"}  # packages


def names_of(processes: list[psutil.Process]) -> set[str]:
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.add(process.name())
    return found


def test_a_loaded_hypervisor_stands_where_an_executed_one_does(boot: Boot) -> None:
    machine = boot(machine_toml(idle_partition("one")))
    machine.wait_for("machine.ready")
    hypervisor = psutil.Process(machine.pid("hypervisor"))
    assert hypervisor.ppid() == machine.pid("platform")
    assert "--zygote-pid" in hypervisor.cmdline()  # it was loaded
    until(lambda: names_of(hypervisor.children()) == {"pv-zygote", "pv-one"})  # each gives itself its name
    shown = json.loads(machine.command("show", "hypervisor", "--json").stdout)
    assert shown["partition_modules"] == []
    maps = Path(f"/proc/{hypervisor.pid}/maps").read_text()
    assert "_core.abi3.so" in maps
    assert "_blockio" not in maps
    machine.process.send_signal(signal.SIGTERM)
    assert machine.wait() == 130


def test_a_root_has_loaded_only_what_its_machine_has(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says at its end which files of code it has; so this also sees what was imported while it ran."""
    monkeypatch.setenv(ASK_VARIABLE, "1")
    attached = '[[partition.device]]\nname = "disk0"\nring_bytes = "16KiB"\n'
    machine = boot(machine_toml(idle_partition("one") + attached, devices=_DISK))
    machine.wait_for("machine.ready")
    root = machine.pid("root")
    machine.process.send_signal(signal.SIGTERM)
    machine.wait()
    told = [event["fields"] for event in machine.events if event["kind"] == CODE_EVENT]
    folders = {folder for one in told if one["pid"] == root for folder in one["folders"]}
    packages = {folder.rpartition("/partitions/")[2] for folder in folders if "/partitions/" in folder}
    assert {"stack", "storage"} <= packages
    assert packages & _OF_OTHER_DEVICES == set()


def test_where_there_is_no_loader_the_hypervisor_is_executed() -> None:
    """One that died, or could not be forked: its end of the socket is closed."""
    power, its_power = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    loader = Loader()
    loader.root_end.close()

    async def boot() -> Child:
        with trio.fail_after(PATIENCE_S):
            return await loader.boot(
                {"--power-fd": its_power}, "--zygote-module", "tests.runtime.standin_zygote"
            )

    with power, its_power:
        hypervisor = trio.run(boot)
        loader.close()
        assert psutil.Process(hypervisor.pid).ppid() == os.getpid()
    assert hypervisor.wait() == 1  # it has found nobody at its power socket
