"""A config's tree of partitions: each mistake in it is found where it is, with what is allowed there."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from partitions.parent import CHILDREN_GRACE_MS
from partitions.storage.passed_on import DATA_BYTES
from runtime.abi import PARTITION_DEPTH_MAX, VPS_PER_PARTITION_MAX
from runtime.config.document import ConfigError
from runtime.config.loading import load
from runtime.config.problem import Problem
from runtime.config.tree_checks import PASSED_ON_BYTES
from runtime.machine.rebooting import STOP_GRACE_MS
from tests.runtime.toml_writing import TomlWriter

DISK = {"name": "disk0"}


def partition(name: str, parent: str = "root", **more: Any) -> dict[str, Any]:
    return {"name": name, "parent": parent, "program": "json.decoder:JSONObject", "memory": "8MiB"} | more


def outer(**more: Any) -> dict[str, Any]:
    return partition("outer", memory="64MiB", device=[DISK], **more)


def problems(folder: Path, *partitions: dict[str, Any]) -> list[Problem]:
    disk = {"name": "disk0", "kind": "disk", "backend": "memory", "size": "1MiB"}
    tables = {
        "machine": {"name": "m", "memory": "1GiB"},
        "root": {"device": [disk]},
        "partition": list(partitions),
    }
    path = folder / "machine.toml"
    path.write_text(TomlWriter(tables).text, encoding="utf-8")
    try:
        load(path)
    except ConfigError as error:
        return list(error.problems)
    return []


def test_three_levels_are_a_machine_and_each_has_its_path(tmp_path: Path) -> None:
    tables = [
        partition("leaf", "inner", device=[DISK]),  # in any order
        partition("inner", "outer", memory="24MiB", device=[DISK]),
        outer(),
    ]
    assert problems(tmp_path, *tables) == []
    config = load(tmp_path / "machine.toml")
    assert [config.path_of(one.name) for one in config.partitions] == [
        "outer/inner/leaf",
        "outer/inner",
        "outer",
    ]


def chain(length: int) -> list[dict[str, Any]]:
    names = ["root", *(f"p{number}" for number in range(length))]
    return [
        partition(name, parent, memory=f"{20 * (length - number)}MiB")
        for number, (parent, name) in enumerate(pairwise(names))
    ]


FILES = [{"name": f"f{number}", "path": "/dev/null"} for number in range(8)]
DISK1 = {"name": "disk1"}
TOO_SMALL = {"memory": "13MiB"}  # 8 for the child, 4 for what it offers on, 1 and two rings to keep
FEW = ["post_messages"]


@pytest.mark.parametrize(
    ("partitions", "path", "allowed"),
    [
        ([outer(), partition("a", "outr")], "partition[1].parent", '"root", "outer"'),
        ([partition("a", "b"), partition("b", "a")], "partition[0].parent", "a chain of parents"),
        ([partition("root")], "partition[0].name", "the root partition's"),
        ([partition("hypervisor")], "partition[0].name", "the hypervisor's"),
        ([outer(), partition("a", "outer", device=[DISK1])], "partition[1].device[0].name", '"disk0"'),
        (
            [partition("o", memory="64MiB"), partition("a", "o", device=[DISK])],
            "partition[1].device[0].name",
            "nothing",
        ),
        (
            [outer(privileges=FEW), partition("a", "outer", privileges=FEW)],
            "partition[0].privileges",
            "create_",
        ),
        (
            [outer(), partition("a", "outer", privileges=["cpu_management"])],
            "partition[1].privileges",
            "nobody grants",
        ),
        ([outer() | TOO_SMALL, partition("a", "outer", device=[DISK])], "partition[0].memory", "at least"),
        ([outer(vps=VPS_PER_PARTITION_MAX), partition("a", "outer")], "partition[0].vps", "at most"),
        (chain(PARTITION_DEPTH_MAX + 1), f"partition[{PARTITION_DEPTH_MAX}].parent", "deep"),
        ([outer(file=FILES), partition("a", "outer", file=FILES)], "partition[0].file", "at most 15"),
    ],
)
def test_a_mistake_in_the_tree_is_found_where_it_is(
    tmp_path: Path, partitions: list[dict[str, Any]], path: str, allowed: str
) -> None:
    found = problems(tmp_path, *partitions)
    assert [problem.path_text for problem in found][:1] == [path]
    assert allowed in found[0].allowed


def test_a_tree_of_the_greatest_depth_is_allowed(tmp_path: Path) -> None:
    assert problems(tmp_path, *chain(PARTITION_DEPTH_MAX)) == []


def test_what_the_checks_take_for_granted_of_a_parent_is_what_it_does() -> None:
    assert PASSED_ON_BYTES == DATA_BYTES
    assert CHILDREN_GRACE_MS < STOP_GRACE_MS  # else the machine ends a parent that still waits
