"""The hypervisor's ABI: call codes, statuses, privileges, properties, limits and costs.

Numbers and names are the TLFS's. Calls from 0x8F00 and properties from 0x8F000000 are our own: a partition
here is an OS process, so what a virtual machine reaches through its MMU, it reaches as file descriptors.

A request is the msgpack array `[call code, arguments]`, a reply `[status, values]`; file descriptors ride
along. What each call takes is described in `runtime.hypercalls.arguments`.

Source: TLFS "Hypercall Interface" and the page of each call; Linux include/hyperv/hvgdk_mini.h.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from runtime.privileges import ALL_PRIVILEGES as ALL_PRIVILEGES
from runtime.privileges import DEFAULT_PRIVILEGES as DEFAULT_PRIVILEGES
from runtime.privileges import GUEST_PRIVILEGES as GUEST_PRIVILEGES
from runtime.privileges import PARENT_PRIVILEGES as PARENT_PRIVILEGES
from runtime.privileges import Privilege as Privilege

PAGE_BYTES: Final = 4096
EXIT_HYPERVISOR_GONE: Final = 3  # a root's exit code when nobody answers its calls any more
EXIT_RETIRED: Final = 75  # a root's exit code when it makes room for its successor, as asked

PARTITION_SELF: Final = 2**64 - 1
ROOT_PARTITION: Final = 1  # the first and only one that nobody created by a call
VP_ANY: Final = 0xFFFF_FFFF
VP_SELF: Final = 0xFFFF_FFFE

# -- limits ------------------------------------------------------------------------------------------------
MESSAGE_PAYLOAD_BYTES_MAX: Final = 240
MESSAGE_BUFFERS_PER_PORT: Final = 16
SINTS_PER_VP: Final = 16
VECTORS: Final = 256  # of a VP's interrupts; those below VECTOR_MIN are exceptions
VECTOR_MIN: Final = 16
TIMERS_PER_VP: Final = 4
TIMER_PERIOD_MIN_100NS: Final = 1_000  # a shorter period is taken for this one
FLAGS_PER_SINT: Final = 2048
ID_24_BIT_MAX: Final = 0xFF_FFFF  # port and connection ids
VPS_PER_PARTITION_MAX: Final = 64
PARTITIONS_MAX: Final = 1024
PARTITION_DEPTH_MAX: Final = 8  # of the tree below the root
GPFN_MAX: Final = 2**40 - 1  # 52 address bits
SLOT_PAGES_MAX: Final = 2**22  # 16 GiB
SLOTS_PER_PARTITION_MAX: Final = 512  # entries in one partition's GPA table, its own and mapped ones
SLOTS_PER_CALL_MAX: Final = 16  # a call that would map or hand over more is refused
ADDRESS_BITS_MIN: Final = 32  # of a partition's guest physical addresses
ADDRESS_BITS_MAX: Final = 52
GPA_ACCESS_BYTES_MAX: Final = 16  # of one ReadGpa or WriteGpa
STATS_PAGES_PER_PARTITION_MAX: Final = 64  # that one partition has mapped
APIC_IDS_PER_CALL_MAX: Final = 64
HEARTBEAT_MS_MAX: Final = 3_600_000
REGISTERS_PER_CALL_MAX: Final = 64
INTERCEPTS_PER_PARTITION_MAX: Final = 64
STRING_ELEMENTS_MAX: Final = 65_536  # of one repeated port access
TRACE_FILE: Final = ".trace"  # of a traced program's birth: no config can give a file that name
RESTORED_FILE: Final = "saved:state"  # what its program said when it was saved
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
INTERCEPT_PAGES: Final = 1  # the table of what is intercepted of a partition, while anything is
STATS_PAGE_PAGES: Final = 1  # the mapper pays
DEVICE_DOMAIN_PAGES: Final = 1  # and MAPPING_PAGES for each slot in it
MAPPING_PAGES: Final = 1  # an entry for another partition's slot; a slot of one's own costs its own pages


class HypercallCode(enum.IntEnum):
    """Call codes that this hypervisor answers."""

    GET_LOGICAL_PROCESSOR_RUN_TIME = 0x04
    NOTIFY_LONG_SPIN_WAIT = 0x08
    SEND_SYNTHETIC_CLUSTER_IPI = 0x0B
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
    INSTALL_INTERCEPT = 0x4D
    CREATE_VP = 0x4E
    DELETE_VP = 0x4F
    GET_VP_REGISTERS = 0x50
    SET_VP_REGISTERS = 0x51
    READ_GPA = 0x53
    WRITE_GPA = 0x54
    CREATE_PORT_DEPRECATED = 0x57
    DELETE_PORT = 0x58
    CONNECT_PORT_DEPRECATED = 0x59
    GET_PORT_PROPERTY = 0x5A
    DISCONNECT_PORT = 0x5B
    POST_MESSAGE = 0x5C
    SIGNAL_EVENT = 0x5D
    MAP_STATS_PAGE = 0x6C
    UNMAP_STATS_PAGE = 0x6D
    MAP_SPARSE_GPA_PAGES = 0x6E
    SET_PORT_PROPERTY = 0x70
    REGISTER_INTERCEPT_RESULT = 0x91
    ASSERT_VIRTUAL_INTERRUPT = 0x94
    CREATE_PORT = 0x95
    CONNECT_PORT = 0x96
    START_VIRTUAL_PROCESSOR = 0x99
    GET_VP_INDEX_FROM_APIC_ID = 0x9A
    CREATE_DEVICE_DOMAIN = 0xB1
    ATTACH_DEVICE_DOMAIN = 0xB2
    MAP_DEVICE_GPA_PAGES = 0xB3
    UNMAP_DEVICE_GPA_PAGES = 0xB4
    SIGNAL_EVENT_DIRECT = 0xC0
    POST_MESSAGE_DIRECT = 0xC1
    DETACH_DEVICE_DOMAIN = 0xC4
    DELETE_DEVICE_DOMAIN = 0xC5
    GET_PARTITION_PROPERTY_EX = 0x101
    SET_PARTITION_PROPERTY_EX = 0x10A
    QUERY_EXTENDED_CAPABILITIES = 0x8001
    # ours
    GET_BIRTH = 0x8F00
    CLAIM_DOORBELL = 0x8F01
    WATCH_CHILDREN = 0x8F02
    CLAIM_GPA_PAGES = 0x8F03
    HEARTBEAT = 0x8F04
    ACCESS_PORT = 0x8F05
    ACCESS_MEMORY = 0x8F06
    CLAIM_OVERLAY_PAGE = 0x8F07
    GET_PORT_COUNTS = 0x8F08
    CLAIM_ENDPOINT = 0x8F09
    LOAD_DRIVER = 0x8F0A


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


WHOLE_PROCESSOR: Final = 0x10000  # CPU_RESERVE and CPU_CAP are fractions of one processor, for each VP
CPU_WEIGHT_MAX: Final = 10_000
CPU_WEIGHT_DEFAULT: Final = 100


class PartitionProperty(enum.IntEnum):
    """Property codes. The last group is ours."""

    PRIVILEGE_FLAGS = 0x10000
    SYNTHETIC_PROCESSOR_FEATURES = 0x10001  # another view of some privileges; early
    SUSPEND = 0x20000
    CPU_RESERVE = 0x20001
    CPU_CAP = 0x20002
    CPU_WEIGHT = 0x20003
    CPU_GROUP_ID = 0x20004  # 0: there are no other groups
    TIME_FREEZE = 0x30003
    REFERENCE_TIME = 0x30005  # set only while it stands still
    VIRTUAL_TLB_PAGES = 0x50000  # 0: the processor has the only TLB
    PROCESSOR_VENDOR = 0x60000  # 0 AMD, 1 Intel, 2 Hygon, 2**16 another; read only
    COMPATIBILITY_VERSION = 0x60005  # 0: this one
    PHYSICAL_ADDRESS_WIDTH = 0x60006  # in bits; early
    GUEST_OS_ID = 0x70000  # as the guest wrote it into its register; read only
    VMM_CAPABILITIES = 0x90007  # Ex calls only; read only
    PROGRAM = 0x8F00_0000  # Ex calls only: {"module", "name", "args"}; the program's files ride along
    STATE = 0x8F00_0001  # a PartitionState; read only
    EXIT_STATUS = 0x8F00_0002  # see `ExitStatus`; read only; NO_DATA before the process has ended
    OUTLIVES_PROCESS = 0x8F00_0003  # 1: stays ACTIVE when its process ends, and its parent may start another
    END_PROCESS = 0x8F00_0004  # 1: its process is killed, if it has one; reads as 0
    # Read, by the Ex call: ns that each child with a cap has had so far, by id. Set, by the plain call: ns that the
    # parent has worked because of this child, which pays for them if it has a cap.
    CAPPED_TIME = 0x8F00_0005


class PortProperty(enum.IntEnum):
    POST_COUNT = 0  # messages that were ever posted to it
    TARGET_VP = 1  # where its interrupts go; can be set


class AccessGpaResult(enum.IntEnum):
    """How an access to guest memory ended. Source: TLFS 2.0, HV_ACCESS_GPA_RESULT_CODE."""

    SUCCESS = 0
    UNMAPPED = 1
    READ_INTERCEPT = 2  # there is no right to read
    WRITE_INTERCEPT = 3


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
    """Registers of a VP that this hypervisor keeps. There are 16 SINTs and 4 timers: `sint_register`,
    `timer_config_register`, `timer_count_register`. The last group is ours."""

    EXPLICIT_SUSPEND = 0x0  # read only: 1 until the VP is started
    INTERCEPT_SUSPEND = 0x1  # 1 while the VP waits for its parent to answer an intercept; 0 lets it go on
    # Of a process these are what an intercept shows and its answer sets; nothing else runs on them.
    RAX = 0x2_0000
    RCX = 0x2_0001
    RDX = 0x2_0002
    RSI = 0x2_0006
    RDI = 0x2_0007
    R15 = 0x2_000F
    RIP = 0x2_0010  # counts the bytes of the instructions that its accesses stand for
    RFLAGS = 0x2_0011
    CRASH_P0 = 0x210  # the guest's own words about its crash, up to CRASH_P4
    CRASH_CTL = 0x215
    TSC_FREQUENCY = 0x240  # Hz; 0: there is no TSC to be relied on
    APIC_FREQUENCY = 0x241  # Hz, of the clock behind the timers
    VP_RUNTIME = 0x9_0000  # 100 ns of processor time: see VP_THREAD
    GUEST_OS_ID = 0x9_0002
    VP_INDEX = 0x9_0003
    TIME_REF_COUNT = 0x9_0004  # 100 ns units since the partition was created
    REFERENCE_TSC = 0x9_0017
    SINT0 = 0xA_0000
    SCONTROL = 0xA_0010
    SVERSION = 0xA_0011
    SIEFP = 0xA_0012
    SIMP = 0xA_0013
    EOM = 0xA_0014
    SIRBP = 0xA_0015
    STIMER0_CONFIG = 0xB_0000
    STIMER0_COUNT = 0xB_0001
    VP_THREAD = 0x8F00_0000  # thread id of who runs this VP; 0: not told, VP_RUNTIME is the whole process's


class InterceptType(enum.IntEnum):
    """What InstallIntercept's parameter is."""

    IO_PORT = 0x0  # bits 15:0 the port
    MMIO = 0x5  # ours: bits 39:0 the first page number, 63:40 how many more
    IO_PORT_RANGE = 0x11  # bits 15:0 the first port, 31:16 the last


class InterceptMask(enum.IntFlag):
    """InstallIntercept's access mask; 0 removes."""

    READ = 0x1
    WRITE = 0x2


SINT_MASKED: Final = 1 << 16
SINT_AUTO_EOI: Final = 1 << 17
SINT_POLLING: Final = 1 << 18

TIMER_ENABLE: Final = 1 << 0
TIMER_PERIODIC: Final = 1 << 1
TIMER_LAZY: Final = 1 << 2
TIMER_AUTO_ENABLE: Final = 1 << 3
TIMER_VECTOR_SHIFT: Final = 4
TIMER_DIRECT: Final = 1 << 12
TIMER_SINT_SHIFT: Final = 16
TIMER_EXPIRED_MESSAGE: Final = 0x8000_0010

CRASH_REGISTERS: Final = 5
CRASH_MESSAGE: Final = 1 << 62  # P3 and P4 are a message's GPA and length
CRASH_NOTIFY: Final = 1 << 63


class OverlayPage(enum.IntEnum):
    """Pages that the hypervisor lays over a guest's memory. A process is handed their descriptors."""

    REFERENCE_TSC = 0  # of the partition, read only
    INTERRUPTS = 1  # of a VP: bit n says that vector n was requested


def sint_register(sint: int) -> int:
    assert 0 <= sint < SINTS_PER_VP
    return RegisterName.SINT0 + sint


def timer_config_register(timer: int) -> int:
    assert 0 <= timer < TIMERS_PER_VP
    return RegisterName.STIMER0_CONFIG + 2 * timer


def timer_count_register(timer: int) -> int:
    assert 0 <= timer < TIMERS_PER_VP
    return RegisterName.STIMER0_COUNT + 2 * timer


class HypercallError(Exception):
    """The hypervisor refused a call and changed nothing. Branch on `status`, the wire's value."""

    def __init__(self, call: HypercallCode, status: HvStatus) -> None:
        super().__init__(call, status)
        self.call, self.status = call, status

    def __str__(self) -> str:
        return f"{self.call.name} ({self.call:#x}): {self.status.name} ({self.status:#x})"


class HypervisorGone(Exception):
    """The hypervisor's end of the socket is closed: the machine is going down, or this partition is."""
