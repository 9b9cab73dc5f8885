"""A machine's first root: it starts on the bare platform, and is a partition from the hypervisor's boot on."""

import os
import socket
from collections.abc import Mapping

from runtime.abi import PAGE_BYTES
from runtime.config.model import MachineConfig
from runtime.machine.firmware import PacketLink
from runtime.machine.hypervisor_options import sandbox_orders
from runtime.machine.process import Child, Descriptor, execute
from runtime.reserved_names import ROOT


def power_on(
    config: MachineConfig,
    hypercalls: socket.socket,
    firmware: socket.socket,
    console: Descriptor,
    loader: socket.socket,
) -> Child:
    """Its process, with its ends of everything. There is nobody yet at the other end of `hypercalls`."""
    return execute(
        "partitions.power_on",
        {
            "--hypercall-fd": hypercalls,
            "--firmware-fd": firmware,
            "--console-fd": console,
            "--loader-fd": loader,
        },
        own_user=sandbox_orders(config).confine_somebody,  # the zygote is a copy of it
    )


async def hand_over(
    hypervisor: PacketLink,
    config: MachineConfig,
    root: Child,
    hypercalls_fd: int,
    console_fd: int,
    firmware_fd: int,
    traced: Mapping[str, int],
) -> None:
    """Give it to the hypervisor, with what its successors need.

    Args:
        hypercalls_fd: the hypervisor's end.
        firmware_fd: the root's end.
        traced: descriptors that a successor has besides, by name.
    """
    pidfd = os.pidfd_open(root.pid)
    try:
        await hypervisor.send(
            "adopt",
            {
                "name": ROOT,
                "memory_pages": config.machine.memory // PAGE_BYTES,
                "pid": root.pid,
                "args": {"traced": list(traced)},
            },
            [hypercalls_fd, pidfd, console_fd, firmware_fd, *traced.values()],
        )
    finally:
        os.close(pidfd)
