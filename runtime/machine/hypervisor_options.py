"""What the hypervisor is told on its command line."""

from typing import Final

from runtime.config.architecture import Architecture
from runtime.config.model import MachineConfig
from runtime.config.sandbox import SandboxOrders
from runtime.config.tap_order import MTU_DEFAULT, TapOrder

DRIVER_MODULE: Final = (
    "partitions.drivers.resident_driver"  # what the hypervisor of a monolithic machine loads
)


def hypervisor_options(config: MachineConfig) -> list[str]:
    settings = config.machine
    options = ["--on-root-failure", settings.on_root_failure, "--scheduler", settings.scheduler]
    options += ["--sandbox", str(sandbox_orders(config))]
    if settings.architecture is Architecture.MONOLITHIC:
        options += ["--driver-module", DRIVER_MODULE]
    return options


def sandbox_orders(config: MachineConfig) -> SandboxOrders:
    own = {config.path_of(one.name): one.sandbox for one in config.partitions if one.sandbox is not None}
    taps = {
        config.path_of(one.name): TapOrder(
            one.tap.device,
            config.device(one.tap.device).mtu or MTU_DEFAULT,
            one.tap.address,
            one.tap.gateway,
        )
        for one in config.partitions
        if one.tap is not None
    }
    return SandboxOrders(config.machine.sandbox, own, taps)
