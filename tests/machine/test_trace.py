"""Whole machines, traced: the hops of real requests, beside a clock that knows nothing of them."""

import json
import os
import time
from pathlib import Path

import pytest

from runtime.measure.bench_trace import requests_by_device, summary
from runtime.measure.trace_machine import run_traced
from runtime.measure.trace_split import Step, find_requests
from runtime.trace_file import Capture
from tests.machine.conftest import PATIENCE_S, Boot, RunningMachine, machine_toml
from tests.runtime.test_trace_split import check_perfetto

pytestmark = pytest.mark.machine

EXCHANGES = 40
HYPERVISOR = {Step.BROKER_WAKE, Step.FLAG_SET, Step.BROKER_WAKE_BACK, Step.FLAG_SET_BACK}


def test_the_hops_of_every_request_add_up_to_what_the_guests_own_clock_says() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    capture, reports = run_traced(EXCHANGES, 4096, (allowed[0], allowed[-1]))
    found = find_requests(capture)
    assert (found.disordered, found.lost_stamps) == (0, 0)
    for device, requests in requests_by_device(found, reports).items():
        assert len(requests) == EXCHANGES
        row = summary(device, requests, reports[device])
        assert row["sum_mean_ns"] <= row["clock_mean_ns"]  # which begins before and ends after
        # Not the same percentile: on a busy host times are of two kinds, and the middle may lie at their border.
        totals = sorted(request.total_ns for request in requests)
        assert totals[3 * EXCHANGES // 4] >= 0.5 * row["clock_p50_ns"]
        seen = [{step for step, _ in request.moments} for request in requests]
        assert any(HYPERVISOR & steps for steps in seen) == ("broker-block" in device)
        if device.startswith("disk"):
            assert all(Step.BACKEND_END in steps for steps in seen)
        if device.endswith("block"):
            assert any({Step.WAKE, Step.WAKE_BACK} <= steps for steps in seen)
        else:
            assert not any({Step.WAKE, Step.WAKE_BACK} & steps for steps in seen)


@pytest.mark.parametrize("architecture", ["microkernelized", "disaggregated"])
def test_a_machine_leaves_a_trace_of_whoever_serves(boot: Boot, tmp_path: Path, architecture: str) -> None:
    """The device is in the root, or in a driver partition: both stamp."""
    partition = """
[[partition]]
name = "reader"
program = "partitions.guests.trace_load:main"
memory = "16MiB"
args = { devices = ["disk0"], exchanges = 20, payload_bytes = 512 }
[[partition.device]]
name = "disk0"
waiting = "block"
"""
    disk = '[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "memory"\nsize = "1MiB"\n'
    trace = tmp_path / "hops.trace"
    text = machine_toml(partition, devices=disk, architecture=architecture)
    machine = boot(text, options=("--trace", str(trace)))
    assert machine.wait() == 0, machine.errors
    written = machine.command("trace", str(trace), "--json", "--svg", str(tmp_path / "hops.svg"))
    assert written.returncode == 0, written.stderr
    told = json.loads(written.stdout)
    assert told["requests"] >= 20
    (rows,) = told["splits"].values()
    assert {"backend", "wake-up"} <= {row["where"] for row in rows}
    slowest = tmp_path / "slowest.json"
    picked = machine.command("trace", str(trace), "--perfetto", str(slowest), "--request", "slowest")
    assert picked.returncode == 0, picked.stderr
    slices = check_perfetto(json.loads(slowest.read_text()))
    assert [event["cat"] for event in slices].count("request") == 1
    assert (tmp_path / "hops.svg").read_text().startswith("<svg")


def wait_for_reads(machine: RunningMachine) -> None:
    """The guest has begun and ended reads since we were called."""

    def reads() -> int:
        return sum(event["kind"] == "guest.read_on" for event in machine.events)

    before, deadline = reads(), time.monotonic() + PATIENCE_S
    while reads() < before + 2:
        assert machine.process.poll() is None, machine.errors
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("architecture", "policy", "deaths"),
    [
        ("microkernelized", "restart", [("crash", "root"), ("service", "root")]),
        ("disaggregated", "standby", [("crash", "disk0"), ("crash", "root"), ("crash", "disk0")]),
    ],
)
def test_the_trace_goes_on_when_another_process_takes_over(
    boot: Boot, tmp_path: Path, architecture: str, policy: str, deaths: list[tuple[str, str]]
) -> None:
    """After each takeover requests are traced whole, by another generation of their server, and told apart."""
    partition = """
[[partition]]
name = "reader"
program = "tests.machine.guest_programs:read_on_and_on"
memory = "16MiB"
[[partition.device]]
name = "disk0"
"""
    disk = '[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "memory"\nsize = "1MiB"\n'
    trace, picture = tmp_path / "hops.trace", tmp_path / "hops.json"
    text = machine_toml(partition, devices=disk, architecture=architecture, on_root_failure=policy)
    machine = boot(text, options=("--trace", str(trace)))
    machine.wait_for("guest.read_on")
    for command, who in deaths:
        done = machine.command(command, who)
        assert done.returncode == 0, done.stderr
        wait_for_reads(machine)
    assert machine.command("stop").returncode == 0
    machine.wait()
    served = [who for _, who in deaths if (who == "root") == (architecture == "microkernelized")]
    generations = set(range(1, 2 + len(served)))
    found = find_requests(Capture.read(trace))
    assert {request.generation for request in found.requests} == generations
    for generation in generations:
        requests = [one for one in found.requests if one.generation == generation]
        assert sum(Step.BACKEND_END in dict(request.moments) for request in requests) >= 10
    written = machine.command("trace", str(trace), "--json", "--perfetto", str(picture))
    splits = json.loads(written.stdout)["splits"]
    assert [title.split(", ")[1] for title in splits] == [
        f"server generation {one}" for one in sorted(generations)
    ]
    events = json.loads(picture.read_text())["traceEvents"]
    assert [event["args"]["name"] for event in events if event["name"] == "process_name"] == list(splits)
