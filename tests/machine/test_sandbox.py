"""What a partition's process may not do, tried from inside real ones and looked at from outside."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from partitions.sandbox import limits, syscalls
from partitions.sandbox.syscalls import NUMBERS
from tests.machine.conftest import (
    PARTVISOR,
    PATIENCE_S,
    Boot,
    RunningMachine,
    idle_partition,
    machine_toml,
    until,
)

pytestmark = [
    pytest.mark.machine,
    pytest.mark.skipif(not syscalls.are_known_here(), reason="the filter is for x86-64"),
]
NAMESPACES: Final = ("user", "net", "ipc", "uts", "mnt")
REPOSITORY: Final = Path(__file__).parent.parent.parent
DISK: Final = (
    '[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "file"\npath = "disk.img"\nsize = "1MiB"\n'
)
ATTACHED: Final = '  [[partition.device]]\n  name = "disk0"\n'


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def namespaces(pid: int) -> dict[str, str]:
    return {name: str(Path(f"/proc/{pid}/ns/{name}").readlink()) for name in NAMESPACES}


def program(name: str, function: str, args: dict[str, Any] | None = None, more: str = "") -> str:
    listed = ", ".join(f"{key} = {json.dumps(value)}" for key, value in (args or {}).items())
    return (
        f'[[partition]]\nname = "{name}"\nprogram = "tests.machine.sandbox_programs:{function}"\n'
        f'memory = "16MiB"\nargs = {{ {listed} }}\n{more}'
    )


def partitions_of(machine: RunningMachine) -> list[dict[str, Any]]:
    (listed,) = json.loads(machine.command("list", "--json").stdout)["machines"]
    rows: list[dict[str, Any]] = listed["partitions"]
    return rows


def walls_of(pid: int) -> dict[str, str]:
    shown = status(pid)
    return {key: shown[key] for key in ("NoNewPrivs", "Seccomp", "CapEff", "CapPrm", "CapBnd", "CapInh")}


WALLED: Final = {
    "NoNewPrivs": "1",
    "Seccomp": "2",  # a filter
    **dict.fromkeys(("CapEff", "CapPrm", "CapBnd", "CapInh"), "0" * 16),
}


def test_a_guest_gets_nowhere_and_still_has_what_a_program_needs(boot: Boot, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    files = [
        str(secret),
        str(tmp_path / "disk.img"),
        str(Path.home() / ".ssh"),
        str(tmp_path / "machine0.toml"),
    ]
    (tmp_path / "run-marker").touch()
    machine = boot(machine_toml(program("guest", "try_everything", {"files": files}, ATTACHED), devices=DISK))
    reached = machine.wait_for("guest.files", "guest")["fields"]["reached"]
    assert set(reached.values()) <= {"EACCES", "ENOENT"}
    assert reached[str(secret)] == reached[str(tmp_path / "disk.img")] == reached["/etc/passwd"] == "EACCES"
    said = machine.wait_for("guest.attempts", "guest")["fields"]
    assert set(said["readable"].values()) == {"done: opened"}
    refused = dict.fromkeys(
        ("fork", "clone", "execute", "spawn", "signal_parent", "signal_everybody", "internet_socket"), "EPERM"
    ) | dict.fromkeys(
        ("local_socket", "datagram_pair", "abstract_connect", "type_into_terminal", "open_pidfd", "io_uring"),
        "EPERM",
    )
    assert {key: said[key] for key in refused} == refused
    assert {said[key] for key in ("write_source", "create", "write_read_only_memory")} == {"EPERM"}
    assert said["list_home"] == "EACCES"
    assert said["new_clone"] == "ENOSYS"
    assert said["more_memory"] == "MemoryError"
    assert 0 < int(said["more_files"].removeprefix("done: ")) < limits.FILES_MAX
    for key in (
        "signal_itself",
        "stream_pair",
        "thread",
        "anonymous_memory",
        "executable_memory",
        "affinity",
    ):
        assert said[key].startswith("done"), key
    assert said["user"] not in (0, os.getuid())
    assert machine.wait() == 0


@pytest.mark.parametrize("architecture", ["disaggregated", "hosted"])
def test_every_process_of_partitions_stands_behind_the_walls(boot: Boot, architecture: str) -> None:
    """From outside, as /proc has it. The hypervisor is in none of their namespaces, and no two are in one."""
    outer = (
        '[[partition]]\nname = "outer"\nprogram = "partitions.guests.parent:main"\nmemory = "48MiB"\n'
        '[[partition]]\nname = "inner"\nparent = "outer"\nprogram = "partitions.guests.idle:main"\n'
        'memory = "16MiB"\n'
    )
    guest = idle_partition("guest") + ATTACHED
    machine = boot(machine_toml(outer, guest, devices=DISK, architecture=architecture, sandbox="strict"))
    machine.wait_for("machine.ready")
    rows = partitions_of(machine)
    pids = {row["name"]: row["pid"] for row in rows}
    assert {"outer", "outer/inner", "guest", "disk0"} <= set(pids)
    root, hypervisor = pids.pop("root"), machine.pid("hypervisor")
    seen: list[dict[str, str]] = [namespaces(hypervisor)]
    for name, pid in pids.items():
        until(lambda pid=pid: walls_of(pid) == WALLED, lambda name=name: name)  # type: ignore[misc]
        own = namespaces(pid)
        assert not any(own[kind] == other[kind] for kind in NAMESPACES for other in seen), name
        seen.append(own)
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
        bounds = {line[:26].strip(): line[26:].split()[:2] for line in lines}
        assert bounds["Max core file size"] == ["0", "0"]
        assert bounds["Max open files"] == [str(limits.FILES_MAX)] * 2
        assert int(bounds["Max data size"][0]) < limits.INTERPRETER_BYTES + (512 << 20)
        assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
        assert Path(f"/proc/{pid}/mem").stat().st_uid in (0, os.getuid())
    shown = status(root)
    assert (shown["NoNewPrivs"], shown["Seccomp"]) == ("1", "2")
    assert int(shown["CapEff"], 16) & ~(1 << 1) == 0  # CAP_DAC_OVERRIDE, where the machine is real root's
    assert status(hypervisor)["Seccomp"] == "0"  # it is what everybody trusts


def test_a_hostile_call_is_the_last_one_and_a_crash_has_its_last_words(boot: Boot, tmp_path: Path) -> None:
    """And a file that was handed over may grow beyond what the partition may have of memory."""
    calls = ("ptrace", "process_vm_writev", "bpf", "mount", "unshare", "kexec_load", "pidfd_getfd")
    file = f'  [[partition.file]]\n  name = "out"\n  path = "{tmp_path / "out"}"\n  mode = "write"\n'
    partitions = [
        *(program(name, "call_by_number", {"call": NUMBERS[name]}) for name in calls),
        program("crashes", "crash"),
        program("writes", "write_a_lot", {"offset": 1 << 32}, file),
        idle_partition("bystander"),
    ]
    machine = boot(machine_toml(*partitions))
    machine.wait_for("partition.started", "bystander")
    for name in calls:
        assert machine.wait_for("partition.exited", name)["fields"]["signal"] == signal.SIGSYS
    assert machine.wait_for("partition.exited", "crashes")["fields"]["signal"] == signal.SIGABRT
    assert machine.wait_for("partition.exited", "writes")["fields"]["code"] == 0
    assert machine.wait_for("guest.written", "writes")["fields"]["size"] == (1 << 32) + 3
    assert not [event for event in machine.events if event["kind"] == "guest.still_alive"]
    ended = {event["partition"] for event in machine.events if event["kind"] == "partition.exited"}
    assert ended == {*calls, "crashes", "writes"}  # nobody else

    def lines() -> list[str]:  # they come by another way than the end
        own = [event for event in machine.events if event["partition"] == "crashes"]
        return [event["fields"]["text"] for event in own if event["kind"] == "output"]

    until(lambda: any("sandbox_programs.py" in line and "in crash" in line for line in lines()), lines)
    assert "Fatal Python error: Aborted" in lines()


def test_off_is_off_and_one_partition_may_differ(boot: Boot) -> None:
    own = idle_partition("walled") + 'sandbox = "strict"\n'
    machine = boot(machine_toml(own, idle_partition("open"), sandbox="off"))
    machine.wait_for("machine.ready")
    assert status(machine.pid("open"))["Seccomp"] == status(machine.pid("root"))["Seccomp"] == "0"
    # Put up by the process itself, which may only just have been born.
    until(lambda: walls_of(machine.pid("walled")) == WALLED)


LACKS: Final = {
    syscalls.LANDLOCK_CREATE_RULESET: ["Landlock"],
    NUMBERS["seccomp"]: ["seccomp"],
    NUMBERS["unshare"]: ["user namespace", "network namespace", "IPC namespace"],
}
ALL_LACKS: Final = [name for names in LACKS.values() for name in names]


def test_a_host_that_allows_less_is_named_and_refused_only_if_the_config_is_strict(
    tmp_path: Path, runtime_dir: Path
) -> None:
    """The lack is real: a filter around the whole machine refuses the calls, as a container's would."""
    config = tmp_path / "machine.toml"
    config.write_text(machine_toml(program("guest", "end")))

    def run(mode: str, *refused: int) -> subprocess.CompletedProcess[str]:
        around = [sys.executable, "-m", "tests.machine.under_a_filter", ",".join(map(str, refused))]
        return subprocess.run(
            [*around, *PARTVISOR, "run", str(config), "--json", "--set", f"machine.sandbox={mode}"],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"PARTVISOR_RUNTIME_DIR": str(runtime_dir)},
            timeout=PATIENCE_S,
            check=False,
        )

    for number, named in LACKS.items():
        strict = run("strict", number)
        assert strict.returncode == 1
        (line,) = strict.stderr.splitlines()
        assert 'sandbox = "strict"' in line
        assert {name for name in ALL_LACKS if name in line} == set(named)
    bare = run("on", *LACKS)
    assert bare.returncode == 0, bare.stderr
    events = [json.loads(line) for line in bare.stdout.splitlines()]
    (limited,) = [event for event in events if event["kind"] == "sandbox.limited"]
    assert set(ALL_LACKS) <= set(limited["fields"]["missing"])


def _as_ordinary_user() -> list[str]:
    """What goes before a command. The interpreter may be in real root's home: so that goes out of the way, in a mount
    namespace of our own."""
    if os.geteuid() != 0:
        return []
    if not (shutil.which("setpriv") and shutil.which("unshare")):
        pytest.skip("needs setpriv and unshare to become an ordinary user")
    home = Path(sys.base_prefix)
    script = 'exec setpriv --reuid 4711 --regid 4711 --clear-groups --inh-caps=-all --bounding-set=-all "$@"'
    if home.is_relative_to("/root"):
        script = (
            f'set -e; b=$(mktemp -d); mount --bind "{home}" $b; mount -t tmpfs -o mode=755 tmpfs /root;'
            f'mkdir -p "{home}"; mount --bind $b "{home}"; umount $b; rmdir $b; {script}'
        )
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


def test_an_ordinary_users_machine_is_as_strict_and_that_user_can_still_look_into_it() -> None:
    """What is not dumpable belongs to the user that made the namespace it was executed in."""
    become = _as_ordinary_user()
    done = subprocess.run(
        [*become, sys.executable, "-m", "tests.machine.ordinary_user"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["user"] != 0
    for who in ("guest", "disk0", "root", "root's successor"):
        assert said[who]["descriptors"] > 3
        assert said[who]["maps"] > 10
        assert (said[who]["NoNewPrivs"], said[who]["Seccomp"], said[who]["CapEff"]) == ("1", "2", "0" * 16)
