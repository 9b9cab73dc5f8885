"""Weights and caps on whole machines: from the config to the processor, and back by `partvisor sched`."""

import json
import os
import signal
import time

import psutil
import pytest

from runtime.hypervisor.scheduling_cgroups import places
from tests.machine.conftest import PATIENCE_S, Boot, RunningMachine, machine_toml

pytestmark = pytest.mark.machine


def burner(name: str, **settings: object) -> str:
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
    cpu = max(os.sched_getaffinity(0))
    return (
        f'[[partition]]\nname = "{name}"\nprogram = "partitions.guests.burn:main"\nmemory = "16MiB"\n'
        f"cpus = [{cpu}]\n{lines}\n"
    )


def delivered(machine: RunningMachine) -> dict[str, float]:
    """Percent of what partitions had, over so long that they had half a second."""
    seconds = 1.0
    while True:
        done = machine.command("sched", "--once", "--json", "--interval", f"{seconds:g}")
        assert done.returncode == 0, done.stderr
        rows = json.loads(done.stdout)["partitions"]
        if sum(row["used_ns"] for row in rows) > 500_000_000:
            return {row["name"]: row["delivered_percent"] for row in rows}
        seconds *= 2
        assert seconds < PATIENCE_S


def test_weights_count_and_can_be_changed_while_the_machine_runs(boot: Boot) -> None:
    """Loosely: it is a short look. `partvisor bench sched` measures it well."""
    machine = boot(machine_toml(burner("small"), burner("big", weight=300), scheduler="signals"))
    machine.wait_for("machine.ready")
    time.sleep(0.3)
    assert 12 < delivered(machine)["small"] < 38
    assert machine.command("sched", "set", "small", "--weight", "900").returncode == 0
    assert 62 < delivered(machine)["small"] < 88
    refused = machine.command("sched", "set", "small", "--reserve", "50%", "--cap", "20%")
    assert refused.returncode == 1
    assert "reserve <= cap" in refused.stderr
    assert machine.command("sched", "set", "nobody", "--weight", "9").returncode == 3
    machine.process.send_signal(signal.SIGTERM)  # those who are held must hear it, too
    machine.wait()
    ends = [event["fields"]["signal"] for event in machine.events if event["kind"] == "partition.exited"]
    assert ends == [signal.SIGTERM, signal.SIGTERM]


def test_a_machine_that_is_killed_while_it_holds_somebody_leaves_nothing(boot: Boot) -> None:
    """A stopped process dies of SIGKILL like any other; `boot` looks for what is left."""
    machine = boot(machine_toml(burner("capped", cap="1%"), scheduler="signals"))
    pid = machine.pid("capped")
    deadline = time.monotonic() + PATIENCE_S
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    machine.process.send_signal(signal.SIGKILL)
    machine.wait()


@pytest.mark.skipif(not list(places()), reason="no cgroup with a cpu controller is writable")
def test_cgroups_are_gone_after_a_stop_and_after_a_kill(boot: Boot) -> None:
    kind, place = next(places())
    for ending in (signal.SIGTERM, signal.SIGKILL):
        machine = boot(machine_toml(burner("guest", weight=300), name=f"test-{ending}", scheduler=kind.value))
        machine.wait_for("machine.ready")
        pattern = f"partvisor-{machine.process.pid}-*"
        deadline = time.monotonic() + PATIENCE_S
        while not list(place.glob(pattern)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        machine.process.send_signal(ending)
        machine.wait()
        while list(place.glob(pattern)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
