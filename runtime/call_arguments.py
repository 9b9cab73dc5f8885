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
    HEARTBEAT_MS_MAX,
    MESSAGE_PAYLOAD_BYTES_MAX,
    PARTITION_SELF,
    REGISTERS_PER_CALL_MAX,
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
        HypercallCode.DISCONNECT_PORT: (_TARGET, _uint("connection", _U32)),
        HypercallCode.POST_MESSAGE: (
            _uint("connection", _U32),
            _uint("type", _U32),
            Argument("payload", Kind.BYTES, MESSAGE_PAYLOAD_BYTES_MAX),
        ),
        HypercallCode.SIGNAL_EVENT: (_uint("connection", _U32), _uint("flag", _U16, default=0)),
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
        # -> {}, descriptor [eventfd], raised when a child's process starts or ends or its state changes
        HypercallCode.WATCH_CHILDREN: (),
        # the caller's own slots that the range touches, as MAP_GPA_PAGES replies
        HypercallCode.CLAIM_GPA_PAGES: (_uint("gpfn"), _uint("pages")),
        # a promise to call again within so long; whoever breaks it is taken for hung, and killed. 0: no promise
        HypercallCode.HEARTBEAT: (_uint("within_ms", HEARTBEAT_MS_MAX),),
    }
)

assert set(ARGUMENTS) == set(HypercallCode)
