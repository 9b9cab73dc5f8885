"""The calling side of the hypervisor: a method for each call, with its arguments and results typed.

A call takes some ten microseconds and never waits for another partition, so it may be made from a trio task; only
the accesses of `runtime.hypercalls.intercepts` wait.
Descriptors in a result belong to the caller, who closes them. The methods stand in a module for each family.
"""

from __future__ import annotations

import os
import socket

from runtime.hypercalls.device_domains import DeviceDomainCalls
from runtime.hypercalls.intercepts import AccessResult, InterceptCalls
from runtime.hypercalls.memory import MemoryCalls
from runtime.hypercalls.partitions import PartitionCalls
from runtime.hypercalls.ports import PortCalls
from runtime.hypercalls.processors import ProcessorCalls
from runtime.hypercalls.results import Birth, Doorbell, MappedSlot, MemoryBalance, Program, VpLines
from runtime.hypercalls.statistics import ProcessorTime, StatisticsCalls, StatisticsPage

__all__ = [
    "AccessResult",
    "Birth",
    "Doorbell",
    "HypercallPort",
    "MappedSlot",
    "MemoryBalance",
    "ProcessorTime",
    "Program",
    "StatisticsPage",
    "VpLines",
    "adopt_socket",
]


class HypercallPort(
    PartitionCalls, MemoryCalls, ProcessorCalls, PortCalls, InterceptCalls, DeviceDomainCalls, StatisticsCalls
):
    """This partition's hypercalls. Any thread may call; calls are made one after the other.

    Every method raises HypercallError if the hypervisor refused (it then changed nothing), and HypervisorGone
    if there is no hypervisor any more.
    """


def adopt_socket(fd: int) -> HypercallPort:
    """The port on an inherited descriptor, which is from now on not inheritable."""
    os.set_inheritable(fd, False)
    return HypercallPort(socket.socket(fileno=fd))
