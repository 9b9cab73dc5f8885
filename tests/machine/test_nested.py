"""Partitions with children of their own: whole trees of real processes, three levels deep."""

import hashlib
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.abi import PARENT_PRIVILEGES, Privilege
from runtime.chaos.blocks import image_values
from runtime.chaos.checker import check
from runtime.chaos.history import Ending, read_history
from runtime.chaos.verdict import summary
from tests.machine.conftest import PATIENCE_S, Boot, RunningMachine, machine_toml

pytestmark = pytest.mark.machine

BLOCKS = 256  # of 4 KiB, a load
DISK = '[[partition.device]]\nname = "disk0"\n'
FOREVER = 100_000  # windows: a load that only ends with its machine
DEEPEST = "outer/inner/load3"


def partition(name: str, parent: str, program: str, memory: int, more: str = DISK) -> str:
    return (
        f'[[partition]]\nname = "{name}"\nparent = "{parent}"\nprogram = "{program}"\n'
        f'memory = "{memory}MiB"\n{more}'
    )


def parents() -> list[str]:
    """root, outer, inner: each the next one's parent."""
    program = "partitions.guests.parent:main"
    return [partition("outer", "root", program, 160), partition("inner", "outer", program, 80)]


def load(depth: int, parent: str, rounds: int) -> str:
    args = (
        f'device = "disk0", depth = {depth}, turn = {depth - 1}, turns = 3, rounds = {rounds}, window_ms = 60'
    )
    program = "partitions.guests.nested_load:main"
    return partition(f"load{depth}", parent, program, 24, f"args = {{ {args}, blocks = {BLOCKS} }}\n{DISK}")


def device(folder: Path) -> str:
    path = folder / "disk"
    return (
        f'[[root.device]]\nname = "disk0"\nkind = "disk"\nbackend = "file"\npath = "{path}"\nsize = "4MiB"\n'
    )


def three_levels(folder: Path, rounds: list[int], *more: str, **settings: str) -> str:
    """A load at each level, of so many rounds."""
    above = zip((1, 2, 3), ("root", "outer", "inner"), rounds, strict=True)
    loads = [load(depth, parent, count) for depth, parent, count in above]
    return machine_toml(*parents(), *loads, *more, devices=device(folder), memory="320MiB", **settings)


def mapped_memory(pid: int) -> set[str]:
    """The anonymous files that a process has mapped: memory slots and SynIC pages, by inode."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "/memfd:" in line}


def privileged(name: str, parent: str, program: str) -> str:
    """A program of a test's, with all that a parent may do."""
    names = [str(one.name).lower() for one in Privilege if one & PARENT_PRIVILEGES]
    program = f"tests.machine.nested_programs:{program}"
    return partition(name, parent, program, 16, f"privileges = {names}\n{DISK}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningMachine, Path]]:
    """A machine of three levels that has run to its end, and the folder with its disk."""
    folder = tmp_path_factory.mktemp("nested")
    runtime_dir = Path(tempfile.mkdtemp(prefix="pv-"))
    config = folder / "machine.toml"
    config.write_text(
        three_levels(
            folder,
            [2, 2, 2],
            privileged("spender", "root", "spend_a_deposit"),
            privileged("prober", "inner", "reach_out"),
        )
    )
    machine = RunningMachine(config, runtime_dir / "run")
    try:
        machine.wait_for("machine.ready")
        assert machine.wait() == 0, machine.errors
        yield machine, folder
    finally:
        machine.destroy()
        assert machine.leftovers() == []
        shutil.rmtree(runtime_dir)


def test_three_levels_share_a_disk_and_every_byte_arrives(finished: tuple[RunningMachine, Path]) -> None:
    """What each load says it wrote stands in its part of the root's file."""
    machine, folder = finished
    image = (folder / "disk").read_bytes()
    for turn, name in enumerate(("load1", "outer/load2", DEEPEST)):
        fields = machine.wait_for("guest.nested_load", name)["fields"]
        assert (fields["depth"], fields["mismatches"], fields["whole"]) == (turn + 1, 0, True)
        assert fields["operations"] > 0
        part = image[turn * BLOCKS * 4096 : (turn + 1) * BLOCKS * 4096]
        assert hashlib.sha256(part).hexdigest() == fields["sha256"]


def test_a_parent_creates_what_was_deposited_for_it_and_no_more(
    finished: tuple[RunningMachine, Path],
) -> None:
    def told(kind: str) -> dict[str, Any]:
        fields: dict[str, Any] = finished[0].wait_for(f"guest.{kind}", "spender")["fields"]
        return fields

    short = "INSUFFICIENT_MEMORY"
    assert told("more_than_it_has")["status"] == short
    spent = told("until_empty")
    assert (spent["created"], spent["then"]) == (3, short)
    assert told("retried") == {"before": short, "after": "SUCCESS", "vp": [short, "SUCCESS"]}
    assert told("all_back")["in_use_before"] == told("all_back")["in_use_after"]


def test_a_grandchild_reaches_neither_the_root_nor_its_uncle(finished: tuple[RunningMachine, Path]) -> None:
    """No id, port or page of anybody above or beside it: every call is refused."""
    assert finished[0].wait_for("guest.reached", "outer/inner/prober")["fields"]["worked"] == []


@pytest.fixture
def endless(boot: Boot, tmp_path: Path) -> RunningMachine:
    """Three levels under load that does not end by itself."""
    machine = boot(three_levels(tmp_path, [FOREVER] * 3))
    for name in ("outer", "outer/inner"):
        machine.wait_for("guest.vmbus.channel_opened", name)
    machine.wait_for("machine.ready")
    return machine


def test_a_guests_pages_are_its_and_its_parents_alone_and_a_stop_ends_level_by_level(
    endless: RunningMachine,
) -> None:
    """Its channel's pages: not its grandparent's, whose disk it is, nor the root's, who has the file.

    At the stop nobody is finalized by a parent that lost its patience, and parents end after their children.
    """
    endless.wait_for("guest.vmbus.channel_opened", "outer/inner")
    names = ["root", "hypervisor", "load1", "outer", "outer/load2", "outer/inner", DEEPEST]
    memory = {name: mapped_memory(endless.pid(name)) for name in names}
    shared = memory[DEEPEST] & memory["outer/inner"]
    assert len(shared) == 1  # the slot of its one channel, with rings and data
    assert [name for name in names if memory[name] & shared] == ["outer/inner", DEEPEST]
    for name in names:
        if name not in (DEEPEST, "outer/inner", "hypervisor"):  # which has everybody's SynIC pages
            assert not memory[name] & memory[DEEPEST], name

    listed = json.loads(endless.command("list", "--json").stdout)["machines"][0]["partitions"]
    assert {one["name"] for one in listed} >= {"outer", "outer/load2", "outer/inner", DEEPEST}
    shown = json.loads(endless.command("show", DEEPEST, "--json").stdout)
    assert (shown["name"], shown["depth"]) == (DEEPEST, 3)

    assert endless.command("stop").returncode == 0
    endless.wait()
    exits = [event["partition"] for event in endless.events if event["kind"] == "partition.exited"]
    assert exits.index(DEEPEST) < exits.index("outer/inner") < exits.index("outer")
    codes = {e["partition"]: e["fields"]["code"] for e in endless.events if e["kind"] == "partition.exited"}
    assert codes["outer"] == codes["outer/inner"] == 0
    assert not [event for event in endless.events if event["kind"] == "guest.child_finalized"]


def test_a_parent_that_is_killed_takes_its_subtree_along_and_nobody_else(boot: Boot, tmp_path: Path) -> None:
    """inner goes, and load3 with it; load2, whose disk outer passes on, finishes every round of its own."""
    machine = boot(three_levels(tmp_path, [3, 8, FOREVER]))
    machine.wait_for("guest.vmbus.channel_opened", "outer/inner")
    survivor = machine.pid("outer/load2")
    os.kill(survivor, signal.SIGSTOP)  # so that it has rounds left, however long the killing takes
    machine.remember()
    assert machine.command("kill", "outer/inner").returncode == 0
    machine.wait_for("partition.exited", DEEPEST)
    os.kill(survivor, signal.SIGCONT)
    assert machine.wait() == 1  # load3 and inner were killed, so not all went well
    exits = {e["partition"]: e["fields"] for e in machine.events if e["kind"] == "partition.exited"}
    assert {name: fields["signal"] for name, fields in exits.items() if fields["signal"]} == {
        "outer/inner": signal.SIGKILL,
        DEEPEST: signal.SIGKILL,
    }
    killed = next(e for e in machine.events if e["kind"] == "partition.exited" and e["partition"] == DEEPEST)
    for name, depth in (("load1", 1), ("outer/load2", 2)):
        told = machine.wait_for("guest.nested_load", name)
        assert (told["fields"]["depth"], told["fields"]["mismatches"], told["fields"]["whole"]) == (
            depth,
            0,
            True,
        )
    assert machine.wait_for("guest.nested_load", "outer/load2")["sequence"] > killed["sequence"]


def test_a_grandchild_only_waits_while_the_root_is_replaced(boot: Boot, tmp_path: Path) -> None:
    """The verified load at depth 3, roots killed under it: its history and the file agree."""
    history = tmp_path / "history"
    history.touch()
    verified = partition(
        "verified",
        "inner",
        "partitions.guests.verified:main",
        32,
        f'args = {{ device = "disk0", seed = 1, blocks = {BLOCKS}, seconds = 60, depth = 16 }}\n{DISK}'
        f'[[partition.file]]\nname = "history"\npath = "{history}"\nmode = "read-write"\n',
    )
    machine = boot(
        machine_toml(
            *parents(), verified, devices=device(tmp_path), memory="320MiB", on_root_failure="standby"
        )
    )
    machine.wait_for("guest.verified_progress", "outer/inner/verified")
    for kills in range(1, 4):
        roots = [event for event in machine.events if event["kind"] == "root.started"]
        os.kill(roots[-1]["fields"]["pid"], signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        while sum(event["kind"] == "root.restored" for event in machine.events) < kills:
            assert time.monotonic() < deadline, machine.events[-20:]
            time.sleep(0.01)
        time.sleep(0.1)  # under load again
    os.kill(machine.pid("outer/inner/verified"), signal.SIGTERM)
    told = machine.wait_for("guest.verified", "outer/inner/verified")["fields"]
    assert machine.wait() == 0, machine.errors
    descriptor = os.open(tmp_path / "disk", os.O_RDONLY)
    try:
        image = dict(enumerate(image_values(descriptor, 0, BLOCKS)))
    finally:
        os.close(descriptor)
    seen = read_history(history)
    verdict = check([seen], image=image)
    assert verdict.passed, summary(verdict)
    assert seen.ending is Ending.FINISHED
    assert told["operations"] == verdict.completed > 0
    assert (told["suspects"], told["failed"], told["gave_up"]) == (0, 0, False)


def test_a_parent_that_leaves_its_children_unborn_ends_the_machine_with_their_names(boot: Boot) -> None:
    """Its program is one that knows nothing of children, and ends at once."""
    program = "tests.machine.nested_programs:leave_at_once"
    machine = boot(
        machine_toml(partition("outer", "root", program, 32, ""), partition("inner", "outer", program, 8, ""))
    )
    assert machine.wait() == 1
    assert "partition outer ended before it had started outer/inner" in machine.errors
