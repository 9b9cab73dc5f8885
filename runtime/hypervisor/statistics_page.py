"""What the machine keeps of a statistics page: `statistics` says who has one, and writes it."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.hypervisor.effects import Page
from runtime.statistics import StatsObject


@dataclass(frozen=True, slots=True)
class StatsKey:
    """What a page is about. Zero where the kind of object has no such number."""

    kind: StatsObject
    partition: int = 0
    index: int = 0  # of a VP or a logical processor


@dataclass(frozen=True, slots=True)
class StatsPage:
    id: int
    page: Page
