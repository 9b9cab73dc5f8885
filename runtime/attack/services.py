"""The machines of an attack: what is attacked, who works beside it, and who attacks. Configs as texts.

Where a device has one server for all, hostile guests and neighbours share one device; a serial line and a link belong
to one partition, or to two, so there the hostile guest has its own, of the same server.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime.attack.catalogue import RINGS, Attack, Keeping, against
from runtime.attack.turns import BREAKS_PER_GUEST
from runtime.config.architecture import Architecture

HOSTILE_CAP: Final = (
    "5%"  # of a processor, for each hostile guest: its share of those is not what is attacked
)
DISK_BYTES: Final = 16 << 20
NEIGHBOUR_BLOCKS: Final = 256  # of 4096 bytes, from the first one on
NEIGHBOUR_SEED: Final = 1
OPERATIONS_PER_SECOND_MAX: Final = 25_000  # that the neighbour's history has room for
ORDERS: Final = "orders"
ANSWERS: Final = "answers"
_ONE: Final = (Architecture.MICROKERNELIZED,)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A partition that works: how its pace is read."""

    name: str
    program: str
    kind: str  # "verified": a history; "samples": see partitions/guests/neighbour.py; "partner": answers another


@dataclass(frozen=True, slots=True)
class Service:
    """What is attacked."""

    name: str
    architectures: tuple[Architecture, ...]
    device: str  # the kind of the device that hostile guests and neighbours have
    neighbours: tuple[Neighbour, ...]
    intercepts: str = ""  # of hostile guests and neighbours, where accesses to ports are attacked

    def attacks(self, architecture: Architecture) -> tuple[Attack, ...]:
        called = architecture is Architecture.MICROKERNEL and self.device in RINGS
        return against(f"{self.name}-messages" if called and self.name == self.device else self.name)


_DISK_NEIGHBOUR: Final = Neighbour("neighbour", "partitions.guests.verified:main", "verified")


def _pair(kind: str) -> tuple[Neighbour, ...]:
    program = "partitions.guests.neighbour"
    return (
        Neighbour("neighbour", f"{program}:{kind}", "samples"),
        Neighbour("mirror", f"{program}:{kind}_mirror", "partner"),
    )


def _alone(kind: str) -> tuple[Neighbour, ...]:
    return (Neighbour("neighbour", f"partitions.guests.neighbour:{kind}", "samples"),)


SERVICES: Final = (
    Service("disk", tuple(Architecture), "disk", (_DISK_NEIGHBOUR,)),
    Service("custom", tuple(Architecture), "custom", _alone("custom")),
    Service("net", tuple(Architecture), "net", _pair("net")),
    Service("serial", tuple(Architecture), "serial", _alone("serial")),
    Service("link", _ONE, "link", _pair("link")),
    Service("ports", _ONE, "none", _alone("ports"), "hypervisor"),
    Service("ports-direct", _ONE, "none", _alone("ports"), "direct"),
    Service("vmbus", _ONE, "disk", (_DISK_NEIGHBOUR,)),
    Service("hypervisor", _ONE, "disk", (_DISK_NEIGHBOUR,)),
    Service("host", _ONE, "disk", (_DISK_NEIGHBOUR,)),
)


@dataclass(frozen=True, slots=True)
class HostileGuest:
    name: str
    attacks: tuple[Attack, ...]

    @property
    def program(self) -> str:
        is_last = self.attacks[0].keeping is Keeping.LAST
        return f"partitions.guests.hostile:{'last' if is_last else 'campaign'}"


def guests_for(attacks: Sequence[Attack], windows: int) -> list[HostileGuest]:
    """Who makes which of them, if each is made `windows` times."""
    guests = []
    steady = tuple(one for one in attacks if one.keeping is Keeping.STEADY)
    if steady:
        guests.append(HostileGuest("hostile", steady))
    breaking = [one for one in attacks if one.keeping is Keeping.BREAKS]
    each = max(BREAKS_PER_GUEST // windows, 1)
    for number, start in enumerate(range(0, len(breaking), each)):
        guests.append(HostileGuest(f"breaker{number}", tuple(breaking[start : start + each])))
    for number, attack in enumerate(one for one in attacks if one.keeping is Keeping.ALONE):
        guests.append(HostileGuest(f"alone{number}", (attack,)))
    for number, attack in enumerate(one for one in attacks if one.keeping is Keeping.LAST):
        guests.append(HostileGuest(f"last{number}", (attack,)))
    return guests


def machine_text(
    service: Service,
    architecture: Architecture,
    guests: Sequence[HostileGuest],
    folder: Path,
    seconds: float,
    told: Mapping[str, Any],
) -> str:
    """`seconds`: how long it is attacked; `told`: what the hostile guests are told of others, for `args`."""
    machine = {"name": f"attack-{service.name}", "memory": "2GiB", "architecture": str(architecture)}
    machine["waiting"] = "block"  # who spins takes from others what is to be measured
    lines = ["[machine]", *_keys(machine), *_devices(service, guests, folder)]
    for neighbour in service.neighbours:
        lines += _neighbour(service, neighbour, folder, seconds)
    for number, guest in enumerate(guests):
        lines += _hostile(service, guest, number, folder, told)
        if service.device == "link":
            victim = Neighbour(f"victim{number}", "partitions.guests.neighbour:link_mirror", "partner")
            lines += [*_partition(victim.name, victim.program, {"device": f"own{number}"})]
            lines += [*_attached(f"own{number}")]
    return "\n".join(lines) + "\n"


def _keys(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in table.items()]


def _value(value: object) -> str:
    """As TOML has it: JSON but for tables."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_keys(value)) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)


def _devices(service: Service, guests: Collection[HostileGuest], folder: Path) -> list[str]:
    match service.device:
        case "disk":
            keys: dict[str, Any] = {"kind": "disk", "backend": "file"}
            keys |= {"path": str(folder / "disk.img"), "size": DISK_BYTES}
            return ["[[root.device]]", *_keys({"name": "shared", **keys})]
        case "custom":
            return ["[[root.device]]", *_keys({"name": "shared", "kind": "echo"})]
        case "net":
            return ["[[root.device]]", *_keys({"name": "shared", "kind": "net", "backend": "switch"})]
        case "serial":
            keys = {"kind": "serial", "driver": "partitions.serial.loopback:LoopbackSerial"}
        case "link":
            keys = {"kind": "link"}
        case _:
            return []
    names = ["shared", *(f"own{number}" for number in range(len(guests)))]
    return [line for name in names for line in ("[[root.device]]", *_keys({"name": name, **keys}))]


def _partition(name: str, program: str, args: Mapping[str, Any], **more: Any) -> list[str]:
    keys = {"name": name, "program": program, "memory": "24MiB", "args": args, **more}
    return ["[[partition]]", *_keys(keys)]


def _attached(device: str) -> list[str]:
    return ["[[partition.device]]", *_keys({"name": device, "ring_bytes": 16384})]


def _file(name: str, path: Path, mode: str = "read-write") -> list[str]:
    return ["[[partition.file]]", *_keys({"name": name, "path": str(path), "mode": mode})]


def _emulated(service: Service) -> tuple[dict[str, str], list[str]]:
    if not service.intercepts:
        return {}, []
    lines = [
        line
        for kind in ("uart", "keyboard", "rtc")
        for line in ("[[partition.emulated]]", f'kind = "{kind}"')
    ]
    return {"intercepts": service.intercepts}, lines


def _neighbour(service: Service, neighbour: Neighbour, folder: Path, seconds: float) -> list[str]:
    args: dict[str, Any] = {"device": "shared"}
    if neighbour.kind == "verified":
        args |= {"seed": NEIGHBOUR_SEED, "blocks": NEIGHBOUR_BLOCKS, "depth": 2, "blocks_max": 1}
        args |= {"seconds": 600, "operations": int(seconds * OPERATIONS_PER_SECOND_MAX)}
        args |= {"mix": {"read": 50, "write": 45, "flush": 0, "discard": 5}}
    more, emulated = _emulated(service)
    lines = _partition(neighbour.name, neighbour.program, args, **more) + emulated
    if service.device != "none":
        lines += _attached("shared")
    if neighbour.kind == "verified":
        lines += _file("history", folder / "history")
    elif neighbour.kind == "samples":
        lines += _file("samples", folder / "samples")
    return lines


def _hostile(
    service: Service, guest: HostileGuest, number: int, folder: Path, told: Mapping[str, Any]
) -> list[str]:
    device = f"own{number}" if service.device in ("serial", "link") else "shared"
    is_last = guest.attacks[0].keeping is Keeping.LAST
    args: dict[str, Any] = {"device": device, "kind": service.device, **told}
    if is_last:
        args = {"call": guest.attacks[0].name.removeprefix("call-").replace("-", "_")}
    more, emulated = _emulated(service)
    lines = _partition(guest.name, guest.program, args, cap=HOSTILE_CAP, **more) + emulated
    if service.device != "none" and not is_last:
        lines += _attached(device)
    return (
        lines
        + _file(ORDERS, folder / f"{guest.name}.{ORDERS}")
        + _file(ANSWERS, folder / f"{guest.name}.{ANSWERS}")
    )
