"""The suite's own strictness, on small suites under its settings: it must hold in parallel as in one process."""

import shutil
import subprocess
import sys
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
