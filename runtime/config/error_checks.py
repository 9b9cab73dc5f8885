"""What `on_error` needs of a config: a device with hardware behind it, served where that can be watched."""

from collections.abc import Mapping
from typing import Any, Final

from runtime.config.architecture import Architecture
from runtime.config.devices import DeviceKind
from runtime.config.on_error import OnError
from runtime.config.problem import Problem, spell
from runtime.config.toml_lines import Steps

Table = Mapping[str, Any]
_WATCHED: Final = (DeviceKind.DISK, DeviceKind.NET)
_BY_MESSAGES: Final = (Architecture.HOSTED, Architecture.MICROKERNEL)


def check(config: Table, devices: list[tuple[Steps, Table]]) -> list[Problem]:
    machine = config.get("machine")
    architecture = machine.get("architecture") if isinstance(machine, Mapping) else None
    problems: list[Problem] = []
    for path, device in devices:
        kind, on_error = device.get("kind"), device.get("on_error")
        for key in ("on_error", "error_threshold"):
            if device.get(key) is not None and isinstance(kind, DeviceKind) and kind not in _WATCHED:
                words = 'none but with kind = "disk" or "net"'
                problems.append(Problem((*path, key), spell(str(device[key])), words))
        if on_error not in (None, OnError.REPORT) and architecture in _BY_MESSAGES:
            words = f'"report", with architecture = "{architecture}"'
            problems.append(Problem((*path, "on_error"), spell(str(on_error)), words))
    return problems
