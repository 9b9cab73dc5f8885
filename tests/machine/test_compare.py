"""`partvisor compare` on real machines, tiny ones: what it finds in /proc, what it says of what it cannot measure, and
that nothing is left of it."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from runtime.config.loading import load
from runtime.machine.events import Event
from runtime.machine.launch import run_in_foreground
from tests.machine.conftest import PARTVISOR, PATIENCE_S, until
from tests.runtime.test_drawing import collected

pytestmark = pytest.mark.machine

CONFIG = """
[machine]
name = "compared"
memory = "256MiB"
waiting = "block"
[root]
cpus = [{cpu}]
[[root.device]]
name = "{device}"
{kind}
[[partition]]
name = "load"
program = "{program}"
memory = "32MiB"
args = {args}
[[partition.device]]
name = "{device}"
"""
BLOCKS = """{ device = "disk0", bytes = 262144, loads = [
    { seconds = 0.01 }, { operation = "write", bytes = 16384, depth = 3, seconds = 0.01 } ] }"""
FUSSY = """
from partitions.guests.exchange_load import main as exchange

def main(partition):
    if partition.devices["echo0"].get("messages"):
        raise RuntimeError("not by messages")
    return exchange(partition)
"""
KINDS = {
    "disk0": 'kind = "disk"\nbackend = "file"\npath = "disk.img"\nsize = "1MiB"',
    "echo0": 'kind = "echo"',
}
COMMAND_S = 300.0  # of several machines, one after the other
ECHO = '{ device = "echo0", echo = true, seconds = 0.01 }'


def write_config(
    folder: Path,
    program: str = "partitions.guests.block_load:main",
    args: str = BLOCKS,
    device: str = "disk0",
) -> Path:
    """The root, and what stands for it, runs on the last CPU alone."""
    cpu = max(os.sched_getaffinity(0))
    path = folder / "compared.toml"
    path.write_text(
        CONFIG.replace("{program}", program)
        .replace("{args}", args.replace("\n", " "))
        .replace("{device}", device)
        .replace("{kind}", KINDS[device])
        .replace("{cpu}", str(cpu))
    )
    return path


@pytest.fixture
def environment(runtime_dir: Path) -> Iterator[dict[str, str]]:
    yield os.environ | {"PARTVISOR_RUNTIME_DIR": str(runtime_dir)}
    assert not runtime_dir.exists() or list(runtime_dir.iterdir()) == []


def compare(config: Path, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PARTVISOR, "compare", str(config), *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )


def test_two_architectures_are_run_and_what_is_said_of_them_is_so(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """The same loads in both; who sees the data is whom the architecture says, and the sums are those of the parts."""
    config, page = write_config(tmp_path), tmp_path / "page.html"
    done = compare(
        config,
        environment,
        *("--architecture", "microkernelized,hosted", "--routes", "direct", "--rounds", "2", "--json"),
        *("--html", str(page), "--seed", "7", "--store", str(config.with_suffix(".sqlite"))),
    )
    assert done.returncode == 0, done.stderr
    assert "order by seed 7" in done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    own, hosted = result["variants"]
    assert (own["architecture"], own["own"], hosted["architecture"]) == ("microkernelized", True, "hosted")
    assert list(own["sees_data"]) == ["root"]
    assert hosted["sees_data"] == {
        "load.vmm": ["maps guest pages"],
        "disk0": ["has the backing file", "a socket joins it to load.vmm"],
    }
    for variant in (own, hosted):
        assert [each["load"] for each in variant["loads"]] == ["4 KiB reads", "16 KiB writes, 3 at a time"]
        assert all(each["requests"] > 0 and each["p50_ns"] > 0 for each in variant["loads"])
        trusted = variant["trusted"]
        assert set(trusted["processes"]) == {"hypervisor", "root", *variant["sees_data"]}
        ours = [trusted["by_process"][name]["ours"] for name in trusted["processes"]]
        assert max(ours) <= trusted["ours_bytes"] <= sum(ours)
        assert trusted["others_bytes"] > trusted["by_process"]["hypervisor"]["others"] > 1 << 20
        resident = variant["resident"]["by_process"]
        assert {"root", "hypervisor", "load", "zygote", *variant["sees_data"]} == set(resident)
        assert all(size > 0 for size in resident.values())
    assert (
        hosted["trusted"]["ours_bytes"] > own["trusted"]["ours_bytes"]
    )  # monitor and host are there besides
    crossed = hosted["loads"][0]["switches_per_request"]
    assert crossed > own["loads"][0]["switches_per_request"] / 2
    assert "load.vmm" in collected(page.read_text()).text
    shown = subprocess.run(
        [*PARTVISOR, "bench", "show", "--json", "--store", str(config.with_suffix(".sqlite"))],
        capture_output=True,
        text=True,
        check=True,
    )
    kept = json.loads(shown.stdout)
    assert (kept["run"], kept["bench"], len(kept["rows"])) == (result["run"], "compare", 4)


@pytest.mark.soak
def test_what_does_not_exist_and_what_measures_nothing_is_said_in_a_line(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """A microkernel has no rings to spin on; one variant's failure is not the others'; a guest that reports no load is
    told how."""
    (tmp_path / "fussy.py").write_text(FUSSY)
    echo = write_config(tmp_path, "fussy:main", ECHO, "echo0")
    with_programs = environment | {"PYTHONPATH": str(tmp_path)}
    asked = ("--architecture", "microkernel", "--waits", "spin", "--rounds", "1", "--no-store")
    done = compare(echo, with_programs, *asked)
    assert done.returncode == 1, "a variant failed"
    assert "64-byte exchanges" in done.stdout
    lines = done.stdout.splitlines()
    assert "microkernel, spin: not applicable: a client sleeps in the kernel" in done.stdout
    (failed,) = [line for line in lines if line.startswith("microkernel: failed: ")]
    assert "not by messages" in failed
    (tmp_path / "mute.py").write_text("def main(partition): print('nothing to say')\n")
    mute = write_config(tmp_path, "mute:main", "{}")
    done = compare(mute, with_programs, "--rounds", "1", "--no-store")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("partvisor: ")]
    assert "partition.measuring" in line
    assert "nothing to say" in line


def test_an_interrupt_leaves_nothing(tmp_path: Path, environment: dict[str, str], runtime_dir: Path) -> None:
    config = write_config(tmp_path)
    command = [*PARTVISOR, "compare", str(config), "--rounds", "50", "--no-store"]
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    with process.stderr:
        process.stderr.readline()
        deadline = time.monotonic() + PATIENCE_S
        while len(everyone := psutil.Process(process.pid).children(recursive=True)) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    _, alive = psutil.wait_procs(everyone, timeout=PATIENCE_S)
    assert alive == []
    until(lambda: not runtime_dir.exists() or list(runtime_dir.iterdir()) == [])


def test_a_driver_in_the_hypervisor_runs_where_the_root_may(
    tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`[root] cpus` holds for what serves in the root's stead; otherwise a comparison would compare CPUs."""
    monkeypatch.setenv("PARTVISOR_RUNTIME_DIR", str(runtime_dir))
    config = load(write_config(tmp_path), ["machine.architecture=monolithic"])
    allowed = sorted(os.sched_getaffinity(0))
    pids: list[int] = []
    affinities: list[set[int]] = []

    def listen(event: Event, encoded: bytes) -> None:
        if event.kind == "hypervisor.started":
            pids.append(event.fields["pid"])
        elif event.kind == "guest.measuring" and not affinities:
            for entry in Path(f"/proc/{pids[0]}/task").iterdir():
                with contextlib.suppress(ProcessLookupError):  # a thread that has ended
                    affinities.append(os.sched_getaffinity(int(entry.name)))

    assert run_in_foreground(config, listen) == 0
    assert affinities.count({allowed[-1]}) >= 2  # the driver's thread and its channel's
    assert set(allowed) in affinities  # the hypervisor's own
