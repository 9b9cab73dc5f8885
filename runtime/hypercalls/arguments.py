"""What each hypercall takes: the one description, which the hypervisor checks every call against.

The comments give what a call returns. Limits and numbers are `runtime.abi`'s.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from runtime.abi import (
    APIC_IDS_PER_CALL_MAX,
    GPA_ACCESS_BYTES_MAX,
    HEARTBEAT_MS_MAX,
    MESSAGE_PAYLOAD_BYTES_MAX,
    PARTITION_SELF,
    REGISTERS_PER_CALL_MAX,
    SLOTS_PER_CALL_MAX,
    STRING_ELEMENTS_MAX,
    HypercallCode,
    Route,
)


class Kind(enum.Enum):
    """Types that an argument can have on the wire."""

    UINT = enum.auto()  # limit: the greatest value
    TEXT = enum.auto()  # limit: characters
    BYTES = enum.auto()  # limit: bytes
    UINTS = enum.auto()  # array of UINT; limit: elements; each is at most a u64
    PAIRS = enum.auto()  # array of two-element arrays of UINT; limit: elements
    MAP = enum.auto()  # any map with text keys; its own limit is checked by the call


_U16, _U32, _U64 = 2**16 - 1, 2**32 - 1, 2**64 - 1


@dataclass(frozen=True, slots=True)
class Argument:
    """One entry of a call's argument map. Of the wrong type or missing: INVALID_HYPERCALL_INPUT; beyond its
    limit: INVALID_PARAMETER."""

    name: str
    kind: Kind = Kind.UINT
    limit: int = _U64
    default: int | None = None  # only unsigned integers can be left out
    optional: bool = False  # may be left out, and is then None

    @property
    def required(self) -> bool:
        return self.default is None and not self.optional


def _uint(name: str, limit: int = _U64, default: int | None = None) -> Argument:
    return Argument(name, Kind.UINT, limit, default)


_TARGET: Final = _uint("partition", default=PARTITION_SELF)
_VP: Final = _uint("vp", _U32)
_PROPERTY: Final = _uint("property", _U32)

ARGUMENTS: Final[Mapping[HypercallCode, tuple[Argument, ...]]] = MappingProxyType(
    {
        # -> {"partition": id}
        HypercallCode.CREATE_PARTITION: (_uint("flags", default=0),),
        HypercallCode.INITIALIZE_PARTITION: (_TARGET,),
        # -> {"state": FINALIZING while its processes die, FINALIZED once they have}
        HypercallCode.FINALIZE_PARTITION: (_TARGET,),
        HypercallCode.DELETE_PARTITION: (_TARGET,),
        # -> {"value": u64}
        HypercallCode.GET_PARTITION_PROPERTY: (_TARGET, _PROPERTY),
        HypercallCode.SET_PARTITION_PROPERTY: (_TARGET, _PROPERTY, _uint("value")),
        # -> {"value": {"module", "name", "args", "files": how many not yet handed over}}
        HypercallCode.GET_PARTITION_PROPERTY_EX: (_TARGET, _PROPERTY),
        HypercallCode.SET_PARTITION_PROPERTY_EX: (_TARGET, _PROPERTY, Argument("value", Kind.MAP)),
        # -> {"partition": id}
        HypercallCode.GET_PARTITION_ID: (),
        # -> {"partition": id, 0 at the end}
        HypercallCode.GET_NEXT_CHILD_PARTITION: (_TARGET, _uint("previous", default=0)),
        HypercallCode.DEPOSIT_MEMORY: (_TARGET, _uint("pages")),
        HypercallCode.WITHDRAW_MEMORY: (_TARGET, _uint("pages")),
        # -> {"available": pages, "in_use": pages}
        HypercallCode.GET_MEMORY_BALANCE: (_TARGET,),
        # -> {"slots": [{"gpfn", "source_gpfn", "pages", "flags"}]}, and, when the target is the caller, one
        # descriptor a slot. Without a source: new pages, and flags must have ZEROED. With one: every slot
        # that the range touches is mapped whole, at its distance from `gpfn`.
        HypercallCode.MAP_GPA_PAGES: (
            _TARGET,
            _uint("gpfn"),
            _uint("pages"),
            _uint("flags", _U32),
            Argument("source_partition", optional=True),
            Argument("source_gpfn", optional=True),
        ),
        # Every slot in the range goes; cutting one in two is INVALID_PARAMETER, and a slot that another
        # partition still maps is OBJECT_IN_USE. An empty range is no error. -> {"slots": how many went}
        HypercallCode.UNMAP_GPA_PAGES: (_TARGET, _uint("gpfn"), _uint("pages")),
        # -> {}, and, when the target is the caller, descriptors [SIM page, SIEF page, line]
        HypercallCode.CREATE_VP: (_TARGET, _VP),
        HypercallCode.DELETE_VP: (_TARGET, _VP),
        HypercallCode.START_VIRTUAL_PROCESSOR: (_TARGET, _VP),
        # -> {"values": [u64]}
        HypercallCode.GET_VP_REGISTERS: (_TARGET, _VP, Argument("names", Kind.UINTS, REGISTERS_PER_CALL_MAX)),
        # type: 0, a fixed vector, is the only one
        HypercallCode.ASSERT_VIRTUAL_INTERRUPT: (
            _TARGET,
            _VP,
            _uint("vector", _U32),
            _uint("type", _U32, default=0),
        ),
        # page: an OverlayPage, of the caller itself -> {}, descriptor [page]
        HypercallCode.CLAIM_OVERLAY_PAGE: (_uint("page", _U32), _uint("vp", _U32, default=0)),
        # registers: [[name, value]]; all or none
        HypercallCode.SET_VP_REGISTERS: (
            _TARGET,
            _VP,
            Argument("registers", Kind.PAIRS, REGISTERS_PER_CALL_MAX),
        ),
        # `partition` owns the port; `connection_partition` alone may connect to it
        HypercallCode.CREATE_PORT: (
            _TARGET,
            _uint("port", _U32),
            _uint("connection_partition"),
            _uint("type", _U32),
            _uint("sint", _U32),
            _VP,
            _uint("base_flag", _U16, default=0),  # event ports
            _uint("flag_count", _U16, default=0),
        ),
        HypercallCode.DELETE_PORT: (_TARGET, _uint("port", _U32)),
        # `partition` owns the connection
        HypercallCode.CONNECT_PORT: (
            _TARGET,
            _uint("connection", _U32),
            _uint("port_partition"),
            _uint("port", _U32),
            _uint("route", _U32, default=Route.BROKER),
        ),
        # -> {"value": u64}
        HypercallCode.GET_PORT_PROPERTY: (_TARGET, _uint("port", _U32), _PROPERTY),
        HypercallCode.SET_PORT_PROPERTY: (_TARGET, _uint("port", _U32), _PROPERTY, _uint("value")),
        # -> {"sent", "merged", "suppressed", "delivered", "pending"}: see `hypervisor.interrupt_counts`
        HypercallCode.GET_PORT_COUNTS: (_TARGET, _uint("port", _U32)),
        HypercallCode.DISCONNECT_PORT: (_TARGET, _uint("connection", _U32)),
        # `vp`: of the caller, where this partition's intercept messages go from now on
        HypercallCode.INSTALL_INTERCEPT: (
            _TARGET,
            _uint("access", _U32),
            _uint("type", _U32),
            _uint("parameter"),
            _uint("vp", _U32, default=0),
        ),
        # answers the intercept that the VP waits for, in one call: `value` for A, past the instruction, go on
        HypercallCode.REGISTER_INTERCEPT_RESULT: (_TARGET, _VP, _uint("type", _U32), _uint("value")),
        HypercallCode.POST_MESSAGE: (
            _uint("connection", _U32),
            _uint("type", _U32),
            Argument("payload", Kind.BYTES, MESSAGE_PAYLOAD_BYTES_MAX),
        ),
        HypercallCode.SIGNAL_EVENT: (_uint("connection", _U32), _uint("flag", _U16, default=0)),
        # -> {"global_time", "local_run_time"}: 100 ns units of the host's clock, and of what this processor ran
        HypercallCode.GET_LOGICAL_PROCESSOR_RUN_TIME: (_uint("lp", _U32),),
        HypercallCode.NOTIFY_LONG_SPIN_WAIT: (_uint("vp", _U32, default=0), _uint("spins", default=0)),
        # processors: bit n for VP n of the caller
        HypercallCode.SEND_SYNTHETIC_CLUSTER_IPI: (_uint("vector", _U32), _uint("processors")),
        # -> {"vps": [index]}
        HypercallCode.GET_VP_INDEX_FROM_APIC_ID: (
            _TARGET,
            Argument("apic_ids", Kind.UINTS, APIC_IDS_PER_CALL_MAX),
        ),
        # -> {"capabilities": 0}
        HypercallCode.QUERY_EXTENDED_CAPABILITIES: (),
        # -> {"result": AccessGpaResult, "data": bytes}; within one page
        HypercallCode.READ_GPA: (_TARGET, _VP, _uint("gpa"), _uint("size")),
        # -> {"result": AccessGpaResult}
        HypercallCode.WRITE_GPA: (
            _TARGET,
            _VP,
            _uint("gpa"),
            Argument("data", Kind.BYTES, GPA_ACCESS_BYTES_MAX),
        ),
        # As CREATE_PORT and CONNECT_PORT: what newer forms say beside, a partition of ours has not.
        HypercallCode.CREATE_PORT_DEPRECATED: (
            _TARGET,
            _uint("port", _U32),
            _uint("connection_partition"),
            _uint("type", _U32),
            _uint("sint", _U32),
            _VP,
            _uint("base_flag", _U16, default=0),
            _uint("flag_count", _U16, default=0),
        ),
        HypercallCode.CONNECT_PORT_DEPRECATED: (
            _TARGET,
            _uint("connection", _U32),
            _uint("port_partition"),
            _uint("port", _U32),
        ),
        # type: StatsObject; `partition` and `index` (of a VP or logical processor) where it has them
        # -> {"interval_ms"}, descriptor [one page, read only]; again, if it is mapped already
        HypercallCode.MAP_STATS_PAGE: (_TARGET, _uint("type", _U32), _uint("index", _U32, default=0)),
        HypercallCode.UNMAP_STATS_PAGE: (_TARGET, _uint("type", _U32), _uint("index", _U32, default=0)),
        # pages: [[gpfn, source_gpfn]], each for the whole slot that source_gpfn lies in; all or none.
        # -> {"slots"}, as MAP_GPA_PAGES
        HypercallCode.MAP_SPARSE_GPA_PAGES: (
            _TARGET,
            _uint("flags", _U32),
            _uint("source_partition"),
            Argument("pages", Kind.PAIRS, SLOTS_PER_CALL_MAX),
        ),
        # `partition` owns the pages; `device` is the partition that drives the device
        HypercallCode.CREATE_DEVICE_DOMAIN: (_TARGET, _uint("domain", _U32)),
        HypercallCode.ATTACH_DEVICE_DOMAIN: (_TARGET, _uint("domain", _U32), _uint("device")),
        # -> {"slots": how many the range touched}
        HypercallCode.MAP_DEVICE_GPA_PAGES: (
            _TARGET,
            _uint("domain", _U32),
            _uint("gpfn"),
            _uint("pages"),
            _uint("flags", _U32),
        ),
        # -> {"slots": how many went}
        HypercallCode.UNMAP_DEVICE_GPA_PAGES: (_TARGET, _uint("domain", _U32), _uint("gpfn"), _uint("pages")),
        HypercallCode.DETACH_DEVICE_DOMAIN: (_TARGET, _uint("device")),
        HypercallCode.DELETE_DEVICE_DOMAIN: (_TARGET, _uint("domain", _U32)),
        # -> {"newly_signaled": 0 or 1}
        HypercallCode.SIGNAL_EVENT_DIRECT: (_TARGET, _VP, _uint("sint", _U32), _uint("flag", _U16)),
        HypercallCode.POST_MESSAGE_DIRECT: (
            _TARGET,
            _VP,
            _uint("sint", _U32),
            _uint("type", _U32),
            Argument("payload", Kind.BYTES, MESSAGE_PAYLOAD_BYTES_MAX),
        ),
        # -> {"partition", "name", "program", "args", "vps": [index], "files": how many},
        # descriptors: SIM page, SIEF page and line of each VP in turn, then the files, which are handed over
        # once.
        HypercallCode.GET_BIRTH: (),
        # exactly one of the two -> {"route": Route}, descriptor [eventfd]. A port's owner waits on it, a
        # connection's owner writes 8 bytes to it. `flag` counts from the port's base flag.
        HypercallCode.CLAIM_DOORBELL: (
            Argument("port", Kind.UINT, _U32, optional=True),
            Argument("connection", Kind.UINT, _U32, optional=True),
            _uint("flag", _U16, default=0),
        ),
        # exactly one of the two -> {}, descriptor [socket]: for messages between a connection's owner and its event
        # port's, who is signalled and claims the other end. NO_DATA: no end waits. Claimed again, the waiting end is
        # closed.
        HypercallCode.CLAIM_ENDPOINT: (
            Argument("port", Kind.UINT, _U32, optional=True),
            Argument("connection", Kind.UINT, _U32, optional=True),
        ),
        # as START_VIRTUAL_PROCESSOR for VP 0, but its program runs inside the hypervisor's own process;
        # OPERATION_DENIED where the machine was not configured so
        HypercallCode.LOAD_DRIVER: (_TARGET,),
        # -> {}, descriptor [eventfd], raised when a child's process starts or ends or its state changes
        HypercallCode.WATCH_CHILDREN: (),
        # the caller's own slots that the range touches, as MAP_GPA_PAGES replies
        HypercallCode.CLAIM_GPA_PAGES: (_uint("gpfn"), _uint("pages")),
        # a promise to call again within so long; whoever breaks it is taken for hung, and killed. 0: no promise
        HypercallCode.HEARTBEAT: (_uint("within_ms", HEARTBEAT_MS_MAX),),
        # IN, OUT; with a count REP INS, REP OUTS between the port and the caller's memory at `gpa`.
        # -> {"value": what was read, "left": elements that were not moved; those read as `value`}. The reply
        # comes when the parent has answered.
        HypercallCode.ACCESS_PORT: (
            _VP,
            _uint("port", _U16),
            _uint("size", _U16),
            _uint("write", 1, default=0),
            _uint("value", _U32, default=0),
            _uint("count", STRING_ELEMENTS_MAX, default=0),
            _uint("gpa", default=0),
        ),
        # a load or store where the caller has no memory -> as ACCESS_PORT
        HypercallCode.ACCESS_MEMORY: (
            _VP,
            _uint("gpa"),
            _uint("size", _U16),
            _uint("write", 1, default=0),
            _uint("value", default=0),
        ),
    }
)

assert set(ARGUMENTS) == set(HypercallCode)
