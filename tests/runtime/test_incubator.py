"""Processes from an incubator are what they would be from a start of their own, and nothing is left of either."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from runtime.machine.incubator import Incubated, Incubator, IncubatorLost, incubator_for
from runtime.machine.rundir import BASE_VARIABLE

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def incubator() -> Iterator[Incubator]:
    with Incubator() as one:
        yield one


def ended(process: Incubated) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    said = process.stdout.read(), process.stderr.read()
    code = process.wait(PATIENCE_S)
    process.stdout.close()
    process.stderr.close()
    return code, *said


def environment(**more: str) -> Mapping[str, str]:
    return os.environ | more


@pytest.mark.parametrize("arguments", [["--version"], ["faults"], ["run", "no-such.toml"], ["nonsense"]])
def test_a_command_says_and_returns_what_it_does_by_itself(
    incubator: Incubator, arguments: list[str]
) -> None:
    alone = subprocess.run(
        [sys.executable, "-m", "runtime.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert ended(incubator.run(arguments, environment())) == (alone.returncode, alone.stdout, alone.stderr)


def test_the_folder_of_a_machine_is_seen_in_its_environment_and_is_its_own(
    incubator: Incubator, runtime_dir: Path, tmp_path: Path
) -> None:
    """Who looks for what a machine has left finds all of its processes by it, the executed and the forked."""
    config = tmp_path / "machine.toml"
    config.write_text(
        '[machine]\nname = "shown"\nmemory = "256MiB"\n'
        '[[partition]]\nname = "one"\nprogram = "partitions.guests.idle:main"\nmemory = "16MiB"\n'
    )
    process = incubator.run(["run", str(config), "--json"], environment(**{BASE_VARIABLE: str(runtime_dir)}))
    with contextlib.suppress(StopIteration):
        next(line for line in process.stdout if '"machine.ready"' in line)
    wanted = {"partvisor", "pv-root", "pv-hypervisor", "pv-zygote", "pv-one"}
    names, until = set[str](), time.monotonic() + PATIENCE_S
    while not names >= wanted and time.monotonic() < until:  # each names itself when it gets so far
        names |= _names_in(runtime_dir)
    process.send_signal(signal.SIGINT)
    code, _, _ = ended(process)
    assert names >= wanted
    assert code == 130


def _names_in(runtime_dir: Path) -> set[str]:
    """Of the processes whose environment, as /proc shows it, has that folder."""
    mark, names = f"{BASE_VARIABLE}={runtime_dir}".encode(), set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int(entry.name) and mark in (entry / "environ").read_bytes().split(b"\0"):
                names.add((entry / "comm").read_text().strip())
    return names


def test_machines_end_with_their_incubator_however_it_ends(runtime_dir: Path, tmp_path: Path) -> None:
    config = tmp_path / "machine.toml"
    config.write_text('[machine]\nname = "tied"\nmemory = "256MiB"\n')
    with Incubator() as doomed:
        process = doomed.run(["run", str(config), "--json"], environment(**{BASE_VARIABLE: str(runtime_dir)}))
        process.stdout.readline()
        os.kill(doomed.pid, signal.SIGKILL)
        code, _, _ = ended(process)
        assert code == -signal.SIGKILL
        with pytest.raises(IncubatorLost):
            doomed.run(["--version"], environment())
        assert not doomed.serves(os.environ)
    deadline = time.monotonic() + PATIENCE_S
    while runtime_dir.exists() and time.monotonic() < deadline:
        time.sleep(0.01)  # its janitor is at it


ORDERS_AND_DIES = """
import os
from runtime import codec
from runtime.machine.incubator import Incubator
one = Incubator()
codec.send_message(one._socket, ["run", {"arguments": ["--version"], "environment": {}, "folder": "/"}], [1, 2])
os._exit(0)
"""


def test_who_dies_before_its_incubator_has_begun_is_not_waited_for_and_nothing_is_run_or_said() -> None:
    """It finds an order, and nobody to answer: so does the one of a worker that a campaign has just ended."""
    command = [sys.executable, "-c", ORDERS_AND_DIES]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "",
        "",
    )  # to the end of it: nobody has them any more


def test_what_counts_at_the_start_of_an_interpreter_gets_one_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = incubator_for(os.environ)
    monkeypatch.setenv("SOMETHING_ELSE", "1")
    assert incubator_for(os.environ) is first
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    second = incubator_for(os.environ)
    assert second is not first
    assert not first.serves(os.environ)
    monkeypatch.delenv("PYTHONHASHSEED")
    assert incubator_for(os.environ) is first  # it has not ended, nor have its machines
    assert ended(first.run(["--version"], os.environ))[0] == 0
    second.close()
