"""The hypervisor's ABI: call codes, statuses, privileges, properties, limits and costs.

Numbers and names are the TLFS's. Calls from 0x8F00 and properties from 0x8F000000 are our own: a partition
here is an OS process, so what a virtual machine reaches through its MMU, it reaches as file descriptors.

A request is the msgpack array `[call code, arguments]`, a reply `[status, values]`; file descriptors ride
along. What each call takes is described in `runtime.call_arguments`.

Source: TLFS "Hypercall Interface" and the page of each call; Linux include/hyperv/hvgdk_mini.h.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

PAGE_BYTES: Final = 4096
EXIT_RETIRED: Final = 75  # a root's exit code when it makes room for its successor, as asked

PARTITION_SELF: Final = 2**64 - 1
PARTITION_INVALID: Final = 0
ROOT_PARTITION: Final = 1  # the first and only one that nobody created by a call
VP_ANY: Final = 0xFFFF_FFFF
VP_SELF: Final = 0xFFFF_FFFE

# -- limits ------------------------------------------------------------------------------------------------
MESSAGE_PAYLOAD_BYTES_MAX: Final = 240
MESSAGE_BUFFERS_PER_PORT: Final = 16
SINTS_PER_VP: Final = 16
FLAGS_PER_SINT: Final = 2048
ID_24_BIT_MAX: Final = 0xFF_FFFF  # port and connection ids
VPS_PER_PARTITION_MAX: Final = 64
PARTITIONS_MAX: Final = 1024
PARTITION_DEPTH_MAX: Final = 8  # of the tree below the root
GPFN_MAX: Final = 2**40 - 1  # 52 address bits
SLOT_PAGES_MAX: Final = 2**22  # 16 GiB
SLOTS_PER_PARTITION_MAX: Final = 512  # entries in one partition's GPA table, its own and mapped ones
SLOTS_PER_CALL_MAX: Final = 16  # a call that would map or hand over more is refused
HEARTBEAT_MS_MAX: Final = 3_600_000
REGISTERS_PER_CALL_MAX: Final = 64
FILES_PER_PROGRAM_MAX: Final = 16
NAME_CHARACTERS_MAX: Final = 64
MODULE_CHARACTERS_MAX: Final = 256
PROGRAM_BYTES_MAX: Final = 16 * 1024  # of the program's arguments, encoded

# -- what an object costs, in deposited pages, and whose pool pays ------------------------------------------
CREATE_PARTITION_PAGES: Final = 8  # the creator's pool; covers the program's arguments
INITIALIZE_PARTITION_PAGES: Final = 4  # the partition's own pool, as all that follow
VP_PAGES: Final = 4  # SIM page, SIEF page, registers and queues
PORT_PAGES: Final = 2  # one page of message buffers, one for the rest
CONNECTION_PAGES: Final = 1
MAPPING_PAGES: Final = 1  # an entry for another partition's slot; a slot of one's own costs its own pages


class HypercallCode(enum.IntEnum):
    """Call codes that this hypervisor answers."""

    CREATE_PARTITION = 0x40
    INITIALIZE_PARTITION = 0x41
    FINALIZE_PARTITION = 0x42
    DELETE_PARTITION = 0x43
    GET_PARTITION_PROPERTY = 0x44
    SET_PARTITION_PROPERTY = 0x45
    GET_PARTITION_ID = 0x46
    GET_NEXT_CHILD_PARTITION = 0x47
    DEPOSIT_MEMORY = 0x48
    WITHDRAW_MEMORY = 0x49
    GET_MEMORY_BALANCE = 0x4A
    MAP_GPA_PAGES = 0x4B
    UNMAP_GPA_PAGES = 0x4C
    CREATE_VP = 0x4E
    DELETE_VP = 0x4F
    GET_VP_REGISTERS = 0x50
    SET_VP_REGISTERS = 0x51
    DELETE_PORT = 0x58
    GET_PORT_PROPERTY = 0x5A
    DISCONNECT_PORT = 0x5B
    POST_MESSAGE = 0x5C
    SIGNAL_EVENT = 0x5D
    CREATE_PORT = 0x95
    CONNECT_PORT = 0x96
    START_VIRTUAL_PROCESSOR = 0x99
    GET_PARTITION_PROPERTY_EX = 0x101
    SET_PARTITION_PROPERTY_EX = 0x10A
    # ours
    GET_BIRTH = 0x8F00
    CLAIM_DOORBELL = 0x8F01
    WATCH_CHILDREN = 0x8F02
    CLAIM_GPA_PAGES = 0x8F03
    HEARTBEAT = 0x8F04


class HvStatus(enum.IntEnum):
    """HV_STATUS_*: the wire's own result of a call."""

    SUCCESS = 0x0
    INVALID_HYPERCALL_CODE = 0x2
    INVALID_HYPERCALL_INPUT = 0x3
    INVALID_ALIGNMENT = 0x4
    INVALID_PARAMETER = 0x5
    ACCESS_DENIED = 0x6
    INVALID_PARTITION_STATE = 0x7
    OPERATION_DENIED = 0x8
    UNKNOWN_PROPERTY = 0x9
    PROPERTY_VALUE_OUT_OF_RANGE = 0xA
    INSUFFICIENT_MEMORY = 0xB
    PARTITION_TOO_DEEP = 0xC
    INVALID_PARTITION_ID = 0xD
    INVALID_VP_INDEX = 0xE
    NOT_FOUND = 0x10
    INVALID_PORT_ID = 0x11
    INVALID_CONNECTION_ID = 0x12
    INSUFFICIENT_BUFFERS = 0x13
    NOT_ACKNOWLEDGED = 0x14
    INVALID_VP_STATE = 0x15
    ACKNOWLEDGED = 0x16
    INVALID_SAVE_RESTORE_STATE = 0x17
    INVALID_SYNIC_STATE = 0x18
    OBJECT_IN_USE = 0x19
    INVALID_PROXIMITY_DOMAIN_INFO = 0x1A
    NO_DATA = 0x1B
    INACTIVE = 0x1C
    NO_RESOURCES = 0x1D
    FEATURE_UNAVAILABLE = 0x1E
    PARTIAL_PACKET = 0x1F
    PROCESSOR_FEATURE_NOT_SUPPORTED = 0x20
    CACHE_LINE_FLUSH_SIZE_INCOMPATIBLE = 0x30
    INSUFFICIENT_BUFFER = 0x33
    INCOMPATIBLE_PROCESSOR = 0x37
    CPUID_FEATURE_VALIDATION_ERROR = 0x3C
    CPUID_XSAVE_FEATURE_VALIDATION_ERROR = 0x3D
    INVALID_LP_INDEX = 0x41
    INVALID_REGISTER_VALUE = 0x50
    INVALID_VTL_STATE = 0x51
    INVALID_DEVICE_ID = 0x57
    INVALID_DEVICE_STATE = 0x58
    INVALID_CPU_GROUP_ID = 0x6F
    INVALID_CPU_GROUP_STATE = 0x70
    OPERATION_FAILED = 0x71
    NOT_ALLOWED_WITH_NESTED_VIRT_ACTIVE = 0x72
    INSUFFICIENT_ROOT_MEMORY = 0x73
    TIMEOUT = 0x78
    CALL_PENDING = 0x79
    VTL_ALREADY_ENABLED = 0x86
    UNKNOWN_REGISTER_NAME = 0x87


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


class PartitionProperty(enum.IntEnum):
    """Property codes. The last group is ours."""

    PRIVILEGE_FLAGS = 0x10000
    CPU_RESERVE = 0x20001
    CPU_CAP = 0x20002
    CPU_WEIGHT = 0x20003
    PROGRAM = 0x8F00_0000  # Ex calls only: {"module", "name", "args"}; the program's files ride along
    STATE = 0x8F00_0001  # a PartitionState; read only
    EXIT_STATUS = 0x8F00_0002  # see `ExitStatus`; read only; NO_DATA before the process has ended


class PortProperty(enum.IntEnum):
    POST_COUNT = 0  # messages that were ever posted to it


class PartitionState(enum.IntEnum):
    """TLFS 2.0, partition states. A partition whose process died is FINALIZED: only its record is left."""

    UNINITIALIZED = 0
    ACTIVE = 1
    FINALIZING = 2
    FINALIZED = 3


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a partition's process ended. On the wire one integer: the exit code, or 256 + the signal."""

    code: int | None  # 0..255; None: a signal ended it
    signal: int | None

    @classmethod
    def from_wire(cls, value: int) -> ExitStatus:
        return cls(value, None) if value < 256 else cls(None, value - 256)

    def to_wire(self) -> int:
        return 256 + self.signal if self.signal is not None else (self.code or 0) & 0xFF

    def __str__(self) -> str:
        return f"signal {self.signal}" if self.signal is not None else f"exit code {self.code}"


class MapFlags(enum.IntFlag):
    """Flags of MapGpaPages that have a meaning here; any other is refused."""

    READ = 0x1
    WRITE = 0x2
    ZEROED = 0x2_0000  # new pages from the pool


class PortType(enum.IntEnum):
    MESSAGE = 1
    EVENT = 2


class Route(enum.IntEnum):
    """How an event gets from a connection to its port's doorbell."""

    BROKER = 0  # the sender kicks the hypervisor, which sets the flag and rings
    DIRECT = 1  # the sender holds the target's doorbell; no flag is set


class RegisterName(enum.IntEnum):
    """Registers of a VP that this hypervisor keeps. SINTn is SINT0 + n: `sint_register`."""

    EXPLICIT_SUSPEND = 0x0  # read only: 1 until the VP is started
    VP_INDEX = 0x9_0003
    TIME_REF_COUNT = 0x9_0004  # 100 ns units since the partition was created
    SINT0 = 0xA_0000
    SCONTROL = 0xA_0010
    SVERSION = 0xA_0011
    SIEFP = 0xA_0012
    SIMP = 0xA_0013
    EOM = 0xA_0014


SINT_MASKED: Final = 1 << 16
SINT_AUTO_EOI: Final = 1 << 17
SINT_POLLING: Final = 1 << 18


def sint_register(sint: int) -> int:
    assert 0 <= sint < SINTS_PER_VP
    return RegisterName.SINT0 + sint


class HypercallError(Exception):
    """The hypervisor refused a call and changed nothing. Branch on `status`, the wire's value."""

    def __init__(self, call: HypercallCode, status: HvStatus) -> None:
        super().__init__(call, status)
        self.call, self.status = call, status

    def __str__(self) -> str:
        return f"{self.call.name} ({self.call:#x}): {self.status.name} ({self.status:#x})"


class HypervisorGone(Exception):
    """The hypervisor's end of the socket is closed: the machine is going down, or this partition is."""
