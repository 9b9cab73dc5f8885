"""Checks that take more than one value of a config file, or a look at this host.

The input is what `runtime.config.shape_checks.Walk` decoded: tables with defaults filled in and unsound values left
out, so each check skips what it cannot see; that was reported already.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from runtime.config import (
    assignment_checks,
    display_checks,
    driver_checks,
    emulated_checks,
    error_checks,
    link_checks,
    net_checks,
    overlay_checks,
    program_checks,
    queue_checks,
    share_checks,
)
from runtime.config.architecture import DRIVEN
from runtime.config.devices import BackendKind, DeviceKind
from runtime.config.model import FileMode
from runtime.config.problem import Problem, quoted, spell
from runtime.config.sizes import PAGE_BYTES, format_size
from runtime.config.toml_lines import Steps
from runtime.reserved_names import ROOT

ROOT_MEMORY_BYTES_MIN: Final = (
    4 << 20
)  # what the root keeps: its own pages, ports and connections to each child

Table = Mapping[str, Any]


def cross_check(config: Table, spelled: Mapping[Steps, object]) -> list[Problem]:
    """All mistakes that no single value shows. `spelled` has each value as the file spells it."""
    problems: list[Problem] = []
    devices = list(tables_of(config.get("root"), "device", ("root",)))
    partitions = list(tables_of(config, "partition", ()))
    problems += _duplicates(devices) + _duplicates(partitions)
    problems += _shared_backing_files(devices)
    for path, device in devices:
        problems += _backend(path, device)
    problems += overlay_checks.check_all(devices)
    problems += share_checks.check_all(partitions)
    problems += link_checks.check(devices, partitions)
    problems += driver_checks.check(config, devices, partitions)
    problems += net_checks.check(config, devices, partitions)
    problems += error_checks.check(config, devices)
    problems += queue_checks.check(config, devices)
    problems += assignment_checks.check(config, devices, partitions)
    problems += display_checks.check(devices, partitions)
    problems += _memory(config, partitions, spelled)
    offered = [device["name"] for _, device in devices if "name" in device]
    all_known = is_all_named(config.get("root"), "device")
    for path, partition in partitions:
        own_devices = list(tables_of(partition, "device", path))
        files = list(tables_of(partition, "file", path))
        problems += _duplicates(own_devices) + _duplicates(files)
        for device_path, device in own_devices if partition.get("parent") == ROOT else ():
            name = device.get("name")
            if name is not None and name not in offered and all_known:
                allowed = f"a [[root.device]]: {quoted(offered)}"
                problems.append(Problem((*device_path, "name"), spell(name), allowed))
        emulated = list(tables_of(partition, "emulated", path))
        disks = [one for _, one in devices if one.get("kind") in (None, DeviceKind.DISK)]
        problems += emulated_checks.check_one(path, partition, emulated, disks, all_known)
        if partition.get("integration") and partition.get("parent") not in (None, ROOT):
            problems.append(
                Problem((*path, "integration"), "true", 'false, but for partitions with parent = "root"')
            )
        if partition.get("parent") not in (None, ROOT):
            problems += link_checks.not_passed_on(own_devices, devices)
        problems += _cpus(path, partition)
        problems += share_checks.check_one(path, partition)
        problems += _privileges(path, partition)
        problems += program_checks.check_program(path, partition)
        problems += program_checks.check_args(
            path, partition, program_checks.ARGS_BYTES_MAX, "hand over a [[partition.file]] instead"
        )
        for file_path, file in files:
            problems += _file(file_path, file)
    return problems


def tables_of(table: object, key: str, path: Steps) -> Iterator[tuple[Steps, Table]]:
    """The sound tables of an array of tables, each with its path."""
    items = table.get(key) if isinstance(table, Mapping) else None
    if isinstance(items, list):
        for index, item in enumerate(items):
            if isinstance(item, Mapping):
                yield (*path, key, index), item


def is_all_named(table: object, key: str) -> bool:
    """Whether an array of tables is so sound that a name which is not in it does not exist."""
    items = table.get(key) if isinstance(table, Mapping) else None
    return isinstance(items, list | tuple) and all(
        isinstance(item, Mapping) and "name" in item for item in items
    )


def _duplicates(tables: list[tuple[Steps, Table]]) -> list[Problem]:
    problems, seen = [], set()
    for path, table in tables:
        name = table.get("name")
        if name in seen:
            problems.append(Problem((*path, "name"), f"{spell(name)} a second time", "each name once"))
        if name is not None:
            seen.add(name)
    return problems


def _shared_backing_files(devices: list[tuple[Steps, Table]]) -> list[Problem]:
    problems: list[Problem] = []
    writable: dict[Path, bool] = {}
    for path, device in devices:
        backing = device.get("path")
        if backing is None:
            continue
        backing = Path(os.path.realpath(backing))
        writes = not device.get("read_only", False)
        if backing in writable and (writes or writable[backing]):
            allowed = "a file of its own, or read_only = true on each device that shares it"
            problems.append(Problem((*path, "path"), f"{spell(str(backing))} a second time", allowed))
        writable[backing] = writable.get(backing, False) or writes
    return problems


def _backend(path: Steps, device: Table) -> list[Problem]:
    problems = []
    backend, backing, size = device.get("backend"), device.get("path"), device.get("size")
    kind = device.get("kind")
    if kind in link_checks.WITHOUT_BACKEND:
        given = [key for key in ("backend", "driver", "args", "path", "size") if device.get(key)]
        return [
            Problem((*path, key), spell(str(device[key])), f'nothing with kind = "{kind}"') for key in given
        ]
    driver = device.get("driver")
    problems += driver_checks.backend_or_driver(path, device)
    problems += overlay_checks.check(path, device)
    if (base := device.get("base")) is not None and backend is BackendKind.OVERLAY:
        problems += _openable((*path, "base"), base, True, False)
    if "path" in device and "size" in device:  # neither was refused already
        if backend is BackendKind.FILE and backing is None:
            problems.append(Problem((*path, "path"), "nothing", 'a path, as backend = "file" needs one'))
        if backend is BackendKind.MEMORY and backing is not None:
            problems.append(Problem((*path, "path"), spell(str(backing)), 'no path with backend = "memory"'))
        if backend is BackendKind.MEMORY and size is None:
            problems.append(Problem((*path, "size"), "nothing", 'a size, as backend = "memory" needs one'))
    if size is not None and (block := device.get("block_bytes")) and size % block:
        allowed = f"a multiple of block_bytes = {block}"
        problems.append(Problem((*path, "size"), spell(int(size)), allowed))
    if (backend is BackendKind.FILE or driver is not None) and backing is not None:
        may_create = size is not None and not device.get("read_only", False)
        problems += _openable((*path, "path"), backing, device.get("read_only", False), may_create)
    return problems


def _memory(
    config: Table, partitions: list[tuple[Steps, Table]], spelled: Mapping[Steps, object]
) -> list[Problem]:
    """The root deposits its children's memory out of the machine's; rings lie in their partition's."""
    problems: list[Problem] = []
    machine = config.get("machine")
    taken = 0
    for path, partition in partitions:
        memory = partition.get("memory")
        if memory is None:
            continue
        if partition.get("parent") == ROOT:
            taken += memory
        rings = sum(
            2 * (device["ring_bytes"] + PAGE_BYTES)
            for _, device in tables_of(partition, "device", path)
            if "ring_bytes" in device
        )
        if rings >= memory:
            allowed = f"more than {format_size(rings)}, which the rings of its devices take"
            problems.append(
                Problem((*path, "memory"), as_spelled((*path, "memory"), memory, spelled), allowed)
            )
    if not isinstance(machine, Mapping) or "memory" not in machine:
        return problems
    kept = _kept_by_root(config)
    if taken and taken + kept > machine["memory"]:
        path = ("machine", "memory")
        found = f"{as_spelled(path, max(machine['memory'], kept), spelled)} for all partitions together"
        needed = format_size(taken + kept)
        allowed = (
            f"at least {needed}: they ask for {format_size(taken)}, and the root keeps {format_size(kept)}"
        )
        problems.append(Problem(path, found, allowed))
    return problems


def _kept_by_root(config: Table) -> int:
    """Its own pages, those of memory disks, and what it deposits for driver partitions."""
    disks = sum(
        device["size"]
        for _, device in tables_of(config.get("root"), "device", ("root",))
        if isinstance(device.get("size"), int) and _is_in_memory(device)
    )
    emulated = sum(  # a page for each, whose state outlives the root
        1
        for path, partition in tables_of(config, "partition", ())
        for _ in tables_of(partition, "emulated", path)
    )
    count = sum(
        device.get("kind") in DRIVEN for _, device in tables_of(config.get("root"), "device", ("root",))
    )
    attached = sum(
        1
        for path, partition in tables_of(config, "partition", ())
        if partition.get("parent") == ROOT and any(tables_of(partition, "device", path))
    )
    drivers = driver_checks.memory_of_drivers(config, count, attached)
    return ROOT_MEMORY_BYTES_MIN + int(disks) + emulated * PAGE_BYTES + drivers


def _is_in_memory(device: Table) -> bool:
    backend, path = device.get("backend"), device.get("path")
    return (
        backend == "memory"
        or (backend is BackendKind.OVERLAY and path is None)
        or (device.get("driver") is not None and device.get("path") is None)
    )


def _cpus(path: Steps, partition: Table) -> list[Problem]:
    host = sorted(os.sched_getaffinity(0))
    cpus = [cpu for cpu in partition.get("cpus", ()) if isinstance(cpu, int)]
    problems = []
    for index, cpu in enumerate(cpus):
        if cpu in cpus[:index]:
            problems.append(Problem((*path, "cpus", index), f"{cpu} a second time", "each CPU once"))
        elif cpu not in host:
            allowed = f"a CPU that this process may use: {', '.join(map(str, host))}"
            problems.append(Problem((*path, "cpus", index), str(cpu), allowed))
    return problems


def _privileges(path: Steps, partition: Table) -> list[Problem]:
    listed = partition.get("privileges")
    if not listed:
        return []
    from runtime.abi import Privilege

    known = [str(privilege.name).lower() for privilege in Privilege]
    problems = []
    for index, name in enumerate(listed):
        if not isinstance(name, str):
            continue
        if name not in known:
            problems.append(Problem((*path, "privileges", index), spell(name), quoted(known)))
        elif name in listed[:index]:
            problems.append(
                Problem((*path, "privileges", index), f"{spell(name)} a second time", "each once")
            )
    return problems


def _file(path: Steps, file: Table) -> list[Problem]:
    backing, mode = file.get("path"), file.get("mode")
    if "path" not in file or mode is None or mode is FileMode.LISTEN:
        return []
    if backing is None:
        return [Problem((*path, "path"), "nothing", f'a path, as mode = "{mode}" needs one')]
    return _openable((*path, "path"), backing, mode is FileMode.READ, mode is FileMode.WRITE)


def _openable(path: Steps, file: Path, read_only: bool, may_create: bool) -> list[Problem]:
    """What opening `file` would say, without opening it."""
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        if not may_create:
            return [Problem(path, f"{spell(str(file))} (no such file)", "a file that exists")]
        if not os.access(file.parent, os.W_OK | os.X_OK):
            found = f"{spell(str(file))} (its folder is missing or can't be written)"
            return [Problem(path, found, "a file in a folder that can be written")]
        return []
    except (OSError, ValueError) as error:
        return [Problem(path, f"{spell(str(file))} ({error})", "a file that can be reached")]
    if stat.S_ISDIR(mode):
        return [Problem(path, f"{spell(str(file))} (a folder)", "a file or a block device")]
    if not os.access(file, os.R_OK if read_only else os.R_OK | os.W_OK):
        allowed = "a file that can be read" if read_only else "a file that can be read and written"
        return [Problem(path, f"{spell(str(file))} (permission denied)", allowed)]
    return []


def as_spelled(path: Steps, value: int, spelled: Mapping[Steps, object]) -> str:
    return spell(spelled.get(path, format_size(value)))
