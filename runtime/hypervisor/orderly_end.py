"""Ends a machine's partitions in good order: first the children, whose writes the root still serves, then the root.

Each is asked by SIGTERM, and killed when its time is up.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Final

from runtime.abi import ROOT_PARTITION
from runtime.hypervisor.broker import Broker
from runtime.hypervisor.loop import now_ns


class OrderlyEnd:
    """Call `step` whenever something may have changed, and when it says."""

    def __init__(self, broker: Broker, grace_ms: int, is_over: Callable[[], bool] = lambda: False) -> None:
        """`grace_ms`: for the children together, and then for the root. `is_over`: somebody saw the root's end."""
        self._broker: Final = broker
        self._grace_ns: Final = grace_ms * 1_000_000
        self._is_over: Final = is_over
        self._children_until_ns: Final = now_ns() + self._grace_ns
        self._root_until_ns: int | None = None  # None: it has not been asked yet
        for partition in broker.live_partitions - {ROOT_PARTITION}:
            broker.signal(partition, signal.SIGTERM)

    def step(self) -> int | None:
        """What is due; returns how many ms until the next may be. None: no partition is left, or none in time."""
        broker, now = self._broker, now_ns()
        if self._is_over():
            return None
        if self._root_until_ns is None:
            children = broker.live_partitions - {ROOT_PARTITION}
            if children and now < self._children_until_ns:
                return _ms_until(self._children_until_ns, now)
            for partition in children:
                broker.kill(partition)
            self._root_until_ns = now + self._grace_ns
            broker.signal(ROOT_PARTITION, signal.SIGTERM)
        if ROOT_PARTITION in broker.live_partitions and now < self._root_until_ns:
            return _ms_until(self._root_until_ns, now)
        return None


def _ms_until(deadline_ns: int, from_ns: int) -> int:
    return (deadline_ns - from_ns) // 1_000_000 + 1
