"""What an attack has within its reach, for as long as it lasts."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from partitions.child import Partition
from partitions.guests.hostile.doors import Door, Doors
from partitions.guests.hostile.tally import Tally

_NS_PER_S: Final = 1_000_000_000


class Scene:
    """One partition's. `begin` starts a new window."""

    def __init__(self, partition: Partition, args: Mapping[str, Any]) -> None:
        self.partition, self.args = partition, args
        self.rng = random.Random(0)
        self.doors: Final = Doors(partition, args)
        self._length_ns = self._ends_ns = 0

    def begin(self, seed: int, seconds: float) -> None:
        """The same seed attacks in the same way, as far as the other side's pace lets it."""
        self.rng = random.Random(seed)
        self._length_ns = int(seconds * _NS_PER_S)
        self.begin_now()

    def begin_now(self) -> None:
        """The window: what came before was preparation."""
        self._ends_ns = time.monotonic_ns() + self._length_ns

    def kept_door(self) -> Door | None:
        """See `Doors.kept`. What it took to open one is no part of the window; so with `fresh_door`."""
        door = self.doors.kept()
        self.begin_now()
        return door

    @contextlib.contextmanager
    def fresh_door(self) -> Iterator[Door | None]:
        """See `Doors.fresh`."""
        with self.doors.fresh() as door:
            self.begin_now()
            yield door

    def goes_on(self) -> bool:
        """Whether there is time for more."""
        return time.monotonic_ns() < self._ends_ns

    def sleep_out(self) -> None:
        """Stand still until the window is over."""
        time.sleep(max(self._ends_ns - time.monotonic_ns(), 0) / _NS_PER_S)


AttackFunction = Callable[[Scene, Tally], None]
"""One window of an attack. It may end early; it must not go on for long."""
