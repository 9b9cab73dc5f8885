"""What networks and serial lines need of a config: their backends, their placement, and who has them."""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface
from typing import Any, Final

from runtime.config.architecture import Architecture
from runtime.config.devices import BackendKind, DeviceKind
from runtime.config.forwards import Forward
from runtime.config.problem import Problem, quoted, spell
from runtime.config.toml_lines import Steps
from runtime.reserved_names import ROOT

Table = Mapping[str, Any]
Rows = list[tuple[Steps, Table]]

KINDS: Final = (DeviceKind.NET, DeviceKind.SERIAL)
BACKENDS: Final[Mapping[DeviceKind, tuple[BackendKind, ...]]] = {
    DeviceKind.DISK: (BackendKind.FILE, BackendKind.MEMORY, BackendKind.OVERLAY),
    DeviceKind.NET: (BackendKind.SWITCH, BackendKind.TAP, BackendKind.USER),
    DeviceKind.SERIAL: (BackendKind.PTY, BackendKind.SOCKET, BackendKind.CONSOLE),
}
LINE_ENDS: Final = 1  # of a serial line, among partitions: the other one is its driver's


def check(config: Table, devices: Rows, partitions: Rows) -> list[Problem]:
    machine = config.get("machine")
    architecture = machine.get("architecture") if isinstance(machine, Mapping) else None
    problems: list[Problem] = _taps_and_streams(partitions, devices)
    for path, device in devices:
        problems += _backend(path, device)
        kind = device.get("kind")
        if kind not in KINDS:
            continue
        if device.get("backend") is BackendKind.SOCKET and architecture is not Architecture.MICROKERNELIZED:
            allowed = '"pty", "console", or a driver: outside of the root nobody may be let connect'
            problems.append(Problem((*path, "backend"), spell(BackendKind.SOCKET), allowed))
        if kind is DeviceKind.SERIAL:
            problems += _one_end(path, device, partitions)
    return problems


def _backend(path: Steps, device: Table) -> list[Problem]:
    kind, backend, driver = device.get("kind"), device.get("backend"), device.get("driver")
    problems: list[Problem] = []
    if device.get("interface") is not None and backend is not BackendKind.TAP:
        found = spell(device["interface"])
        problems.append(Problem((*path, "interface"), found, 'none but with backend = "tap"'))
    if backend is BackendKind.TAP and "interface" in device and device["interface"] is None:
        problems.append(Problem((*path, "interface"), "nothing", 'a name, as backend = "tap" needs one'))
    problems += _forwards(path, device)
    if device.get("mtu") is not None and kind is not DeviceKind.NET:
        problems.append(Problem((*path, "mtu"), spell(device["mtu"]), 'none but with kind = "net"'))
    if not isinstance(kind, DeviceKind) or (known := BACKENDS.get(kind)) is None:
        return problems
    words = quoted([str(one) for one in known])
    if backend is not None and backend not in known:
        problems.append(Problem((*path, "backend"), spell(backend), f'{words}, with kind = "{kind}"'))
    if kind not in KINDS or "backend" not in device or "driver" not in device:
        return problems
    if (backend is None) == (driver is None):
        found = "nothing" if backend is None else f"{spell(backend)} and a driver"
        problems.append(Problem((*path, "backend"), found, f"{words}; or a driver instead"))
    if backend is BackendKind.SOCKET and device.get("path") is None:
        problems.append(Problem((*path, "path"), "nothing", 'a path, as backend = "socket" needs one'))
    has_no_file = kind is DeviceKind.NET or backend is BackendKind.CONSOLE
    if has_no_file and backend is not None and device.get("path") is not None:
        found = spell(str(device["path"]))
        problems.append(Problem((*path, "path"), found, f'no path with backend = "{backend}"'))
    if driver is None and device.get("size") is not None:
        problems.append(Problem((*path, "size"), spell(int(device["size"])), f'none with kind = "{kind}"'))
    return problems


def _forwards(path: Steps, device: Table) -> list[Problem]:
    words = device.get("forward") or ()
    if words and device.get("backend") is not BackendKind.USER:
        return [Problem((*path, "forward"), spell(list(words)), 'none but with backend = "user"')]
    problems: list[Problem] = []
    for index, text in enumerate(words):
        try:
            Forward.parse(text)
        except ValueError as error:
            problems.append(Problem((*path, "forward", index), spell(text), str(error)))
    return problems


def _taps_and_streams(partitions: Rows, devices: Rows) -> list[Problem]:
    """What only the root's own partitions can have, and only with a network."""
    networks = {one.get("name") for _, one in devices if one.get("kind") is DeviceKind.NET}
    problems: list[Problem] = []
    for path, partition in partitions:
        is_roots = partition.get("parent", ROOT) == ROOT
        if partition.get("streams") and not is_roots:
            problems.append(Problem((*path, "streams"), "true", "none: its parent is not the root"))
        if not isinstance(tap := partition.get("tap"), Mapping):
            continue
        if not is_roots:
            problems.append(Problem((*path, "tap"), "a TAP", "none: its parent is not the root"))
        attached = {one.get("name") for one in _tables(partition)}
        if (device := tap.get("device")) is not None and device not in attached & networks:
            problems.append(Problem((*path, "tap", "device"), spell(device), "a net that this partition has"))
        for key, parse in (("address", IPv4Interface), ("gateway", IPv4Address)):
            try:
                if tap.get(key) is not None:
                    parse(tap[key])
            except ValueError:
                example = "'10.0.0.1/24'" if key == "address" else "'10.0.0.254'"
                problems.append(
                    Problem((*path, "tap", key), spell(tap[key]), f"an IPv4 address, as {example}")
                )
    return problems


def _one_end(path: Steps, device: Table, partitions: Rows) -> list[Problem]:
    """A line has two ends, and one of them is the driver's."""
    name = device.get("name")
    having = [
        partition
        for _, partition in partitions
        if any(one.get("name") == name for one in _tables(partition)) and partition.get("parent") == ROOT
    ]
    if name is None or len(having) <= LINE_ENDS:
        return []
    names = quoted([partition["name"] for partition in having if "name" in partition])
    return [Problem((*path, "name"), f"{spell(name)} in {names}", "a serial line in one partition alone")]


def _tables(partition: Table) -> list[Table]:
    items = partition.get("device")
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list | tuple) else []
