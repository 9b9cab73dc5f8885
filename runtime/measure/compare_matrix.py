"""What `partvisor compare` sets side by side: variants of one config, their order, and which of them do not exist."""

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from runtime.config.architecture import DRIVEN, Architecture
from runtime.config.model import MachineConfig, PartitionDeviceConfig, SignalRoute, WaitingKind
from runtime.reserved_names import ROOT

VARIANT_WAITS: Final = (WaitingKind.SPIN, WaitingKind.BLOCK)  # the two ends; adaptive lies between
_NO_RINGS: Final = "requests go from process to process through the kernel: there is no doorbell to route"
_NO_WAITING: Final = "a client sleeps in the kernel until the reply is there: there is no ring to spin on"


class Choice(enum.StrEnum):
    """A word for a route or a waiting that the config leaves to each device, and the devices differ."""

    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run a config. None: as the config says."""

    architecture: Architecture
    route: SignalRoute | None = None
    waiting: WaitingKind | None = None

    def overrides(self, config: MachineConfig) -> list[str]:
        """What brings the config into this form, as `--set` has it: of the machine, and of devices with their own."""
        found = [f"machine.architecture={self.architecture}"]
        for key, value in (("signal_route", self.route), ("waiting", self.waiting)):
            if value is None:
                continue
            found.append(f"machine.{key}={value}")
            found += [
                f"partition.{partition.name}.device.{device.name}.{key}={value}"
                for partition in config.partitions
                for device in partition.devices
                if getattr(device, key) is not None
            ]
        return found


@dataclass(frozen=True, slots=True)
class Terms:
    """A variant, spelled out for people. "-": there is no such thing under this architecture."""

    architecture: str
    route: str
    waiting: str

    @property
    def name(self) -> str:
        """ "hosted, direct, block"; "microkernel" """
        return ", ".join(part for part in (self.architecture, self.route, self.waiting) if part != "-")

    @property
    def slug(self) -> str:
        return self.name.replace(", ", ".")


def terms_of(variant: Variant, config: MachineConfig) -> Terms:
    if variant.architecture is Architecture.MICROKERNEL:
        return Terms(variant.architecture.value, variant.route or "-", variant.waiting or "-")
    return Terms(
        variant.architecture.value,
        variant.route or _common([config.signal_route_of(each) for each in _attached(config)]),
        variant.waiting or _common([config.waiting_of(each) for each in _attached(config)]),
    )


def _attached(config: MachineConfig) -> list[PartitionDeviceConfig]:
    return [device for partition in config.partitions for device in partition.devices]


def _common(words: Sequence[str]) -> str:
    return str(words[0]) if len(set(words)) == 1 else Choice.MIXED


def matrix(
    config: MachineConfig,
    architectures: Sequence[Architecture] = (),
    routes: Sequence[SignalRoute] = (),
    waits: Sequence[WaitingKind] = (),
    everything: bool = False,
) -> list[Variant]:
    """The variants to set side by side, the config's own first: all others are compared with it.

    Without routes and waits: each architecture once, as the config has it otherwise, and the config's own one with the
    other route, and with each of VARIANT_WAITS. With either: every combination.
    """
    own = Variant(config.machine.architecture)
    chosen = tuple(architectures) or tuple(Architecture)
    if everything:
        routes, waits = tuple(SignalRoute), VARIANT_WAITS
    if routes or waits:
        found = [own]
        for each in chosen:
            if each is Architecture.MICROKERNEL:
                found.append(Variant(each))
            pairs = [(route, waiting) for route in (routes or (None,)) for waiting in (waits or (None,))]
            found += [_plainest(Variant(each, *pair), config) for pair in pairs]
    else:
        found = [own, *(Variant(each) for each in chosen)]
        if own.architecture in chosen:
            found += [_plainest(Variant(own.architecture, route=each), config) for each in SignalRoute]
            found += [_plainest(Variant(own.architecture, waiting=each), config) for each in VARIANT_WAITS]
    return list(dict.fromkeys(found))


def _plainest(variant: Variant, config: MachineConfig) -> Variant:
    """The same variant without what the config says anyway, so that none comes twice. A microkernel's stay as asked
    for: what they ask for is not there."""
    if variant.architecture is Architecture.MICROKERNEL:
        return variant
    route = _common([config.signal_route_of(each) for each in _attached(config)])
    waiting = _common([config.waiting_of(each) for each in _attached(config)])
    return Variant(
        variant.architecture,
        None if variant.route == route else variant.route,
        None if variant.waiting == waiting else variant.waiting,
    )


def not_applicable(variant: Variant, config: MachineConfig) -> str | None:
    """Why there is no such machine; None: there is one, as far as can be told without loading it."""
    if variant.architecture is Architecture.MICROKERNEL:
        if variant.route is not None:
            return _NO_RINGS
        if variant.waiting is not None:
            return _NO_WAITING
    kinds = {config.device(each.name).kind for each in _root_devices(config)}
    if variant.architecture is not Architecture.MICROKERNELIZED and kinds and not kinds & DRIVEN:
        return f"a device of kind {' or '.join(sorted(kinds))} has no driver that could be anywhere but in the root"
    return None


def _root_devices(config: MachineConfig) -> list[PartitionDeviceConfig]:
    """Attached to children of the root: those of others are devices of their parents."""
    return [device for each in config.partitions if each.parent == ROOT for device in each.devices]


def order_of(count: int, number: int, seed: int) -> list[int]:
    """In which order round `number` takes `count` variants: another one each round, the same for the same seed."""
    order = list(range(count))
    random.Random(f"{seed}/{number}").shuffle(order)
    return order
