"""The calling side of the hypervisor: a method for each call, with its arguments and results typed.

A call takes some ten microseconds and never waits for another partition, so it may be made from a trio task; only
the accesses of `runtime.intercept_calls` wait.
Descriptors in a result belong to the caller, who closes them. The methods stand in a module for each family.
"""

from __future__ import annotations

import os
import socket

from runtime.device_domain_calls import DeviceDomainCalls
from runtime.hypercall_results import Birth, Doorbell, MappedSlot, MemoryBalance, Program, VpLines
from runtime.intercept_calls import AccessResult, InterceptCalls
from runtime.memory_calls import MemoryCalls
from runtime.partition_calls import PartitionCalls
from runtime.port_calls import PortCalls
from runtime.processor_calls import ProcessorCalls
from runtime.statistics_calls import ProcessorTime, StatisticsCalls, StatisticsPage

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
