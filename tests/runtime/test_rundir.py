"""The folder of a machine: private, found by name, and gone when the machine is, however it ended."""

import contextlib
import fcntl
import os
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.exits import ExitCode
from runtime.machine import rundir
from runtime.machine.rundir import (
    MachineExists,
    MachineNotFound,
    RunDirError,
    base_folders,
    find_machines,
    machine_folder,
    resolve,
)

PATIENCE_SECONDS = 20.0  # for what must happen some time; a slow host may take its time
STAND_IN = """
import sys
from runtime.machine.rundir import machine_folder
with machine_folder(sys.argv[1]) as folder:
    for path in (folder.management_path, folder.events_path):
        path.touch()
    print(folder.path, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def stand_in(name: str) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """A process that holds a machine's folder and does nothing else."""
    process = subprocess.Popen(
        [sys.executable, "-c", STAND_IN, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        try:
            path = Path(process.stdout.readline().strip())
            yield process, path
        finally:
            process.kill()
        wait_until_gone(path)


def wait_until_gone(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while path.exists():
        assert time.monotonic() < deadline, f"{path} is still there"
        time.sleep(0.005)


def wait_until_ended(pid: int) -> None:
    """A zombie has ended too: its new parent may be slow to notice."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline, f"process {pid} is still there"
            time.sleep(0.005)


def janitors_of(path: Path) -> list[int]:
    found, arguments = [], b"partvisor-janitor\0" + os.fsencode(path)
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and arguments in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def test_a_folder_is_private_and_gone_afterwards(runtime_base: Path) -> None:
    before = os.umask(0)
    try:
        with machine_folder("m") as folder:
            assert stat.S_IMODE(runtime_base.stat().st_mode) == 0o700
            assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
            assert stat.S_IMODE((folder.path / "lock").stat().st_mode) == 0o600
            assert folder.is_alive()
    finally:
        os.umask(before)
    assert not runtime_base.exists()
    assert not folder.is_alive()
    assert janitors_of(folder.path) == []


def test_an_exception_leaves_nothing_either(runtime_base: Path) -> None:
    with pytest.raises(ZeroDivisionError), machine_folder("m"):
        _ = 1 / 0
    assert not runtime_base.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGSEGV])
def test_a_machine_that_is_killed_leaves_no_file(runtime_base: Path, number: int) -> None:
    with stand_in("m") as (process, path):
        (janitor,) = janitors_of(path)
        assert path.is_dir()
        process.send_signal(number)
        assert process.wait() == -number
        wait_until_gone(runtime_base)
        wait_until_ended(janitor)


def test_the_janitor_outlives_what_reaches_the_terminal_s_processes(runtime_base: Path) -> None:
    with stand_in("m") as (process, path):
        (janitor,) = janitors_of(path)
        assert os.getsid(janitor) == janitor
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            os.kill(janitor, number)
        process.kill()
        wait_until_gone(runtime_base)


def test_what_even_the_janitor_could_not_remove_the_next_command_sweeps_away(runtime_base: Path) -> None:
    with stand_in("dead") as (process, path), stand_in("alive") as (_, living):
        os.kill(janitors_of(path)[0], signal.SIGKILL)
        process.kill()
        process.wait()
        assert path.is_dir()
        assert [machine.name for machine in find_machines()] == ["alive"]
        assert not path.exists()
        assert living.is_dir()


def test_a_sweep_touches_nothing_that_is_not_ours(runtime_base: Path) -> None:
    runtime_base.mkdir(mode=0o700)
    keep = [runtime_base / "notes.txt", runtime_base / "folder", runtime_base / "m.12345678"]
    keep[0].touch()
    keep[1].mkdir()
    keep[2].symlink_to(keep[1])  # looks like a machine's folder, and leads elsewhere
    with machine_folder("m"):
        assert len(find_machines()) == 1
    assert all(path.exists() for path in keep)
    keep[0].unlink()
    keep[2].unlink()
    keep[1].rmdir()


def test_one_name_is_one_machine(runtime_base: Path) -> None:
    with machine_folder("m") as folder:
        with pytest.raises(MachineExists, match="partvisor stop --machine m"), machine_folder("m"):
            pass
        with machine_folder("n"):
            assert [machine.name for machine in find_machines()] == ["m", "n"]
        assert folder.is_alive()
    with machine_folder("m"):
        pass


def test_resolving_a_name_says_what_to_do_when_it_can_t(runtime_base: Path) -> None:
    with pytest.raises(MachineNotFound, match="no machine runs; start one with: partvisor run") as caught:
        resolve(None)
    assert caught.value.exit_code == ExitCode.NOT_FOUND
    with machine_folder("a") as a:
        assert resolve(None) == a
        assert resolve("a").pid == os.getpid()
        with pytest.raises(MachineNotFound, match="these do: a"):
            resolve("x")
        with machine_folder("b"), pytest.raises(MachineNotFound, match="--machine: a, b"):
            resolve(None)


def test_a_folder_that_others_could_have_prepared_is_refused(runtime_base: Path) -> None:
    runtime_base.mkdir(mode=0o700)
    runtime_base.chmod(0o755)
    with pytest.raises(RunDirError, match="not private"), machine_folder("m"):
        pass
    assert find_machines() == []
    runtime_base.rmdir()
    elsewhere = runtime_base.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    runtime_base.symlink_to(elsewhere)
    with pytest.raises(RunDirError), machine_folder("m"):
        pass
    assert list(elsewhere.iterdir()) == []
    runtime_base.unlink()


def test_a_path_too_long_for_a_socket_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / ("x" * 90)
    monkeypatch.setenv(rundir.BASE_VARIABLE, str(base))
    with pytest.raises(RunDirError, match="too long for a socket's path"), machine_folder("m"):
        pass
    assert not base.exists()


def test_the_place_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_RUNTIME_DIR if it is there; /tmp is looked at too, for machines that were started without it."""
    monkeypatch.delenv(rundir.BASE_VARIABLE, raising=False)
    temporary = Path(f"/tmp/partvisor-{os.geteuid()}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert base_folders() == [tmp_path / "partvisor", temporary]
    for useless in (str(tmp_path / "missing"), "", "relative"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", useless)
        assert base_folders() == [temporary]


def test_a_lock_that_says_nonsense_is_still_a_lock(runtime_base: Path) -> None:
    folder = runtime_base / "odd.00000000"
    folder.mkdir(mode=0o700, parents=True)
    runtime_base.chmod(0o700)
    (folder / "lock").write_text("nonsense")
    with (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert [machine.name for machine in find_machines()] == ["odd"]
    assert find_machines() == []
    assert not runtime_base.exists()


def test_the_lock_of_a_base_that_was_replaced_gives_no_right_to_the_new_one(runtime_base: Path) -> None:
    """Another machine is being made there at this moment: its folder has no lock yet."""
    with rundir._locked_base(runtime_base, create=True) as held:
        runtime_base.rmdir()
        (runtime_base / "other.00000000").mkdir(parents=True)
        assert rundir._sweep(runtime_base, held) == []
        with pytest.raises(FileNotFoundError):
            rundir._create_in(runtime_base, held, "one.00000000", "one")
        assert [path.name for path in runtime_base.iterdir()] == ["other.00000000"]
    runtime_base.chmod(0o700)
    assert find_machines() == []
    assert not runtime_base.exists()


def test_machines_that_come_and_go_at_once_do_not_hurt_each_other(runtime_base: Path) -> None:
    """Threads make and drop machines and look for them, so that the base folder appears and vanishes all
    the time. While a machine is held it is found."""
    errors: list[BaseException] = []

    def live(name: str) -> None:
        try:
            for _ in range(15):
                with machine_folder(name) as folder:
                    assert folder.path.is_dir()
                    assert name in [machine.name for machine in find_machines()]
                assert not folder.path.exists()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=live, args=(f"m{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert not runtime_base.exists()


def test_the_lock_and_the_janitor_s_pipe_do_not_leak_into_programs(runtime_base: Path) -> None:
    """A process that the platform executes must not keep the machine's folder alive."""
    with stand_in("m") as (process, path), subprocess.Popen(["sleep", "1000"]) as bystander:
        process.kill()
        wait_until_gone(path)
        bystander.kill()
    with machine_folder("n") as folder:
        child = subprocess.Popen(
            [sys.executable, "-c", "import os; print(*os.listdir('/proc/self/fd'), flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            close_fds=False,  # only what is inheritable can leak
        )
        with child:
            assert child.stdout is not None
            assert select.select([child.stdout], [], [], PATIENCE_SECONDS)[0]
            open_in_child = [
                str(path.readlink()) for path in Path(f"/proc/{child.pid}/fd").iterdir() if path.is_symlink()
            ]
            child.kill()
        assert not [target for target in open_in_child if str(folder.path) in target]


def test_a_janitor_whose_machine_died_before_it_was_ready_still_tidies_up(tmp_path: Path) -> None:
    """Nobody hears that it is ready: saying so must not be what it dies of."""
    folder = tmp_path / "base" / "m"
    folder.mkdir(parents=True)
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    command = ["sh", "-c", rundir._JANITOR, "janitor", str(folder), str(folder.parent)]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=write_fd, check=True, timeout=PATIENCE_SECONDS)
    os.close(write_fd)
    assert list(tmp_path.iterdir()) == []
