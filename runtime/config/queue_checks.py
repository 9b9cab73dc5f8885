"""What `queues` needs of a config: a disk that is offered over rings, and served where its rings are."""

from collections.abc import Mapping
from typing import Any, Final

from runtime.config.architecture import Architecture
from runtime.config.devices import DeviceKind
from runtime.config.problem import Problem, spell
from runtime.config.toml_lines import Steps

Table = Mapping[str, Any]
_HAVE_QUEUES: Final = (Architecture.MICROKERNELIZED, Architecture.DISAGGREGATED, Architecture.MONOLITHIC)


def check(config: Table, devices: list[tuple[Steps, Table]]) -> list[Problem]:
    machine = config.get("machine")
    architecture = machine.get("architecture") if isinstance(machine, Mapping) else None
    problems: list[Problem] = []
    for path, device in devices:
        kind, queues = device.get("kind"), device.get("queues")
        if queues is None:
            continue
        words = None
        if isinstance(kind, DeviceKind) and kind is not DeviceKind.DISK:
            words = 'none but with kind = "disk"'
        elif queues > 1 and device.get("assigned_to") is not None:
            words = "1, with assigned_to: nobody offers that disk"
        elif queues > 1 and architecture not in (None, *_HAVE_QUEUES):
            words = (
                f'1, with architecture = "{architecture}"; more with {", ".join(map(spell, _HAVE_QUEUES))}'
            )
        if words is not None:
            problems.append(Problem((*path, "queues"), spell(queues), words))
    return problems
