"""What a partition may ask of the hypervisor: its privilege mask. Part of `runtime.abi`.

Source: TLFS, HV_PARTITION_PRIVILEGE_MASK.
"""

from __future__ import annotations

import enum
from typing import Final


class Privilege(enum.IntFlag):
    """A partition's privilege mask: CPUID leaf 0x40000003, EAX low, EBX high."""

    ACCESS_VP_RUNTIME = 1 << 0
    ACCESS_REFERENCE_COUNTER = 1 << 1
    ACCESS_SYNIC = 1 << 2
    ACCESS_SYNTHETIC_TIMERS = 1 << 3
    ACCESS_APIC = 1 << 4
    ACCESS_HYPERCALL_MSRS = 1 << 5
    ACCESS_VP_INDEX = 1 << 6
    ACCESS_RESET = 1 << 7
    ACCESS_STATS = 1 << 8
    ACCESS_REFERENCE_TSC = 1 << 9
    ACCESS_GUEST_IDLE = 1 << 10
    ACCESS_FREQUENCY = 1 << 11
    ACCESS_REENLIGHTENMENT = 1 << 13
    ACCESS_TSC_INVARIANT = 1 << 15
    CREATE_PARTITIONS = 1 << 32
    ACCESS_PARTITION_ID = 1 << 33
    ACCESS_MEMORY_POOL = 1 << 34
    ADJUST_MESSAGE_BUFFERS = 1 << 35
    POST_MESSAGES = 1 << 36
    SIGNAL_EVENTS = 1 << 37
    CREATE_PORT = 1 << 38
    CONNECT_PORT = 1 << 39
    ACCESS_STATS_CALLS = 1 << 40
    DEBUGGING = 1 << 43
    CPU_MANAGEMENT = 1 << 44
    ACCESS_VSM = 1 << 48
    ACCESS_VP_REGISTERS = 1 << 49
    FAST_HYPERCALL_OUTPUT = 1 << 51
    EXTENDED_HYPERCALLS = 1 << 52
    START_VIRTUAL_PROCESSOR = 1 << 53
    ISOLATION = 1 << 54


_MSRS: Final = Privilege(0x1FF) | Privilege.ACCESS_GUEST_IDLE
ALL_PRIVILEGES: Final = Privilege(sum(Privilege))
# What a new child starts with: no hypercall at all but the ones that every partition has.
DEFAULT_PRIVILEGES: Final = _MSRS
# What a VMBus guest needs: messages, events, its own id, and its own pages mapped from its own pool.
GUEST_PRIVILEGES: Final = (
    _MSRS
    | Privilege.ACCESS_REFERENCE_TSC
    | Privilege.ACCESS_PARTITION_ID
    | Privilege.ACCESS_MEMORY_POOL
    | Privilege.POST_MESSAGES
    | Privilege.SIGNAL_EVENTS
)
# What a partition with children needs beside that: to create them, and to connect them to itself.
PARENT_PRIVILEGES: Final = (
    GUEST_PRIVILEGES | Privilege.CREATE_PARTITIONS | Privilege.CREATE_PORT | Privilege.CONNECT_PORT
)
