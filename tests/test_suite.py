"""The suite's own strictness, on small suites under its settings: it must hold in parallel as in one process."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parent
LEAK: Final = """
import socket
class Itself: pass
def leak():
    lost = Itself()
    lost.itself, lost.socket = lost, socket.socket()
"""
FEW: Final = "".join(f"def test_{number}(): pass\n" for number in range(4))
WORKERS: Final = pytest.mark.parametrize("workers", [0, 2])


def suite(
    folder: Path, source: str, *arguments: str, shell: str = 'exec "$@"'
) -> subprocess.CompletedProcess[str]:
    shutil.copy(TESTS / "conftest.py", folder)
    (folder / "test_it.py").write_text(source)
    settings = [
        "-c",
        str(TESTS.parent / "pyproject.toml"),
        "--rootdir",
        str(folder),
        "-p",
        "no:cacheprovider",
    ]
    command = [sys.executable, "-m", "pytest", *settings, "--dist", "worksteal", *arguments, str(folder)]
    return subprocess.run(
        ["sh", "-c", shell, "sh", *command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@WORKERS
def test_what_only_the_collector_finds_fails_the_run_even_after_the_last_test(
    tmp_path: Path, workers: int
) -> None:
    done = suite(tmp_path, LEAK + FEW + "def test_last(): leak()\n", f"-n{workers}")
    assert done.returncode == 1, done.stdout
    assert "5 passed, 1 error" in done.stdout
    assert "ResourceWarning: unclosed <socket" in done.stdout


@WORKERS
def test_a_warning_is_an_error_and_a_failed_property_prints_its_example(tmp_path: Path, workers: int) -> None:
    source = """
import warnings
import hypothesis
from hypothesis import strategies
def test_warns(): warnings.warn("beware")
@hypothesis.given(strategies.integers())
def test_falsified(number):
    assert number < 100
"""
    done = suite(tmp_path, source, f"-n{workers}")
    assert done.returncode == 1, done.stdout
    assert "UserWarning: beware" in done.stdout
    assert "number=100" in done.stdout


def test_long_tests_run_only_when_asked_for(tmp_path: Path) -> None:
    source = "import pytest\n@pytest.mark.soak\ndef test_long(): pass\n"
    assert "1 skipped" in suite(tmp_path, source, "-n0").stdout
    assert "1 passed" in suite(tmp_path, source, "-n0", "--soak").stdout


def test_what_a_test_starts_can_be_ended_though_the_suite_runs_in_the_background(tmp_path: Path) -> None:
    source = """
import signal, subprocess, sys, pytest
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ended(number):
    child = subprocess.Popen(["sleep", "60"])
    child.send_signal(number)
    assert child.wait(30) == -number
"""
    ignoring = """trap '' INT HUP; exec "$@" """
    assert "2 passed" in suite(tmp_path, source, "-n2", shell=ignoring).stdout


HOLDING: Final = """
import os, subprocess, sys, tempfile, time
from pathlib import Path
def test_holds(runtime_dir):
    environment = os.environ | {"PARTVISOR_RUNTIME_DIR": str(runtime_dir)}
    config = Path("machine.toml")
    config.write_text('[machine]\\nname = "m"\\n')
    stand_in = [sys.executable, "-m", "tests.runtime.stand_in_cli", "run", "-d", str(config)]
    subprocess.run(stand_in, env=environment, cwd=os.getcwd(), check=True)
    stubborn = ["sh", "-c", 'trap "" TERM HUP INT; touch here; sleep 600; sleep 600']
    subprocess.Popen(stubborn, start_new_session=True, cwd=tempfile.mkdtemp())
    Path("told").write_text(tempfile.gettempdir())
    time.sleep(600)
"""
PATIENCE_S: Final = 60.0


def told_to_write_below(folder: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"TMPDIR={folder}".encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def test_a_suite_that_is_killed_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    """Neither a machine in the background, of which it is not the parent, nor what heeds no signal."""
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(HOLDING)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    with (tmp_path / "said").open("w") as said:
        killed = subprocess.Popen(
            [*command, "-c", os.devnull, "--rootdir", str(tmp_path), "test_it.py"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(TESTS.parent)},
            stdout=said,
            stderr=said,
        )
    told, deadline = tmp_path / "told", time.monotonic() + PATIENCE_S
    while not told.exists() or not (folder := told.read_text()):
        assert killed.poll() is None, (tmp_path / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert any("stand_in_cli" in one for one in told_to_write_below(folder))
    assert any("sleep" in one for one in told_to_write_below(folder))
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    deadline = time.monotonic() + PATIENCE_S
    while (left := told_to_write_below(folder)) or Path(folder).exists():
        assert time.monotonic() < deadline, left
        time.sleep(0.02)
