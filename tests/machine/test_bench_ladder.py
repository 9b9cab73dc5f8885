"""The ladder's own rungs, on a real machine: each measures, and nothing of it is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from runtime.config import ConfigError, DeviceKind, SignalRoute, WaitingKind, load
from runtime.exits import ExitCode
from runtime.measure.ladder_machine import DEPTHS, LadderMachine, machine_text
from runtime.measure.ladder_rows import MachineRow, machine_rows
from runtime.measure.results import Placement
from runtime.measure.sample import Order, SampleFailed
from runtime.measure.transport import Impossible, NotInstalled

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
    with LadderMachine() as machine:
        rows = machine_rows(machine)
        machine.need({row.guest for row in rows})
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
            machine.measure("load", {"what": "echo", "device": "none", "pages": False}, order())
        assert vmbus.measure(order()).measured.latency.count > 0
    assert {process.pid for process in psutil.Process().children(recursive=True)} == before


def test_only_guests_that_are_needed_are_in_the_machine() -> None:
    assert "depth3" not in machine_text({"load"})
    assert "parent2" in machine_text({DEPTHS[3]})
    assert machine_text({DEPTHS[3]}).count("ladder_load") == 1
    text = machine_text(set(DEPTHS.values()) | {"direct"})
    for route in SignalRoute:
        assert text.count(f'signal_route = "{route}"') >= len(WaitingKind)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
    while not any("partitions" in " ".join(one.cmdline()) for one in _living(family)):
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
    assert list(tmp_path.iterdir()) == []


def _living(family: dict[int, psutil.Process]) -> list[psutil.Process]:
    return [one for one in family.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


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
