"""`partvisor chaos run` as its user runs it: it can be left at any time, and what it writes is whole."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest

from runtime.chaos.experiment.journal import Outcome, read_journal
from tests.machine.conftest import PARTVISOR

pytestmark = pytest.mark.machine

PATIENCE_S = 180.0  # of a command that runs several trials, on a busy host
STEADY = """
[experiment]
name = "stops"
seconds = {seconds}
settle_ms = 0
[workload]
blocks = 64
[steady]
operations = 50
[[fault]]
kind = "stop"
target = "guest1"
for_ms = {for_ms}
"""


def chaos(scratch: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PARTVISOR, "chaos", *arguments],
        cwd=scratch,
        env=os.environ | {"TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_gone(scratch: Path) -> None:
    """No folder of a trial, and no process that knows of one."""
    deadline = time.monotonic() + PATIENCE_S
    while left := [*scratch.glob("partvisor-trial-*"), *processes_of(scratch)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def processes_of(scratch: Path) -> list[str]:
    marker, found = f"{scratch}".encode(), []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and marker in (entry / "environ").read_bytes():
                found.append(entry.name)
        except OSError:
            continue
    return found


def wait_for_a_machine(scratch: Path, meanwhile: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not any("machine.ready" in path.read_text() for path in scratch.glob("*/events.jsonl")):
        assert time.monotonic() < deadline
        meanwhile()
        time.sleep(0.02)


def interrupt_workers(campaign: int) -> None:
    """As a terminal does. They leave it to their campaign, from their first moment on."""
    for child in psutil.Process(campaign).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("spawn_main" in word for word in child.cmdline()):
                child.send_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("jobs", "signal_number"),
    [
        pytest.param(1, signal.SIGINT, marks=pytest.mark.soak),
        (2, signal.SIGINT),
        pytest.param(2, signal.SIGKILL, marks=pytest.mark.soak),
    ],
)
def test_it_can_be_left_at_any_time_and_nothing_is_left_behind(
    scratch: Path, jobs: int, signal_number: signal.Signals
) -> None:
    """In the middle of a trial whose guest is stopped: the machine could not even end by itself."""
    (scratch / "e.toml").write_text(STEADY.format(seconds=60, for_ms=60_000))
    process = chaos(scratch, "run", "e.toml", "--trials", "50", "--jobs", str(jobs), "--journal", "j.jsonl")
    wait_for_a_machine(scratch, lambda: interrupt_workers(process.pid))
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=PATIENCE_S)
    wait_until_gone(scratch)
    header, trials = read_journal(scratch / "j.jsonl")
    assert (header.seed, header.count) == (1, 50)
    if signal_number == signal.SIGINT:
        assert process.returncode == 130
        assert errors.splitlines()[-1] == f"interrupted: {len(trials)} of 50 trials were done"
        assert "Traceback" not in errors


def test_a_run_writes_its_reports_and_its_journal_replays(scratch: Path) -> None:
    (scratch / "e.toml").write_text(STEADY.format(seconds=2, for_ms=100))
    options = ["--trials", "2", "--jobs", "2", "--html", "page.html", "--junit", "cases.xml", "--json"]
    process = chaos(scratch, "run", "e.toml", *options)
    said, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, (said, errors)
    assert json.loads(said)["outcome"] == "passed"
    _, trials = read_journal(scratch / "stops-1.jsonl")
    assert sorted(trial.number for trial in trials) == [1, 2]
    assert "<svg" in (scratch / "page.html").read_text()
    assert ElementTree.parse(scratch / "cases.xml").getroot().get("tests") == "2"
    again = chaos(scratch, "replay", "stops-1.jsonl", "--trial", "2", "--json")
    said, errors = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, (said, errors)
    assert [one["outcome"] for one in json.loads(said)["trials"]] == [Outcome.PASSED]
    wait_until_gone(scratch)


def test_what_did_not_fire_ends_with_three_and_what_is_no_experiment_with_two(scratch: Path) -> None:
    (scratch / "e.toml").write_text(STEADY.format(seconds=1, for_ms=100).replace('"guest1"', '"nobody"'))
    process = chaos(scratch, "run", "e.toml", "--trials", "1")
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3
    assert "trial 1 (seed 1): inconclusive: fault 1: " in said
    (scratch / "e.toml").write_text('[experiment]\nname = "x"\nsecond = 1\n')
    process = chaos(scratch, "run", "e.toml")
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "e.toml:3: experiment.second" in errors
