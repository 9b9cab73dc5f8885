"""Which emulated devices a parent's children will have, as its config says, and where the record of each is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from partitions.emulated.plan import EmulatedPlan
from partitions.emulated.records import RECORD_BYTES


@dataclass(frozen=True, slots=True)
class Expected:
    """What a child of a name will have."""

    plans: tuple[EmulatedPlan, ...]
    memory_bytes: int
    records: list[memoryview]
    is_direct: bool


def count_of(tables: Iterable[Mapping[str, Any]]) -> int:
    """Of all devices of these [[partition]]s: each has a page for its record."""
    return sum(len(table.get("emulated", ())) for table in tables)


def expected_of(tables: Iterable[Mapping[str, Any]], memory: memoryview) -> dict[str, Expected]:
    """By a child's name. `memory`: the records' pages, one behind the other."""
    records = [memory[at : at + RECORD_BYTES] for at in range(0, len(memory), RECORD_BYTES)]
    found = {}
    for table in tables:
        plans = tuple(EmulatedPlan.from_table(each) for each in table.get("emulated", ()))
        own, records = records[: len(plans)], records[len(plans) :]
        is_direct = table.get("intercepts") == "direct"
        found[str(table["name"])] = Expected(plans, int(table["memory"]), own, is_direct)
    return found
