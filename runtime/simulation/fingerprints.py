"""All that a partition is, as one tuple that can be compared: whether a step changed it is then a comparison.

Fields are read off the dataclasses themselves, so that what the hypervisor adds to them is watched from that day on.
For each class the way to copy it is worked out once: this runs several times a step.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from runtime.abi import PartitionState
from runtime.hypervisor.partition import Partition

_CONTAINERS: Final = frozenset({"list", "dict", "deque", "set", "Counter", "defaultdict", "object", "Any"})
_SHARED: Final = frozenset({"Page"})  # memory that guests write: no part of the hypervisor's own state
_SEQUENCES: Final = (list, tuple, deque, set)


class Fingerprint(NamedTuple):
    state: PartitionState
    available: int  # pages
    in_use: int
    links: tuple[tuple[Any, ...], ...]  # (partition at the other end, ...) of each port and connection
    entries: tuple[Any, ...]  # of `gpa.entries`, which never change
    rest: tuple[Any, ...]


def fingerprint(partition: Partition) -> Fingerprint:
    links = [
        (port.connection_partition, port.id, port.connection)
        for port in partition.ports.values()
        if port.connection is not None
    ]
    links += [
        (connection.port_partition, connection.id, connection.port)
        for connection in partition.connections.values()
        if connection.port is not None
    ]
    pool, entries = partition.pool, partition.gpa.entries
    return Fingerprint(
        partition.state,
        pool.available,
        pool.in_use,
        tuple(links),
        tuple(entries.values()) if entries else (),
        _copier(Partition)(partition),
    )


_Copier = Callable[[Any], Any]
_copiers: Final[dict[type[Any], _Copier]] = {}


def freeze(value: Any) -> Any:
    """A copy that stays as it is and can be compared."""
    return _copier(type(value))(value)


def _copier(kind: type[Any]) -> _Copier:
    if (found := _copiers.get(kind)) is None:
        found = _copiers[kind] = _make_copier(kind)
    return found


def _make_copier(kind: type[Any]) -> _Copier:
    if issubclass(kind, dict):
        return lambda value: [(key, freeze(element)) for key, element in value.items()]
    if issubclass(kind, _SEQUENCES):
        return lambda value: [freeze(element) for element in value] if any(value) else len(value)
    if dataclasses.is_dataclass(kind):
        return _copier_of_fields(kind)
    return lambda value: value


def _copier_of_fields(kind: Any) -> _Copier:
    """One expression that reads every field, compiled once, as namedtuple does it: a loop costs twice that."""
    plain, changing = _fields(kind, "", _mutable_dataclasses())
    copies = {f"copy{number}": copy for number, (_, copy) in enumerate(changing)}
    terms = [f"value.{name}" for name in plain]
    terms += [
        f"copy{number}(x) if (x := value.{name}) else None" for number, (name, _) in enumerate(changing)
    ]
    expression = f"lambda value: ({', '.join(terms)},)" if terms else "lambda value: ()"
    copier: _Copier = eval(expression, copies)  # names of fields, nothing else
    return copier


def _fields(
    kind: Any, prefix: str, mutable: dict[str, type[Any]]
) -> tuple[list[str], list[tuple[str, _Copier]]]:
    """Dotted names: a dataclass within a dataclass is read through, without a call of its own."""
    plain: list[str] = []
    changing: list[tuple[str, _Copier]] = []
    for each in dataclasses.fields(kind):
        name, text = prefix + each.name, str(each.type)
        words = re.findall(r"\w+", text)
        if _SHARED.intersection(words):
            continue
        containers = [word for word in words if word in _CONTAINERS]
        changes = [word for word in words if word in mutable]
        if text in mutable:
            deeper = _fields(mutable[text], f"{name}.", mutable)
            plain += deeper[0]
            changing += deeper[1]
        elif not containers and not changes:
            plain.append(name)
        elif text.startswith("list[deque[") and not changes:
            changing.append((name, _queues))
        elif not changes and len(containers) == 1:
            changing.append((name, _items if containers == ["dict"] else tuple))
        elif len(containers) == len(changes) == 1 and re.fullmatch(r"(list|dict)\[(int, )?\w+\]", text):
            copy = _copier(mutable[changes[0]])
            changing.append(
                (name, _copier_of_values(copy) if containers == ["dict"] else _copier_of_list(copy))
            )
        else:
            changing.append((name, freeze))
    return plain, changing


def _queues(value: list[deque[Any]]) -> Any:
    return list(map(tuple, value)) if any(value) else None  # they mostly are empty, all of them


def _items(value: dict[Any, Any]) -> tuple[Any, ...]:
    return tuple(value.items())


def _copier_of_list(copy: _Copier) -> _Copier:
    return lambda value: list(map(copy, value))


def _copier_of_values(copy: _Copier) -> _Copier:
    return lambda value: list(map(copy, value.values()))  # each knows its own key


def _mutable_dataclasses() -> dict[str, type[Any]]:
    """Those that the hypervisor's modules define, by name."""
    return {
        name: value
        for module_name, module in list(sys.modules.items())
        if module_name.startswith("runtime.hypervisor.")
        for name, value in vars(module).items()
        if isinstance(value, type)
        and dataclasses.is_dataclass(value)
        and not value.__dataclass_params__.frozen  # type: ignore[attr-defined]
    }
