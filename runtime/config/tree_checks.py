"""Checks of the tree that the partitions of a config make: who may be a parent, of whom, with what.

As `runtime.config.cross_checks`, on what was decoded: a check skips what it cannot see.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from runtime.abi import (
    FILES_PER_PROGRAM_MAX,
    GUEST_PRIVILEGES,
    PARENT_PRIVILEGES,
    PARTITION_DEPTH_MAX,
    VPS_PER_PARTITION_MAX,
    Privilege,
)
from runtime.config.cross_checks import Table, as_spelled, is_all_named, tables_of
from runtime.config.problem import Problem, quoted, spell
from runtime.config.sizes import PAGE_BYTES, format_size
from runtime.config.toml_lines import Steps
from runtime.reserved_names import OWNERS, ROOT

PARENT_MEMORY_BYTES_MIN: Final = (
    1 << 20
)  # what a parent keeps: its ports and connections to each child, and the like
PASSED_ON_BYTES: Final = 4 << 20  # and for each device that it offers on: pages for requests on their way

Placed = tuple[Steps, Table]


def check_tree(config: Table, spelled: Mapping[Steps, object]) -> list[Problem]:
    """All mistakes in `parent` keys and in what follows from them."""
    partitions = list(tables_of(config, "partition", ()))
    problems = _parents(partitions, is_all_named(config, "partition"))
    if problems:
        return problems  # what follows needs a tree
    by_name = {table["name"]: (path, table) for path, table in partitions if "name" in table}
    children: dict[str, list[Placed]] = {}
    for path, table in partitions:
        children.setdefault(table.get("parent", ROOT), []).append((path, table))
    problems += _depth(by_name)
    for name, (path, table) in by_name.items():
        if own_children := children.get(name):
            problems += _devices(name, path, table, own_children)
            problems += _privileges(name, path, table, own_children)
            problems += _memory(name, path, table, own_children, spelled)
            problems += _files(path, table, _below(name, children))
            if table.get("vps", 1) >= VPS_PER_PARTITION_MAX:
                allowed = f"at most {VPS_PER_PARTITION_MAX - 1}: one more serves its children"
                problems.append(Problem((*path, "vps"), str(table["vps"]), allowed))
    return problems


def _parents(partitions: Sequence[Placed], all_known: bool) -> list[Problem]:
    problems = []
    parents = {table["name"]: table.get("parent") for _, table in partitions if "name" in table}
    for path, partition in partitions:
        name, parent = partition.get("name"), partition.get("parent")
        if name is not None and name in OWNERS:
            allowed = f"any other name; this one is {OWNERS[name]}"
            problems.append(Problem((*path, "name"), spell(name), allowed))
        if parent is None or parent == ROOT:
            continue
        if parent not in parents and all_known:
            others = [ROOT, *(other for other in parents if other != name)]
            problems.append(Problem((*path, "parent"), spell(parent), quoted(others)))
            continue
        ancestor, steps = parent, 0
        while ancestor in parents and ancestor != name and steps < len(parents):
            ancestor, steps = parents[ancestor], steps + 1
        if ancestor == name and name is not None:
            allowed = f"a chain of parents that ends at {spell(ROOT)}"
            problems.append(Problem((*path, "parent"), f"{spell(parent)}, which closes a circle", allowed))
    return problems


def _below(name: str, children: Mapping[str, Sequence[Placed]]) -> list[Table]:
    found = []
    for _, table in children.get(name, ()):
        found += [table, *_below(table.get("name", ""), children)]
    return found


def _depth(by_name: Mapping[str, Placed]) -> list[Problem]:
    problems = []
    for path, table in by_name.values():
        depth, parent = 1, table.get("parent", ROOT)
        while parent in by_name and depth <= len(by_name):
            depth, parent = depth + 1, by_name[parent][1].get("parent", ROOT)
        if depth > PARTITION_DEPTH_MAX:
            allowed = f"a parent with which the tree is at most {PARTITION_DEPTH_MAX} deep"
            problems.append(
                Problem((*path, "parent"), f"{spell(table['parent'])}, at depth {depth}", allowed)
            )
    return problems


def _devices(parent: str, parent_path: Steps, table: Table, children: Sequence[Placed]) -> list[Problem]:
    """What a parent offers is what it has itself."""
    if not is_all_named(table, "device"):
        return []
    has = [device["name"] for _, device in tables_of(table, "device", parent_path)]
    problems = []
    for path, child in children:
        for device_path, device in tables_of(child, "device", path):
            if (name := device.get("name")) is not None and name not in has:
                allowed = f"a [[partition.device]] of its parent {spell(parent)}: {quoted(has)}"
                problems.append(Problem((*device_path, "name"), spell(name), allowed))
    return problems


def _mask(table: Table, default: Privilege) -> Privilege | None:
    """None: its privileges are not sound."""
    if (listed := table.get("privileges")) is None:
        return default
    mask = Privilege(0)
    for name in listed:
        if not isinstance(name, str) or name.upper() not in Privilege.__members__:
            return None
        mask |= Privilege[name.upper()]
    return mask


def _privileges(parent: str, path: Steps, table: Table, children: Sequence[Placed]) -> list[Problem]:
    """A parent needs those to create its children, and grants none that it does not hold."""
    if (own := _mask(table, PARENT_PRIVILEGES)) is None:
        return []
    problems = []
    if missing := PARENT_PRIVILEGES & ~GUEST_PRIVILEGES & ~own:
        allowed = (
            f"also {quoted(_names(missing))}, without which it can have no children; or leave the key out"
        )
        problems.append(
            Problem((*path, "privileges"), f"a parent without {quoted(_names(missing))}", allowed)
        )
    for child_path, child in children:
        mask = _mask(child, GUEST_PRIVILEGES)
        if mask is not None and (beyond := mask & ~own):
            allowed = f"what its parent {spell(parent)} holds, too: nobody grants more"
            problems.append(Problem((*child_path, "privileges"), quoted(_names(beyond)), allowed))
    return problems


def _names(mask: Privilege) -> list[str]:
    return [str(one.name).lower() for one in Privilege if one & mask]


def _memory(
    parent: str, path: Steps, table: Table, children: Sequence[Placed], spelled: Mapping[Steps, object]
) -> list[Problem]:
    """A parent pays for its children, for its own rings, and for what it offers on."""
    if (memory := table.get("memory")) is None:
        return []
    asked = sum(child.get("memory", 0) for _, child in children)
    rings = sum(
        2 * (device.get("ring_bytes", 0) + PAGE_BYTES) for _, device in tables_of(table, "device", path)
    )
    passed_on = {device.get("name") for at, child in children for _, device in tables_of(child, "device", at)}
    kept = PARENT_MEMORY_BYTES_MIN + rings + PASSED_ON_BYTES * len(passed_on)
    if asked + kept <= memory:
        return []
    path = (*path, "memory")
    found = f"{as_spelled(path, memory, spelled)} for {spell(parent)} and its children together"
    needed = format_size(asked + kept)
    allowed = f"at least {needed}: they ask for {format_size(asked)}, and it keeps {format_size(kept)}"
    return [Problem(path, found, allowed)]


def _files(path: Steps, table: Table, below: Sequence[Table]) -> list[Problem]:
    """All files of a subtree are handed to its top at once; one more descriptor says what they are."""
    count = sum(len(one.get("file", ())) for one in (table, *below)) + 1
    if count <= FILES_PER_PROGRAM_MAX:
        return []
    found = f"{count - 1} files of {spell(table['name'])} and those below it"
    return [Problem((*path, "file"), found, f"at most {FILES_PER_PROGRAM_MAX - 1} together")]
