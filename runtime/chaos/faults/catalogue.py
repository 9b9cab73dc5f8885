"""Every kind of fault there is, by its name. The one declaration: commands, checks and docs are made from it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from runtime.chaos.faults.compounds import COMPOUND_KINDS
from runtime.chaos.faults.hypervisor_kinds import HYPERVISOR_KINDS
from runtime.chaos.faults.kinds import FaultKind
from runtime.chaos.faults.process_kinds import PROCESS_KINDS
from runtime.chaos.faults.ring_kinds import RING_KINDS
from runtime.chaos.faults.stack_kinds import STACK_KINDS
from runtime.chaos.faults.step_kinds import STEP_KINDS
from runtime.chaos.faults.storage_kinds import STORAGE_KINDS

_ALL: Final[tuple[FaultKind, ...]] = (
    *PROCESS_KINDS,
    *STEP_KINDS,
    *RING_KINDS,
    *HYPERVISOR_KINDS,
    *STACK_KINDS,
    *STORAGE_KINDS,
    *COMPOUND_KINDS,
)
FAULTS: Final[Mapping[str, FaultKind]] = MappingProxyType({kind.name: kind for kind in _ALL})

assert len(FAULTS) == len(_ALL), "two kinds have one name"
