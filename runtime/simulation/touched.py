"""Which partitions a step can have changed: those that it looked up.

Handlers reach a partition by its id in the machine's table and in no other way, so a table that remembers who was
asked for names all that can be different now. The rest need no look, which makes checks after each step affordable.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, ValuesView
from typing import TypeVar

from runtime.hypervisor.partition import Partition

_Default = TypeVar("_Default")


class TouchedPartitions(dict[int, Partition]):
    """The machine's table of partitions. `dict.get(table, ...)` reads without leaving a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.touched: set[int] = set()
        self.walked = False  # somebody looked at them all

    def __getitem__(self, key: int) -> Partition:
        self.touched.add(key)
        return super().__getitem__(key)

    def __setitem__(self, key: int, value: Partition) -> None:
        self.touched.add(key)
        super().__setitem__(key, value)

    def __delitem__(self, key: int) -> None:
        self.touched.add(key)
        super().__delitem__(key)

    def get(self, key: int, default: _Default | None = None) -> Partition | _Default | None:  # type: ignore[override]
        self.touched.add(key)
        return super().get(key, default)

    def __iter__(self) -> Iterator[int]:
        self.walked = True
        return super().__iter__()

    def values(self) -> ValuesView[Partition]:  # type: ignore[override]
        self.walked = True
        return super().values()

    def items(self) -> ItemsView[int, Partition]:  # type: ignore[override]
        self.walked = True
        return super().items()

    def forget(self) -> None:
        """A new step begins."""
        self.touched.clear()
        self.walked = False
