"""The files of one trial: a configuration of its own, disks and histories, all in the trial's folder.

What a trial writes, it writes there; so trials run side by side, and one can be looked at when it is over. A disk image
that the experiment names is copied first.
"""

import json
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from runtime.chaos.experiment.model import Experiment
from runtime.config.architecture import Architecture
from runtime.config.document import ConfigError, Document, read
from runtime.config.loading import load
from runtime.config.overrides import apply_overrides
from runtime.config.own_files import give_own_files
from runtime.config.validate import find_problems

VERIFYING: Final = "partitions.guests.verified:main"  # the program whose histories are judged
SEQUENCED: Final = "partitions.guests.sequenced:main"  # the same for messages
DISK: Final = "disk0"
ECHO: Final = "echo0"
BYSTANDERS_DISK: Final = "disk1"
BYSTANDER: Final = "bystander"
_DISK_BYTES: Final = 16 << 20
_REOPENED_BLOCK: Final = 3072  # where the reopening guest's own blocks begin
_PATIENCE_S: Final = 60
_LONGER_S: Final = 10
_BLOCKS: Final = 1024  # that a verifying guest uses where its arguments do not say

Tables = dict[str, Any]


@dataclass(frozen=True, slots=True)
class VerifyingGuest:
    """A guest whose history is judged."""

    name: str
    device: str
    seed: int
    blocks: range  # of 4 KiB
    history: Path


@dataclass(frozen=True, slots=True)
class TrialMachine:
    """What a trial boots, and where to find what it leaves."""

    config: Path
    guests: tuple[VerifyingGuest, ...]
    images: Mapping[str, Path]  # by device
    drivers: tuple[str, ...]  # names of driver partitions
    sequences: Mapping[str, Path] = field(default_factory=dict)  # files of guests that number their messages

    def guests_on(self, device: str) -> tuple[VerifyingGuest, ...]:
        return tuple(guest for guest in self.guests if guest.device == device)


def prepare(
    experiment: Experiment, folder: Path, architecture: Architecture | None, machine_text: str = ""
) -> TrialMachine:
    """Write them into `folder`, which is there and empty. Raises ConfigError, OSError.

    Args:
        machine_text: of the configuration that the experiment names, if its file is not to be read.
    """
    overrides = list(experiment.experiment.set)
    if architecture is not None:
        overrides.append(f"machine.architecture={architecture}")
    source, named = experiment.experiment.machine, experiment.experiment.machine
    if named is None or machine_text:
        source = folder / "made.toml"
        source.write_text(to_toml(_made_for(experiment)) if named is None else machine_text)
    assert source is not None
    document = read(source, overrides)
    tables, started_from = document.tables, (named or source).absolute().parent
    images = _own_images(tables, started_from, folder)
    guests = _own_files(tables, started_from, folder)
    path = folder / "machine.toml"
    path.write_text(to_toml(tables))
    sequences = {
        partition["name"]: folder / f"{partition['name']}.{partition['args'].get('sequence', 'sequence')}"
        for partition in tables.get("partition", [])
        if partition["program"] == SEQUENCED
    }
    return TrialMachine(path, tuple(guests), images, load(path).drivers, sequences)


def machine_tables(
    experiment: Experiment, architecture: Architecture | None, machine_text: str = ""
) -> Document:
    """What `prepare` would boot, checked, without writing anything, and without its files. Raises ConfigError."""
    overrides = list(experiment.experiment.set)
    if architecture is not None:
        overrides.append(f"machine.architecture={architecture}")
    source = experiment.experiment.machine
    if source is not None and not machine_text:
        document = read(source, overrides)
    else:
        tables = tomllib.loads(machine_text) if machine_text else _made_for(experiment)
        paths, problems = apply_overrides(tables, overrides)
        if problems:
            raise ConfigError(experiment.name, problems)
        folder = Path() if source is None else source.absolute().parent
        document = Document(experiment.name, folder, to_toml(tables), tables, paths)
    for partition in document.tables.get("partition", []):
        partition.pop("file", None)
    if problems := find_problems(document):
        raise ConfigError(document.source, problems)
    return document


def _made_for(experiment: Experiment) -> Tables:
    work = experiment.workload
    partitions = [_guest(f"guest{seed}", DISK, seed, experiment) for seed in range(1, work.guests + 1)]
    if work.bystander:
        partitions.append(_guest(BYSTANDER, BYSTANDERS_DISK, work.guests + 1, experiment))
    if work.reopening:
        arguments = {
            "device": DISK,
            "seconds": _load_seconds(experiment),
            "first_block": _REOPENED_BLOCK,
        }
        partitions.append(_partition("reopening", "partitions.guests.reopening:main", DISK, arguments))
    if work.sequenced:
        arguments = {"device": ECHO, "seconds": _load_seconds(experiment), "patience_s": float(_PATIENCE_S)}
        table = _partition("sequenced", SEQUENCED, ECHO, arguments)
        partitions.append(table | {"file": [{"name": "sequence", "path": "sequence", "mode": "read-write"}]})
    disks = [DISK] + ([BYSTANDERS_DISK] if work.bystander else [])
    return {
        "machine": {
            "name": experiment.name,
            "memory": "512MiB",
            "on_root_failure": work.on_root_failure.value,
        },
        "root": {
            "device": [
                {"name": name, "kind": "disk", "backend": "file", "path": f"{name}.img", "size": _DISK_BYTES}
                for name in disks
            ]
            + ([{"name": ECHO, "kind": "echo"}] if work.sequenced else [])
        },
        "partition": partitions,
    }


def _load_seconds(experiment: Experiment) -> float:
    """Longer than a trial takes: it is the trial that ends the load, under which the last look is taken."""
    return experiment.experiment.seconds + experiment.steady.within_ms / 1000 + _LONGER_S


def _guest(name: str, device: str, seed: int, experiment: Experiment) -> Tables:
    work = experiment.workload
    arguments = {
        "device": device,
        "seed": seed,
        "blocks": work.blocks,
        "depth": work.depth,
        "seconds": _load_seconds(experiment),
        "operations": work.operations,
        "patience_s": float(_PATIENCE_S),
    }
    table = _partition(name, VERIFYING, device, arguments)
    return table | {"file": [{"name": "history", "path": f"{name}.history", "mode": "read-write"}]}


def _partition(name: str, program: str, device: str, arguments: Tables) -> Tables:
    return {
        "name": name,
        "program": program,
        "memory": "32MiB",
        "args": arguments,
        "device": [{"name": device}],
    }


def _own_images(tables: Tables, started_from: Path, folder: Path) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for device in tables.get("root", {}).get("device", []):
        if device.get("path") is None:
            continue
        original, own = started_from / device["path"], folder / f"{device['name']}.img"
        if original.is_file():
            shutil.copyfile(original, own)
        device["path"] = str(own)
        images[device["name"]] = own
    return images


def _own_files(tables: Tables, started_from: Path, folder: Path) -> list[VerifyingGuest]:
    guests: list[VerifyingGuest] = []
    for partition in tables.get("partition", []):
        give_own_files(partition, started_from, folder)
        if partition["program"] != VERIFYING:
            continue
        args = partition["args"]
        first = int(args.get("first_block", 0))
        guests.append(
            VerifyingGuest(
                partition["name"],
                args["device"],
                int(args["seed"]),
                range(first, first + int(args.get("blocks", _BLOCKS))),
                folder / f"{partition['name']}.{args.get('history', 'history')}",
            )
        )
    return guests


def to_toml(tables: Mapping[str, Any]) -> str:
    """As TOML: one key a line, everything below it inline."""
    return "".join(f"{_key(key)} = {_inline(value)}\n" for key, value in tables.items() if value is not None)


def _inline(value: object) -> str:
    match value:
        case bool() | int() | float() | str():
            return json.dumps(value)
        case Mapping():
            pairs = (f"{_key(key)} = {_inline(item)}" for key, item in value.items() if item is not None)
            return "{ " + ", ".join(pairs) + " }"
        case Sequence():
            return "[" + ", ".join(_inline(item) for item in value) + "]"
    raise TypeError(f"{type(value).__name__} in a configuration")


def _key(key: object) -> str:
    return json.dumps(str(key), ensure_ascii=True)
