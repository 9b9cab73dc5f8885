"""Trials on other machines: two workers of Dask, one of which is killed in the middle; others do its trials."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runtime.chaos.experiment.journal import Outcome, read_journal
from tests.machine.conftest import PARTVISOR

pytestmark = pytest.mark.machine

PATIENCE_S = 180.0  # of a campaign that loses a worker, on a busy host
TRIALS = 2  # one on each worker
EXPERIMENT = """
[experiment]
name = "elsewhere"
machine = "machine.toml"
seconds = 2
settle_ms = 0
[steady]
operations = 50
[[fault]]
kind = "stop"
target = "guest"
for_ms = 200
"""
MACHINE = """
[machine]
name = "elsewhere"
memory = "128MiB"
[[root.device]]
name = "disk0"
kind = "disk"
backend = "memory"
size = "1MiB"
[[partition]]
name = "guest"
program = "partitions.guests.verified:main"
memory = "16MiB"
args = { device = "disk0", seed = 1, blocks = 64, seconds = 60, operations = 100000 }
[[partition.device]]
name = "disk0"
[[partition.file]]
name = "history"
path = "history"
mode = "read-write"
"""


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@dataclass(slots=True)
class Cluster:
    """A scheduler and its workers, each with a folder of its own for what trials write."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    def start(self, command: list[str], *arguments: str) -> subprocess.Popen[bytes]:
        own = self.folder / str(len(self.processes))
        own.mkdir()
        with (own / "errors").open("wb") as errors:
            process = subprocess.Popen(
                [*command, sys.executable, "-m", *arguments, "--no-dashboard"],
                cwd=own,
                env=os.environ | {"TMPDIR": str(own)},
                stdout=errors,
                stderr=errors,
            )
        self.processes.append(process)
        self.folders.append(own)
        return process

    def start_scheduler(self) -> int:
        """Its port."""
        written = self.folder / "scheduler.json"
        self.start([], "distributed.cli.dask_scheduler", "--port", "0", "--scheduler-file", str(written))
        wait_until(lambda: written.exists() and written.read_text().endswith("}"), "no scheduler")
        return int(written.read_text().split('"address": "tcp://')[1].split('"')[0].rpartition(":")[2])

    def start_worker(self, address: str, command: list[str], *more: str) -> None:
        options = ["--nthreads", "1", "--no-nanny", "--memory-limit", "0", *more]
        self.start(command, "distributed.cli.dask_worker", f"tcp://{address}", *options)

    def is_busy(self, number: int) -> bool:
        """That process has a machine under load."""
        logs = self.folders[number].glob("partvisor-trial-*/events.jsonl")
        with contextlib.suppress(FileNotFoundError):
            return any("fault.fired" in log.read_text() for log in logs)
        return False

    def end(self) -> None:
        """None of them has anything under way."""
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="pv-") as folder:
        made = Cluster(Path(folder))
        try:
            yield made
        finally:
            made.end()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def namespaces() -> Iterator[list[tuple[str, str, str]]]:
    """Two network namespaces: name, own address, our address as seen from there."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("needs root privileges and iproute2")
    tag, made = secrets.token_hex(3), []
    net = secrets.randbelow(200) + 20
    try:
        for number in (1, 2):
            name = f"pv{tag}{number}"
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"this host makes no network namespaces: {error.stderr.decode().strip()}")
            made.append((name, f"10.{net}.{number}.2", f"10.{net}.{number}.1"))
            ip("link", "add", f"h{tag}{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("addr", "add", f"{made[-1][2]}/24", "dev", f"h{tag}{number}")
            ip("link", "set", f"h{tag}{number}", "up")
            for words in (
                ("addr", "add", f"{made[-1][1]}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
                ("link", "set", "lo", "up"),
            ):
                ip("-n", name, *words)
        yield made
    finally:
        for name, _, _ in made:
            ip("netns", "del", name)  # and with it both ends of its cable


def run_and_kill_a_worker(cluster: Cluster, port: int) -> None:
    (cluster.folder / "machine.toml").write_text(MACHINE)
    (cluster.folder / "e.toml").write_text(EXPERIMENT)
    options = ["--trials", str(TRIALS), "--workers", f"dask://127.0.0.1:{port}", "--journal", "j.jsonl"]
    campaign = subprocess.Popen(
        [*PARTVISOR, "chaos", "run", "e.toml", *options],
        cwd=cluster.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: cluster.is_busy(1) or campaign.poll() is not None, "no trial on the first worker")
    cluster.processes[1].send_signal(signal.SIGKILL)
    said, _ = campaign.communicate(timeout=PATIENCE_S)
    assert campaign.returncode == 0, said
    header, trials = read_journal(cluster.folder / "j.jsonl")
    assert header.machine == MACHINE
    assert sorted(trial.number for trial in trials) == list(range(1, TRIALS + 1))
    assert {trial.outcome for trial in trials} == {Outcome.PASSED}
    # What the killed one had begun is gone with it: its folder, and its machine with it.
    wait_until(lambda: not list(cluster.folder.glob("*/partvisor-trial-*")), "a trial was left behind")


def test_a_lost_workers_trials_are_done_elsewhere_and_none_is_in_the_journal_twice(cluster: Cluster) -> None:
    port = cluster.start_scheduler()
    for _ in range(2):
        cluster.start_worker(f"127.0.0.1:{port}", [])
    run_and_kill_a_worker(cluster, port)


@pytest.mark.soak
def test_the_same_over_a_network(cluster: Cluster, namespaces: list[tuple[str, str, str]]) -> None:
    port = cluster.start_scheduler()
    for name, own, ours in namespaces:
        cluster.start_worker(f"{ours}:{port}", ["ip", "netns", "exec", name], "--host", own)
    run_and_kill_a_worker(cluster, port)


def test_nobody_there_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text('[experiment]\nname = "x"\n')
    words = [*PARTVISOR, "chaos", "run", str(tmp_path / "e.toml"), "--journal", str(tmp_path / "j")]
    hidden = tmp_path / "distributed.py"
    for workers, told in (
        ("dask://127.0.0.1:1", "no scheduler listens at 127.0.0.1:1; start one there: dask scheduler"),
        ("127.0.0.1:1", "want dask://HOST:PORT"),
        ("dask://127.0.0.1:1", 'pip install "partvisor[cluster]"'),
    ):
        if "pip" in told:
            hidden.write_text("raise ImportError\n")
        done = subprocess.run(
            [*words, "--workers", workers],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 2
        assert told in done.stderr
        assert len(done.stderr.splitlines()) <= 2, done.stderr
