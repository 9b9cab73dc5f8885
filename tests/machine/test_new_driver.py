"""`partvisor new driver`: what it writes works as it is, and it writes over nothing."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from runtime.commands.new import ARCHITECTURES, KINDS
from tests.machine.conftest import PARTVISOR

PATIENCE_S: Final = 120


def new_driver(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*PARTVISOR, "new", "driver", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


@pytest.mark.machine
@pytest.mark.parametrize(
    ("kind", "chosen"),
    [
        ("block", ["-k", "*.test_microkernel"]),
        ("custom", ["-k", "*.test_disaggregated"]),
        *(pytest.param(kind, [], marks=pytest.mark.soak) for kind in KINDS),
    ],
)
def test_the_printed_steps_work_after_scripts_setup(kind: str, chosen: list[str], tmp_path: Path) -> None:
    """As they are printed, where no pytest is installed: `scripts/setup` installs none. Every time the last one alone,
    under one architecture of five; tests/machine/test_drivers.py has all."""
    done = new_driver(tmp_path, "first_one", "--kind", kind)
    assert done.returncode == 0, done.stderr
    wrote, _, steps = done.stdout.partition("\nnext:\n")
    assert wrote.startswith("wrote first_one: ")
    first, *between, last = [line.strip() for line in steps.splitlines()]
    assert first == "cd first_one"
    (tmp_path / "first_one" / "pytest.py").write_text("raise ModuleNotFoundError('No module named pytest')\n")
    tested = subprocess.run(
        [
            "bash",
            "-ec",
            "\n".join([first, *([] if chosen else between), shlex.join([*shlex.split(last), *chosen])]),
        ],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    count = 1 if chosen else len(ARCHITECTURES[kind])
    assert f"Ran {count} test{'s'[: count - 1]} in " in tested.stderr, tested.stderr
    assert tested.stderr.count(" ... ok") == count, tested.stderr


@pytest.mark.machine
def test_the_written_test_is_one_for_pytest_too(tmp_path: Path) -> None:
    assert new_driver(tmp_path, "first_one").returncode == 0
    collected = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--collect-only",
            "test_first_one.py",
        ],
        cwd=tmp_path / "first_one",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert collected.returncode == 0, collected.stdout
    assert f"{len(ARCHITECTURES['custom'])} tests collected" in collected.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_typed_and_complete(kind: str, tmp_path: Path) -> None:
    done = new_driver(tmp_path, "first_one", "--kind", kind, "--folder", "deep/er", "--json")
    told = json.loads(done.stdout)
    folder = tmp_path / told["folder"]
    assert sorted(told["files"]) == sorted(path.name for path in folder.iterdir())
    for path in folder.iterdir():
        assert "@" not in path.read_text().replace("@property", ""), path
    assert len((folder / "README.md").read_text().splitlines()) <= 12
    checked = subprocess.run(
        [*PARTVISOR, "validate", "machine.toml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("name", ["", "Words", "1st", "a-b", "../up", "a" * 25])
def test_what_is_no_name_of_a_module_is_refused(name: str, tmp_path: Path) -> None:
    done = new_driver(tmp_path, name)
    assert done.returncode == 2
    assert "no name of a module" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(tmp_path: Path) -> None:
    assert new_driver(tmp_path, "words").returncode == 0
    mine = tmp_path / "words" / "words.py"
    mine.write_text("mine")
    done = new_driver(tmp_path, "words")
    assert (done.returncode, mine.read_text()) == (2, "mine")
    assert "there already" in done.stderr
