"""However a machine ends, no process, socket, memory or file of it remains. (`boot` checks that after each test.)"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.machine.conftest import PATIENCE_S, Boot, idle_partition, machine_toml

pytestmark = pytest.mark.machine

TWO_CHILDREN: Final = machine_toml(idle_partition("one"), idle_partition("two"))


def test_ctrl_c_ends_the_machine_with_130(boot: Boot) -> None:
    machine = boot(TWO_CHILDREN)
    machine.wait_for("machine.ready")
    machine.process.send_signal(signal.SIGINT)
    assert machine.wait() == 130
    assert "SIGINT" in machine.wait_for("machine.stopped")["fields"]["reason"]


def test_stop_command_ends_the_machine_with_0(boot: Boot) -> None:
    machine = boot(TWO_CHILDREN)
    machine.wait_for("machine.ready")
    stop = machine.command("stop")
    assert (stop.returncode, stop.stderr) == (0, "")
    assert machine.wait() == 0


_ROOT_DIED, _HYPERVISOR_DIED = "the root partition died", "the hypervisor died"


@pytest.mark.parametrize(
    ("victim", "with_signal", "reason"),
    [
        ("root", signal.SIGABRT, _ROOT_DIED),
        ("hypervisor", signal.SIGKILL, _HYPERVISOR_DIED),
        pytest.param("root", signal.SIGKILL, _ROOT_DIED, marks=pytest.mark.soak),
        pytest.param("hypervisor", signal.SIGABRT, _HYPERVISOR_DIED, marks=pytest.mark.soak),
    ],
)
def test_death_of_root_or_hypervisor_ends_the_machine_with_the_reason(
    boot: Boot, victim: str, with_signal: signal.Signals, reason: str
) -> None:
    machine = boot(TWO_CHILDREN)
    machine.wait_for("machine.ready")
    os.kill(machine.pid(victim), with_signal)
    assert machine.wait() == 1
    last_line = machine.errors.splitlines()[-1]  # a crash may have printed its own trace above
    assert reason in last_line
    assert with_signal.name in last_line


@pytest.mark.parametrize("attempt", [0, *(pytest.param(more, marks=pytest.mark.soak) for more in (1, 2))])
def test_the_reason_is_the_hypervisors_death_even_when_the_root_is_seen_to_end_first(
    boot: Boot, attempt: int
) -> None:
    """A root whose call nobody answers ends. A platform that was slow finds both dead, in any order."""
    machine = boot(TWO_CHILDREN)
    machine.wait_for("machine.ready")
    root = psutil.Process(machine.pid("root"))
    root.suspend()
    os.kill(machine.pid("one"), signal.SIGKILL)  # the root will want to know its state
    machine.wait_for("partition.exited", "one")
    machine.process.send_signal(signal.SIGSTOP)
    os.kill(machine.pid("hypervisor"), signal.SIGKILL)
    root.resume()
    deadline = time.monotonic() + PATIENCE_S
    while root.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    machine.process.send_signal(signal.SIGCONT)
    assert machine.wait() == 1
    assert "the hypervisor died" in machine.errors.splitlines()[-1]


def test_death_of_the_platform_takes_everything(boot: Boot) -> None:
    machine = boot(TWO_CHILDREN)
    machine.wait_for("partition.started", "two")
    machine.process.send_signal(signal.SIGKILL)
    machine.wait()


def test_death_of_all_at_once(boot: Boot) -> None:
    machine = boot(TWO_CHILDREN)
    machine.wait_for("machine.ready")
    pids = [machine.pid(who) for who in ("platform", "hypervisor", "root", "one", "two")]
    for pid in pids:
        with contextlib.suppress(
            ProcessLookupError
        ):  # each dies with its parent: the kernel may have been faster
            os.kill(pid, signal.SIGKILL)
    machine.wait()


def test_a_dead_child_is_its_own_affair(boot: Boot) -> None:
    machine = boot(TWO_CHILDREN)
    machine.wait_for("partition.started", "two")
    os.kill(machine.pid("one"), signal.SIGKILL)
    exited = machine.wait_for("partition.exited", "one")
    assert exited["fields"]["signal"] == signal.SIGKILL
    assert machine.process.poll() is None
    os.kill(machine.pid("two"), 0)  # raises if it is gone
    shown = machine.command("show", "two", "--json")
    assert shown.returncode == 0, shown.stderr
    assert machine.command("kill", "two").returncode == 0
    assert machine.wait() == 1  # every partition has ended, and not well


@pytest.mark.parametrize(
    "seed", [0, 5, *(pytest.param(more, marks=pytest.mark.soak) for more in range(1, 5))]
)
def test_sigkill_at_a_random_instant_of_the_boot(boot: Boot, seed: int) -> None:
    """Whoever is there at that instant may be the victim. The seed says when and, with luck, who."""
    rng = random.Random(seed)
    machine = boot(TWO_CHILDREN)
    time.sleep(rng.uniform(0, 1.2))
    machine.remember()
    victims = list(machine._everyone.values())
    victim, name = rng.choice(victims), ""
    with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended by itself
        name = victim.name()  # now: once dead it may be gone before it can be asked
        victim.send_signal(signal.SIGKILL)
    if name == "sh":  # the janitor: the machine runs on without it
        machine.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    machine.process.send_signal(signal.SIGTERM)
    assert machine.wait() in (0, 1, 130, -signal.SIGKILL, -signal.SIGTERM)


@pytest.mark.parametrize(
    "asked",
    [
        signal.SIGTERM,
        *(pytest.param(more, marks=pytest.mark.soak) for more in (signal.SIGHUP, signal.SIGINT)),
    ],
)
def test_a_signal_that_comes_before_anybody_listens_leaves_nothing_even_without_a_janitor(
    boot: Boot, asked: signal.Signals
) -> None:
    """The folder is there, and the platform still loads what it needs."""
    machine = boot(TWO_CHILDREN)
    platform = psutil.Process(machine.process.pid)
    deadline = time.monotonic() + PATIENCE_S
    janitors: list[psutil.Process] = []
    while not janitors:
        assert time.monotonic() < deadline
        with contextlib.suppress(psutil.NoSuchProcess):  # between its fork and its exec it has our name
            janitors = [child for child in platform.children() if child.name() == "sh"]
    janitors[0].kill()
    machine.process.send_signal(asked)
    assert machine.wait() in (130, -asked)


def test_a_kill_sweep_that_is_terminated_takes_its_machine_and_its_folder_along(runtime_dir: Path) -> None:
    runtime_dir.mkdir()
    sweep = subprocess.Popen(
        [sys.executable, "-m", "runtime.chaos.kill_sweep", "--kills", "50", "--json"],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(runtime_dir)},
    )
    deadline = time.monotonic() + PATIENCE_S
    machine: list[psutil.Process] = []
    while (
        len(machine) < 4 and time.monotonic() < deadline
    ):  # the command, its janitor, root and broker at least
        time.sleep(0.05)
        machine = psutil.Process(sweep.pid).children(recursive=True)
    sweep.terminate()
    assert sweep.wait(PATIENCE_S) == 130
    _, alive = psutil.wait_procs(machine, PATIENCE_S)
    assert (len(machine) >= 4, alive) == (True, [])
    assert list(runtime_dir.iterdir()) == []
    runtime_dir.rmdir()
