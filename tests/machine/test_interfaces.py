"""An interface of the host's under a network, and what ends or goes down beside it. Each in a network of its own."""

import contextlib
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Final

import psutil
import pytest

from runtime.machine.user_networks import find_program
from tests.machine.conftest import Boot, RunningMachine, machine_toml
from tests.machine.test_network_backends import wait_until
from tests.machine.test_networks import in_a_network_of_its_own

pytestmark = [pytest.mark.machine, pytest.mark.soak]

ADDRESS: Final = "10.77.0.2"


def boot_pingable(boot: Boot, **settings: str) -> RunningMachine:
    device = '[[root.device]]\nname = "net0"\nkind = "net"\nbackend = "tap"\ninterface = "pvtest0"\n'
    guest = '[[partition]]\nname = "p"\nprogram = "partitions.guests.pingable:main"\nmemory = "16MiB"\n'
    guest += f'args = {{ device = "net0", address = "{ADDRESS}", seconds = 300 }}\n'
    guest += '[[partition.device]]\nname = "net0"\n'
    machine = boot(machine_toml(guest, devices=device, **settings))
    machine.wait_for("guest.pingable")
    subprocess.run(["ip", "address", "add", "10.77.0.1/24", "dev", "pvtest0"], check=True)
    return machine


def ping(count: int = 3) -> bool:
    words = ["ping", "-q", "-A", "-c", str(count), "-W", "10", ADDRESS]
    return subprocess.run(words, capture_output=True).returncode == 0


def end(machine: RunningMachine) -> None:
    machine.process.send_signal(signal.SIGTERM)
    machine.wait()


@pytest.mark.parametrize("kept", [False, True], ids=["made", "made for good"])
def test_a_root_that_takes_over_leaves_the_interface_to_the_driver_that_has_it(
    boot: Boot, kept: bool
) -> None:
    """Twice. After that the driver dies, too: an interface that was made for good is opened by its next process."""

    def work() -> None:
        if kept:
            subprocess.run(["ip", "tuntap", "add", "dev", "pvtest0", "mode", "tap"], check=True)
        machine = boot_pingable(boot, architecture="disaggregated", on_root_failure="restart")
        assert ping()
        for number in (1, 2):
            machine.command("crash", "root")
            wait_for_count(machine, "root.restored", number)
            assert ping()
        machine.command("crash", "net0")
        if kept:
            assert ping(20)
        else:
            assert machine.wait_for("driver.failed")["fields"]["device"] == "net0"
        end(machine)

    in_a_network_of_its_own(work)


def test_an_interface_that_is_down_for_a_while_serves_again(boot: Boot) -> None:
    def work() -> None:
        machine = boot_pingable(boot)
        assert ping()
        subprocess.run(["ip", "link", "set", "pvtest0", "down"], check=True)
        subprocess.run(["ip", "link", "set", "pvtest0", "up"], check=True)
        assert ping()
        assert not [event for event in machine.events if event["kind"] == "root.exited"]
        end(machine)

    in_a_network_of_its_own(work)


REACHING: Final = '''
import time


def main(partition):
    """Reads a line of the host's server, again and again."""
    with partition.open_tap() as tap:
        words = "read -t 5 line < /dev/tcp/10.0.2.2/%d && echo $line" % partition.args["port"]
        while True:
            code, output = tap.run(["bash", "-c", words], 20)
            if output == b"hello\\n":
                partition.report("reached")
            time.sleep(0.1)
'''


def serve_hello(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            with listener.accept()[0] as connection:
                connection.sendall(b"hello\n")


@pytest.mark.skipif(find_program() is None, reason="there is no passt")
@pytest.mark.parametrize("architecture", ["microkernelized", "disaggregated"])
def test_a_guest_reaches_the_host_without_privileges_again_after_passts_death(
    boot: Boot, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reaching.py").write_text(REACHING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve_hello, args=(listener,), daemon=True).start()
        guest = '[[partition]]\nname = "g"\nprogram = "reaching:main"\nmemory = "32MiB"\n'
        guest += f"args = {{ port = {listener.getsockname()[1]} }}\n"
        guest += '[[partition.device]]\nname = "net0"\n[partition.tap]\ndevice = "net0"\n'
        guest += 'address = "10.0.2.15/24"\ngateway = "10.0.2.2"\n'
        device = '[[root.device]]\nname = "net0"\nkind = "net"\nbackend = "user"\n'
        machine = boot(machine_toml(guest, devices=device, architecture=architecture))
        machine.wait_for("guest.reached")
        for deaths in (1, 2):
            (passt,) = passts(machine)
            passt.kill()
            wait_for_count(machine, "net.user_ended", deaths)
            wait_until(lambda: len(passts(machine)) == 1)
            wait_for_count(machine, "guest.reached", of_kind(machine, "guest.reached") + 2)
        end(machine)


PINGING: Final = '''
import time


def stay(partition):
    with partition.open_tap():
        partition.report("there")
        time.sleep(600)


def ping(partition):
    """The other one, again and again."""
    with partition.open_tap() as tap:
        while True:
            code, _ = tap.run(["ping", "-q", "-c", "1", "-W", "1", "10.9.0.1"], 30)
            if code == 0:
                partition.report("reached")
'''


@pytest.mark.parametrize("architecture", ["disaggregated", "hosted", "microkernel"])
def test_guests_with_interfaces_reach_each_other_again_after_the_death_of_who_has_the_switch(
    boot: Boot, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice."""
    (tmp_path / "pinging.py").write_text(PINGING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    guests = [
        f'[[partition]]\nname = "{name}"\nprogram = "pinging:{name}"\nmemory = "32MiB"\n'
        f'[[partition.device]]\nname = "net0"\n[partition.tap]\ndevice = "net0"\naddress = "{address}/24"\n'
        for name, address in (("stay", "10.9.0.1"), ("ping", "10.9.0.2"))
    ]
    device = '[[root.device]]\nname = "net0"\nkind = "net"\nbackend = "switch"\n'
    machine = boot(machine_toml(*guests, devices=device, architecture=architecture))
    machine.wait_for("guest.reached")
    for _ in range(2):
        assert machine.command("crash", "net0").returncode == 0
        wait_for_count(machine, "guest.reached", of_kind(machine, "guest.reached") + 3)
    end(machine)


def passts(machine: RunningMachine) -> list[psutil.Process]:
    children = psutil.Process(machine.process.pid).children()
    return [one for one in children if one.name().startswith("passt")]


def wait_for_count(machine: RunningMachine, kind: str, count: int) -> None:
    wait_until(lambda: of_kind(machine, kind) >= count)


def of_kind(machine: RunningMachine, kind: str) -> int:
    return sum(event["kind"] == kind for event in machine.events)
