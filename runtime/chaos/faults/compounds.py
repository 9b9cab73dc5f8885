"""Several faults under one name, as data: which, of whom, with what between them. The desk takes them apart.

A compound has struck when each of its parts has, and healing it heals them all. Its knobs are nobody's: a part has
its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from runtime.chaos.faults.hypervisor_kinds import STORM_RATE_MAX
from runtime.chaos.faults.kinds import Carrier, FaultKind, Group, Need, Parameter, Value
from runtime.chaos.faults.knobs import Knobs
from runtime.chaos.faults.orders import Order
from runtime.reserved_names import HYPERVISOR, ROOT

DELAY_MS_MAX: Final = 60_000
TARGET: Final = ""  # a part of whom the compound is of


@dataclass(frozen=True, slots=True)
class Given:
    """What the compound's parameter of that name is."""

    name: str


@dataclass(frozen=True, slots=True)
class Part:
    kind: str
    target: str = TARGET
    parameters: Mapping[str, Value | Given] = field(default_factory=dict)
    knobs: Knobs = field(default_factory=Knobs)
    after_ms: int | Given = 0  # the compound's injection


@dataclass(frozen=True, slots=True)
class Compound:
    kind: FaultKind
    parts: tuple[Part, ...]

    def orders(self, order: Order) -> list[tuple[int, Order]]:
        """(when, in ms; what), the earliest first. Their numbers are 0; each has a seed of its own."""

        def settled(value: Value | Given) -> Value:
            return order.parameters[value.name] if isinstance(value, Given) else value

        made = [
            (
                int(settled(part.after_ms)),
                replace(
                    order,
                    number=0,
                    kind=part.kind,
                    target=part.target or order.target,
                    parameters={name: settled(value) for name, value in part.parameters.items()},
                    knobs=part.knobs,
                    seed=order.seed ^ index,
                ),
            )
            for index, part in enumerate(self.parts, 1)
        ]
        return sorted(made, key=lambda one: one[0])


def _compound(
    name: str,
    summary: str,
    *parts: Part,
    parameters: tuple[Parameter, ...] = (),
    needs: tuple[Need, ...] = (),
) -> Compound:
    seam = ", then ".join(part.kind for part in parts)
    return Compound(
        FaultKind(name, Group.COMPOUND, summary, seam, Carrier.COMPOUND, parameters, needs), parts
    )


_SUCCESSOR: Final = (Need.SUCCESSOR,)
_AFTER: Final = Parameter("after_ms", 100, "until the root is killed", "ms", 0, DELAY_MS_MAX)
_KILL: Final = Part("kill", ROOT, after_ms=Given("after_ms"))
_ONCE: Final = Knobs(times=1)

COMPOUNDS: Final = (
    _compound(
        "root-dies-while-disk-is-slow",
        "the root is killed while requests are stuck in a slow disk, which is the target",
        Part("storage-slow", parameters={"delay_ms": Given("delay_ms")}),
        _KILL,
        parameters=(Parameter("delay_ms", 30, "of each request", "ms", 1, DELAY_MS_MAX), _AFTER),
        needs=_SUCCESSOR,
    ),
    _compound(
        "double-kill",
        "the target, root or a driver partition, is killed, and so is its successor while it takes over",
        Part("kill-in-recovery", parameters={"delay_ms": Given("delay_ms")}, knobs=_ONCE),
        Part("kill"),
        parameters=(
            Parameter("delay_ms", 2, "from the successor's start to its end", "ms", 0, DELAY_MS_MAX),
        ),
        needs=_SUCCESSOR,
    ),
    _compound(
        "storm-under-takeover",
        "the root is killed while interrupts rain on the target, a guest",
        Part("interrupt-storm", parameters={"rate": Given("rate")}),
        _KILL,
        parameters=(Parameter("rate", 500, "of each line", "rings/s", 1, STORM_RATE_MAX), _AFTER),
        needs=_SUCCESSOR,
    ),
    _compound(
        "power-cut-after-lies",
        "a disk, the target, acknowledges flushes without doing them, and then its power goes",
        Part("storage-flush-lie"),
        Part("storage-power-cut", knobs=_ONCE, after_ms=Given("after_ms")),
        parameters=(Parameter("after_ms", 100, "until the power goes", "ms", 0, DELAY_MS_MAX),),
        needs=_SUCCESSOR,
    ),
    _compound(
        "root-dies-without-a-zygote",
        "what all processes are forked from is killed, and then the root, the target",
        Part("kill-zygote", HYPERVISOR),
        Part("kill", ROOT),
        needs=_SUCCESSOR,
    ),
    _compound(
        "silence-across-reconnect",
        "the root is killed, and the first interrupt to the target, a guest, after that is lost",
        Part("interrupt-lost-across-reconnect"),
        _KILL,
        parameters=(_AFTER,),
        needs=_SUCCESSOR,
    ),
    _compound(
        "all-late",
        "interrupts and calls of the target are late, and its processors busy: a host that has too much to do",
        Part("interrupt-delayed", parameters={"delay_ms": Given("delay_ms")}),
        Part("hypercall-slow", parameters={"call": "any", "delay_ms": Given("delay_ms")}),
        Part("busy-neighbours", parameters={"processes": Given("processes")}),
        parameters=(
            Parameter("delay_ms", 5, "", "ms", 1, DELAY_MS_MAX),
            Parameter("processes", 2, "that burn its processors", "", 1, 64),
        ),
    ),
)
COMPOUND_KINDS: Final = tuple(compound.kind for compound in COMPOUNDS)
BY_NAME: Final[Mapping[str, Compound]] = MappingProxyType(
    {compound.kind.name: compound for compound in COMPOUNDS}
)
