"""What a simulated machine is made of, read from the same tables as a real one, and what of it is not simulated."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from partitions.guests.reopening import BLOCKS
from partitions.guests.verified import Plan
from partitions.machine_plan import PartitionPlan
from partitions.simulated.guest import RING_BYTES
from runtime.chaos.experiment.loading import experiment_of
from runtime.chaos.experiment.machine_files import ECHO, VERIFYING, VerifyingGuest, machine_tables
from runtime.chaos.experiment.model import Experiment
from runtime.config.architecture import Architecture
from runtime.config.devices import DeviceKind
from runtime.config.loading import convert
from runtime.config.model import MachineConfig
from runtime.exits import CommandError

REOPENING: Final = "partitions.guests.reopening:main"
SEQUENCED_GUEST: Final = "sequenced"  # as a workload names it
ARCHITECTURES: Final = (Architecture.MICROKERNELIZED, Architecture.DISAGGREGATED)
CACHED: Final = 64  # experiments, with an architecture


class NotSimulated(CommandError):
    """The experiment wants something that only real processes have."""


@dataclass(frozen=True, slots=True)
class DiskPlan:
    name: str
    size_bytes: int
    block_bytes: int
    read_only: bool


@dataclass(frozen=True, slots=True)
class GuestPlan:
    verifying: VerifyingGuest
    plan: Plan

    @property
    def name(self) -> str:
        return self.verifying.name

    @property
    def device(self) -> str:
        return self.verifying.device


@dataclass(frozen=True, slots=True)
class MachinePlan:
    policy: str  # on_root_failure
    architecture: Architecture
    hang_ms: int
    stuck_ms: int
    disks: tuple[DiskPlan, ...]
    guests: tuple[GuestPlan, ...]
    others: tuple[GuestPlan, ...]  # guests that reopen their disk, and are not judged by a history
    partitions: tuple[PartitionPlan, ...]


@lru_cache(CACHED)
def _experiment(text: str, folder: str) -> Experiment:
    return experiment_of(json.loads(text), Path(folder), "the experiment")


@lru_cache(CACHED)
def _machine(text: str, folder: str, architecture: str, machine: str) -> MachinePlan:
    kind = Architecture(architecture) if architecture else None
    return machine_plan(_experiment(text, folder), kind, machine)


def planned(
    tables: Mapping[str, Any], folder: str, architecture: str, machine: str = ""
) -> tuple[Experiment, MachinePlan]:
    """Kept, as a campaign asks a thousand times. Raises ExperimentError, ConfigError, NotSimulated."""
    text = json.dumps(tables)
    return _experiment(text, folder), _machine(text, folder, architecture, machine)


def machine_plan(
    experiment: Experiment, architecture: Architecture | None, machine_text: str = ""
) -> MachinePlan:
    """`machine_text`: of the configuration that the experiment names. Raises ConfigError, NotSimulated."""
    config = convert(machine_tables(experiment, architecture, machine_text))
    if config.machine.architecture not in ARCHITECTURES:
        raise NotSimulated(f"the {config.machine.architecture} architecture is not in the simulated mode")
    left_out = left_out_of(experiment)
    disks = tuple(_disk(config, device.name) for device in config.root.devices if device.name not in left_out)
    every = [
        _guest(config, index)
        for index, partition in enumerate(config.partitions)
        if partition.name not in left_out
    ]
    others = tuple(guest for guest in every if guest.verifying.seed == 0)
    guests = tuple(guest for guest in every if guest.verifying.seed)
    if not guests:
        raise NotSimulated("a machine without guests is not in the simulated mode")
    machine = {"signal_route": "direct", "waiting": "block", "architecture": str(config.machine.architecture)}
    return MachinePlan(
        config.machine.on_root_failure.value,
        config.machine.architecture,
        config.machine.hang_ms,
        config.machine.stuck_ms,
        disks,
        guests,
        others,
        tuple(PartitionPlan.from_table(_table(guest), machine, []) for guest in every),
    )


def left_out_of(experiment: Experiment) -> frozenset[str]:
    """Of a workload, what is simulated without: the guest that numbers its messages, and its echo."""
    sequenced = experiment.experiment.machine is None and experiment.workload.sequenced
    return frozenset({SEQUENCED_GUEST, ECHO}) if sequenced else frozenset()


def _disk(config: MachineConfig, name: str) -> DiskPlan:
    device = config.device(name)
    if device.kind is not DeviceKind.DISK or device.driver is not None:
        raise NotSimulated(
            f"device {name}: only disks without a driver of their own are in the simulated mode"
        )
    if device.size is None:
        raise NotSimulated(f"device {name}: a disk of the simulated mode needs a size")
    return DiskPlan(name, int(device.size), device.block_bytes, device.read_only)


def _guest(config: MachineConfig, index: int) -> GuestPlan:
    partition = config.partitions[index]
    if partition.program == REOPENING and partition.parent == "root":
        first = int(partition.args["first_block"])
        blocks = range(first, first + BLOCKS)
        named = VerifyingGuest(partition.name, str(partition.args["device"]), 0, blocks, Path(partition.name))
        return GuestPlan(named, Plan(seed=1, blocks=BLOCKS, first_block=first, depth=2, operations=1))
    if partition.program != VERIFYING or partition.parent != "root":
        raise NotSimulated(f"partition {partition.name}: {partition.program} is not in the simulated mode")
    plan = Plan.from_args(partition.args)
    blocks = range(plan.first_block, plan.first_block + plan.blocks)
    device = str(partition.args["device"])
    return GuestPlan(VerifyingGuest(partition.name, device, plan.seed, blocks, Path(partition.name)), plan)


def _table(guest: GuestPlan) -> dict[str, Any]:
    data = guest.plan.depth * guest.plan.blocks_max * 4096
    return {
        "name": guest.name,
        "program": VERIFYING,
        "parent": "root",
        "memory": (1 << 20) + data + 4 * RING_BYTES,
        "vps": 1,
        "device": [{"name": guest.device, "ring_bytes": RING_BYTES}],
    }
