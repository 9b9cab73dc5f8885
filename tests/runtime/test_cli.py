"""The `partvisor` command as a user meets it: real processes, a stand-in for what boots."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.chaos.faults.catalogue import FAULTS
from runtime.cli import cli
from runtime.commands.doctor import examine
from runtime.reports import cell
from tests.runtime.test_config import config_file, minimal
from tests.runtime.test_validate import FIVE_MISTAKES

PATIENCE_SECONDS = 30.0
PROJECT = Path(__file__).parents[2]
STAND_IN = [sys.executable, "-m", "tests.runtime.stand_in_cli"]
REAL = [sys.executable, "-m", "runtime.cli"]


def partvisor(*arguments: str, command: list[str] = STAND_IN) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=PATIENCE_SECONDS, cwd=PROJECT
    )


def answer(*arguments: str) -> str:
    """What a command prints that must succeed."""
    done = partvisor(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refusal(*arguments: str, code: int) -> str:
    """What a command says that must fail, on one line."""
    done = partvisor(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("partvisor: ")
    return line


@pytest.fixture
def config(tmp_path: Path) -> str:
    return str(config_file(tmp_path, minimal()))


@pytest.fixture
def machine(runtime_base: Path, config: str) -> Iterator[int]:
    """A detached machine; gives the pid of its platform."""
    started = json.loads(answer("run", "-d", "--json", config))
    assert started["name"] == "m"
    try:
        yield started["pid"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(started["pid"], signal.SIGTERM)
        wait_for(lambda: not runtime_base.exists())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# -- without a machine


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    done = partvisor(name, "--help")
    assert done.returncode == 0
    assert f"Example:\n    partvisor {name}" in done.stdout
    assert done.stdout.startswith(f"Usage: partvisor {name}")


def test_the_examples_in_the_help_name_faults_that_there_are() -> None:
    examples = [
        line.split()
        for command in cli.commands.values()
        for line in (command.help or "").splitlines()
        if line.split()[:2] in (["partvisor", "faults"], ["partvisor", "inject"])
    ]
    named = [words[2:3] if words[1] == "faults" else words[3:4] for words in examples]
    faults = [name for words in named for name in words if name[:1] != "-"]
    assert len(faults) >= 3
    assert set(faults) <= set(FAULTS)


def test_the_help_lists_every_command_and_the_exit_codes() -> None:
    text = partvisor("--help").stdout
    assert all(f"\n  {name} " in text for name in cli.commands)
    assert "Exit codes:" in text
    assert partvisor().returncode == 2


@pytest.mark.parametrize(
    "arguments", [["list"], ["show", "x"], ["events"], ["stop"], ["kill", "x"], ["list", "--machine", "m"]]
)
def test_without_a_machine_the_error_says_how_to_start_one(runtime_base: Path, arguments: list[str]) -> None:
    says = "partvisor: no machine runs; start one with: partvisor run CONFIG"
    assert refusal(*arguments, code=3) == says


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["validate"], "partvisor: Missing argument 'FILE'; see: partvisor validate --help"),
        (["nonsense"], "partvisor: No such command 'nonsense'; see: partvisor --help"),
        (
            ["bench", "ring", "--cpus", "x"],
            "partvisor: --cpus x: two CPU numbers such as 0,1 are needed; see: partvisor bench ring --help",
        ),
        (
            ["simulate", "--replay", "nothere"],
            "partvisor: Invalid value for '--replay': File 'nothere' does not exist; see: partvisor simulate --help",
        ),
        (
            ["debug", "--post-mortem", "nothere"],
            "partvisor: Invalid value for '--post-mortem': File 'nothere' does not exist; see: partvisor debug --help",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments: list[str], says: str) -> None:
    assert refusal(*arguments, code=2) == says


def test_validate_reports_every_mistake_for_people_and_for_programs(tmp_path: Path, config: str) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(FIVE_MISTAKES)
    done = partvisor("validate", str(bad))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 6
    done = partvisor("validate", "--json", str(bad))
    assert done.returncode == 2
    report = json.loads(done.stdout)
    assert (report["valid"], len(report["problems"])) == (False, 5)
    assert report["problems"][2] == {
        "path": "partition[0].vps",
        "line": 13,
        "found": "0",
        "allowed": "a whole number from 1 to 64",
    }
    assert answer("validate", config) == f"{config}: valid: machine m, partitions: 1, devices: 1\n"
    assert json.loads(answer("validate", "--json", config))["valid"] is True


def test_run_refuses_a_bad_config_before_it_starts_anything(runtime_base: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(FIVE_MISTAKES)
    for arguments in (["run"], ["run", "-d"]):
        done = partvisor(*arguments, str(bad))
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 6
    assert not runtime_base.exists()


def test_the_printed_schema_is_the_shipped_one() -> None:
    assert answer("schema") == (PROJECT / "configs" / "partvisor.schema.json").read_text()


def test_doctor_finds_this_host_fit() -> None:
    """The tests run here, so whatever machines need is here."""
    done = partvisor("doctor", "--json")
    findings = {finding["what"]: finding["state"] for finding in json.loads(done.stdout)["findings"]}
    needed = {
        "python",
        "memory slots",
        "doorbells",
        "process watching",
        "runtime folder",
        "parent death signal",
    }
    assert {findings[what] for what in needed} == {"ok"}
    assert (done.returncode == 1) == ("missing" in findings.values())
    assert partvisor("doctor").stdout.splitlines()[0].split() == ["what", "state", "detail"]


def test_a_probe_that_fails_is_a_finding_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise PermissionError("not here")

    monkeypatch.setattr(os, "memfd_create", refuse)
    finding = next(finding for finding in examine() if finding.what == "memory slots")
    assert (finding.state, finding.detail) == ("missing", "PermissionError: not here")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['partvisor', '--help']\n"
        "from runtime.cli import main\n"
        "main()\n"
        "heavy = {'trio', 'zmq', 'rich', 'msgspec', 'psutil', 'pydantic', 'tomllib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PROJECT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["schema"], ["validate", "CONFIG"], ["doctor", "--json"], ["--help"]])
def test_output_that_nobody_reads_any_more_is_no_error(config: str, arguments: list[str]) -> None:
    """As behind `| head -1`; much output breaks the pipe while it is printed, little only at the end."""
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    try:
        command = [*REAL, *(config if argument == "CONFIG" else argument for argument in arguments)]
        done = subprocess.run(command, stdout=write_fd, stderr=subprocess.PIPE, text=True, cwd=PROJECT)
    finally:
        os.close(write_fd)
    assert (done.returncode, done.stderr) == (0, "")


# -- with a machine


def test_a_detached_machine_is_ready_when_the_command_returns_and_stop_leaves_nothing(
    runtime_base: Path, config: str
) -> None:
    started = json.loads(answer("run", "-d", "--json", config))
    folder = Path(started["folder"])
    assert folder.is_dir()
    assert os.getsid(started["pid"]) != os.getsid(0)
    assert Path(f"/proc/{started['pid']}/cwd").readlink() == Path("/")
    assert Path(f"/proc/{started['pid']}/fd/0").readlink() == Path(os.devnull)
    assert "machine.ready" in answer("events", "--no-follow")
    assert answer("stop") == "machine m has stopped\n"
    wait_for(lambda: not runtime_base.exists())
    wait_for(lambda: not is_running(started["pid"]))


def test_the_commands_talk_to_the_machine(machine: int) -> None:
    assert [line.split() for line in answer("list").splitlines()] == [
        ["machine", "name", "state", "memory", "parent"],
        ["m", "child", "active", "64MiB", "-"],
    ]
    (listed,) = json.loads(answer("list", "--json"))["machines"]
    assert (listed["name"], listed["pid"]) == ("m", machine)
    assert listed["partitions"][0]["memory_bytes"] == 64 << 20
    shown = answer("show", "child")
    assert "memory  64MiB" in shown
    assert "devices:\nname   requests\ndisk0  3\n" in shown
    assert json.loads(answer("show", "--json", "child"))["rings"] == {"in": 1}
    assert answer("kill", "child") == "partition child is killed\n"
    events = answer("events", "--no-follow")
    assert "partition.ended" in events
    assert "\x1b" not in events
    kinds = [json.loads(line)["kind"] for line in answer("events", "--no-follow", "--json").splitlines()]
    assert kinds == ["machine.powered_on", "machine.ready", "partition.ended"]


def test_errors_of_the_machine_are_one_line_too(machine: int, config: str) -> None:
    assert refusal("show", "nobody", code=3) == "partvisor: no partition named 'nobody'"
    assert refusal("kill", "nobody", code=3) == "partvisor: no partition named 'nobody'"
    assert refusal("stop", "--machine", "x", code=3) == "partvisor: no machine named 'x' runs; these do: m"
    assert refusal("run", config, code=1) == (
        f"partvisor: machine 'm' runs already (pid {machine}); stop it with: partvisor stop --machine m"
    )


def test_with_two_machines_one_must_be_named(machine: int, config: str, runtime_base: Path) -> None:
    answer("run", "-d", config, "--set", "machine.name=n")
    assert refusal("stop", code=3) == "partvisor: 2 machines run; choose one with --machine: m, n"
    assert [line.split()[0] for line in answer("list").splitlines()] == ["machine", "m", "n"]
    assert answer("stop", "-m", "n") == "machine n has stopped\n"
    assert [line.split()[0] for line in answer("list").splitlines()] == ["machine", "m"]


def test_a_follower_ends_with_its_machine(machine: int) -> None:
    with subprocess.Popen([*STAND_IN, "events"], stdout=subprocess.PIPE, text=True, cwd=PROJECT) as follower:
        assert follower.stdout is not None
        assert "machine.powered_on" in follower.stdout.readline()
        assert "machine.ready" in follower.stdout.readline()
        answer("stop")
        assert "machine.stopped" in follower.stdout.read()
    assert follower.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_of_a_detached_machine_that_gets_a_signal(
    runtime_base: Path, config: str, number: signal.Signals
) -> None:
    pid = json.loads(answer("run", "-d", "--json", config))["pid"]
    os.kill(pid, number)
    wait_for(lambda: not runtime_base.exists())
    wait_for(lambda: not is_running(pid))
    assert "no machine runs" in refusal("list", code=3)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fails", "partition child: can't open the source: No such file or directory"),
        ("crashes", "the machine ended while it booted"),
        ("dies", "the machine died while it booted"),
    ],
)
def test_a_boot_that_goes_wrong_is_reported_by_the_command_that_asked_for_it(
    runtime_base: Path, config: str, name: str, says: str
) -> None:
    assert says in refusal("run", "-d", config, "--set", f"machine.name={name}", code=1)
    wait_for(lambda: not runtime_base.exists())


def test_a_foreground_machine_prints_its_events_and_ends_by_ctrl_c(runtime_base: Path, config: str) -> None:
    command = [*STAND_IN, "run", config]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PROJECT
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        lines = [run.stdout.readline(), run.stdout.readline()]
        assert ["machine.powered_on" in lines[0], "machine.ready" in lines[1]] == [True, True]
        run.send_signal(signal.SIGINT)
        assert "machine.stopped" in run.stdout.read()
        assert run.stderr.read() == ""
    assert run.returncode == 0
    assert not runtime_base.exists()


def test_a_foreground_machine_does_not_depend_on_being_watched(runtime_base: Path, config: str) -> None:
    with subprocess.Popen([*STAND_IN, "run", "--json", config], stdout=subprocess.PIPE, cwd=PROJECT) as run:
        assert run.stdout is not None
        assert json.loads(run.stdout.readline())["kind"] == "machine.powered_on"
        run.stdout.close()
        wait_for(lambda: partvisor("kill", "child").returncode == 0)
        assert "partition.ended" in answer("events", "--no-follow")
        answer("stop")
    assert run.returncode == 0


def test_a_foreground_boot_failure_is_one_line(runtime_base: Path, config: str) -> None:
    done = partvisor("run", config, "--set", "machine.name=fails")
    assert done.returncode == 1
    assert done.stderr == ("partvisor: partition child: can't open the source: No such file or directory\n")
    assert not runtime_base.exists()


def test_nothing_printed_can_steer_a_terminal() -> None:
    assert cell("name", "a\x1b[2J\nb") == "a?[2J?b"
    assert cell("size_bytes", 4096) == "4KiB"
    assert cell("flag", True) == "yes"
    assert cell("list", [1, None]) == "1, -"
