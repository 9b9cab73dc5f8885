"""What is said of a tree of partitions arrives at each level: the right tables, with the right files."""

import os
import random
from collections.abc import Sequence
from typing import Any

import pytest

from partitions.descendants import Described, below, children_of, pack, unpack

MACHINE = {"signal_route": "direct", "waiting": "block"}


def named_file(name: str) -> int:
    """A file that says what it is."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    os.write(descriptor, name.encode())
    return descriptor


def random_tree(rng: random.Random, count: int) -> list[Described]:
    """In any order, with files of their own, and tables of any size."""
    tables: list[dict[str, Any]] = []
    for number in range(count):
        parent = rng.choice(["root", *(table["name"] for table in tables)])
        files = [{"name": f"p{number}-{file}"} for file in range(rng.randrange(4))]
        tables.append(
            {"name": f"p{number}", "parent": parent, "file": files, "args": {"x": "y" * rng.randrange(5_000)}}
        )
    rng.shuffle(tables)
    return [Described(table, tuple(named_file(file["name"]) for file in table["file"])) for table in tables]


def hand_down(described: Sequence[Described], parent: str, seen: dict[str, str]) -> None:
    """As a chain of parents does it: each takes its children out, and hands on what is below them."""
    for child in children_of(parent, described):
        seen[child.name] = parent
        contents = [os.pread(fd, 100, 0).decode() for fd in child.files]
        assert contents == [file["name"] for file in child.table["file"]]
        if under := below(child.name, described):
            descriptors = pack(MACHINE, under)
            arrived = [os.dup(fd) for fd in descriptors]  # in another process
            os.close(descriptors[0])
            machine, told = unpack(arrived)
            assert machine == MACHINE
            assert [one.table for one in told] == [one.table for one in under]
            hand_down(told, child.name, seen)
            for fd in arrived[1:]:
                os.close(fd)


@pytest.mark.parametrize("seed", range(20))
def test_every_partition_of_a_tree_is_born_once_with_its_own_files(seed: int) -> None:
    """Any tree; and nobody is told of a partition that is not below it."""
    rng = random.Random(seed)
    described = random_tree(rng, rng.randint(1, 12))
    seen: dict[str, str] = {}
    try:
        hand_down(described, "root", seen)
        assert seen == {one.name: one.parent for one in described}, f"seed {seed}"
    finally:
        for one in described:
            for fd in one.files:
                os.close(fd)


def test_what_is_handed_down_cannot_be_changed_on_the_way() -> None:
    (tables,) = pack(MACHINE, [Described({"name": "a", "parent": "b"}, ())])
    with pytest.raises(PermissionError):
        os.pwrite(tables, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(tables, 0)
    assert unpack([tables])[1][0].name == "a"
