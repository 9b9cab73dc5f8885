"""The ladder's own rungs, on a real machine: each measures, and nothing of it is left."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from runtime.config.devices import DeviceKind
from runtime.config.document import ConfigError
from runtime.config.loading import load
from runtime.config.model import SignalRoute, WaitingKind
from runtime.exits import ExitCode
from runtime.measure import ladder_hops
from runtime.measure.ladder_machine import (
    ANSWERER,
    ASKER,
    DEPTHS,
    PAIR_DEVICES,
    WAITINGS,
    architecture_text,
    machine_text,
)
from runtime.measure.ladder_rows import MachineRow, Machines, pair_order
from runtime.measure.measuring_machine import ANSWERS, ORDERS
from runtime.measure.results import Placement
from runtime.measure.sample import Order, SampleFailed
from runtime.measure.transport import Impossible, NotInstalled
from tests.machine.conftest import until
from tests.runtime.result_making import rounds, row

pytestmark = pytest.mark.machine

ALLOWED = frozenset(os.sched_getaffinity(0))
PATIENCE_S = 60.0
LONG = ["--only", "vmbus-direct", "--payload", "64", "--seconds", "20", "--awake", "--no-store", "--json"]


def order(payload_bytes: int = 64, rate: float | None = None) -> Order:
    return Order(
        payload_bytes=payload_bytes,
        seconds=0.005,
        placement=Placement.UNPINNED,
        client_cpus=ALLOWED,
        server_cpus=ALLOWED,
        rate_per_s=rate,
    )


def payload_of(row: MachineRow) -> int:
    if row.fixed_payload is not None:
        return row.fixed_payload
    return max(row.payload_bytes_min, 64)


def test_every_row_of_ours_measures_and_leaves_nothing(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One machine for all of them. Replies are checked by the guests; a wrong one fails the sample."""
    monkeypatch.setenv("PARTVISOR_RUNTIME_DIR", str(runtime_dir))
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with Machines() as machines:
        machine, rows = machines.usual, machines.rows()
        machines.need(rows)
        for row in rows:
            try:
                sample = row.measure(order(payload_of(row)))
            except NotInstalled:
                continue
            assert sample.measured.latency.count > 0, row.name
            assert sample.client is not None
            assert sample.client.cpu_ns > 0, row.name
        vmbus = next(
            row for row in rows if row.name == "vmbus-broker-pages" and row.waiting is WaitingKind.BLOCK
        )
        sample = vmbus.measure(order(65_536, rate=1000))
        assert sample.measured.latency.count == 5
        with pytest.raises(Impossible):
            next(row for row in rows if row.name == "post-message").measure(order(4096))
        with pytest.raises(SampleFailed, match="KeyError"):  # and the guest goes on
            machine.measure("load", {"what": "echo", "device": "none", "by": "ring"}, order())
        assert vmbus.measure(order()).measured.latency.count > 0
        pair = next(row for row in rows if row.guest == ASKER)
        with pytest.raises(
            SampleFailed, match="32 to"
        ):  # the partner is told, too, and waits for the next order
            machine.measure(ASKER, pair.what, order(1))
        with pytest.raises(SampleFailed, match="KeyError"):
            machine.measure(ASKER, pair_order("none"), order())
        assert pair.measure(order(4096, rate=1000)).measured.latency.count == 5
    assert {process.pid for process in psutil.Process().children(recursive=True)} == before


def test_only_guests_that_are_needed_are_in_the_machine() -> None:
    assert "depth3" not in machine_text({"load"})
    assert "parent2" in machine_text({DEPTHS[3]})
    assert machine_text({DEPTHS[3]}).count("ladder_load") == 1
    text = machine_text(set(DEPTHS.values()) | {"direct"})
    for route in SignalRoute:
        assert text.count(f'signal_route = "{route}"') >= len(WaitingKind)


def test_every_machine_is_a_valid_config(tmp_path: Path) -> None:
    config = tmp_path / "machine.toml"
    guests = {ASKER, ANSWERER, "direct", *DEPTHS.values()}
    for guest in guests:
        for file in (ORDERS, ANSWERS):
            (tmp_path / f"{guest}.{file}").touch()
    texts = [machine_text(guests), machine_text({ASKER}), *map(architecture_text, WAITINGS)]
    machines = []
    for text in texts:
        config.write_text(text)
        machines.append(load(config))
    assert {device.name for device in machines[1].root.devices} >= set(PAIR_DEVICES)
    assert [each.machine.architecture for each in machines[2:]] == list(WAITINGS)


def test_hops_say_where_the_time_of_a_row_goes(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARTVISOR_RUNTIME_DIR", str(runtime_dir))
    monkeypatch.setattr(ladder_hops, "EXCHANGES", 20)
    rng, cpus, told = random.Random(1), (min(ALLOWED), max(ALLOWED)), list[str]()
    slept, spun, pipe, large = (
        row(name, waiting=waiting, payload_bytes=payload, rounds=rounds(rng, 1000, 1))
        for name, waiting, payload in [
            ("vmbus-broker", WaitingKind.BLOCK, 64),
            ("vmbus-direct", WaitingKind.SPIN, 64),
            ("pipe", WaitingKind.BLOCK, 64),
            ("vmbus-direct", WaitingKind.SPIN, 65_536),
        ]
    )
    found = ladder_hops.with_hops([slept, spun, pipe, large], cpus, told.append)
    assert len(told) == 1, told  # one machine, and nothing was left out
    assert found[2:] == [pipe, large]
    names = [{hop.name for hop in each.hops} for each in found[:2]]
    assert {"hypervisor: set the flag", "doorbell to server awake"} <= names[0]
    assert "request to a running server" in names[1]
    assert all(hop.latency.count > 0 for each in found for hop in each.hops)
    assert ladder_hops.with_hops([pipe], cpus, told.append) == [pipe]
    assert len(told) == 1  # no machine for nothing


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)])
def test_a_signal_leaves_no_process_and_no_file(
    runtime_dir: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """In the middle of a long sample, with a machine and spinners running."""
    ours = subprocess.Popen(
        [sys.executable, "-m", "runtime.cli", "bench", "ladder", *LONG],
        env=os.environ | {"PARTVISOR_RUNTIME_DIR": str(runtime_dir), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE_S
    family: dict[int, psutil.Process] = {}
    while not any("partitions" in _command(one) for one in family.values()):
        assert time.monotonic() < deadline
        assert ours.poll() is None, ours.communicate()
        family |= {one.pid: one for one in psutil.Process(ours.pid).children(recursive=True)}
        time.sleep(0.02)
    family |= {one.pid: one for one in psutil.Process(ours.pid).children(recursive=True)}
    ours.send_signal(number)
    out, err = ours.communicate(timeout=PATIENCE_S)
    assert (ours.returncode, out, "Traceback" in err) == (ExitCode.INTERRUPTED, "", False), err
    _, alive = psutil.wait_procs(list(family.values()), PATIENCE_S)
    assert alive == []
    until(lambda: list(tmp_path.iterdir()) == [])


def _command(process: psutil.Process) -> str:
    """Empty once it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join(process.cmdline())
    return ""


HEAD = '[machine]\nname = "m"\n[[root.device]]\nname = "e"\n'
OUTER = '[[partition]]\nname = "outer"\nprogram = "partitions.guests.parent:main"\nmemory = "128MiB"\n'
INNER = '[[partition]]\nname = "inner"\nparent = "outer"\nprogram = "partitions.guests.idle:main"\nmemory = "9MiB"\n'
DEVICE = '[[partition.device]]\nname = "e"\n'


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (HEAD + 'kind = "echo"\nbackend = "memory"\n', ("root", "device", 0, "backend")),
        (HEAD + 'kind = "echo"\nsize = "1MiB"\n', ("root", "device", 0, "size")),
        (HEAD + 'kind = "disk"\nsize = "1MiB"\n', ("root", "device", 0, "backend")),
        (HEAD + 'kind = "echo"\n' + OUTER + DEVICE + INNER + DEVICE, ("partition", 1, "device", 0, "name")),
    ],
)
def test_an_echo_has_nothing_behind_it_and_is_not_passed_on(
    tmp_path: Path, text: str, path: tuple[str | int, ...]
) -> None:
    config = tmp_path / "machine.toml"
    config.write_text(HEAD + 'kind = "echo"\n' + OUTER + DEVICE)
    assert load(config).device("e").kind is DeviceKind.ECHO
    config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(config)
    assert [problem.path for problem in caught.value.problems] == [path]
