"""What a partition with a TAP is born with: the interface's descriptor, and a socket to what runs its programs.

Both are made by the process itself, between entering its namespaces and giving its capabilities away.
"""

import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass

from partitions.net import guest_interface
from partitions.net.address import address_of
from partitions.programs import runner
from partitions.sandbox import namespaces
from runtime.config.tap_order import TapOrder


class TapUnavailable(Exception):
    """This host, or the config, gives the partition none. The text says why."""


@dataclass(frozen=True, slots=True)
class BornTap:
    device: str
    tap_fd: int
    runner: socket.socket


_born: BornTap | None = None
_problem = "the config gives this partition no [partition.tap]"


def make(order: TapOrder, partition: int, kept: Collection[int]) -> tuple[int, ...]:
    """The descriptors. None, where this host does not allow it: `born` says why, to who asks."""
    global _born, _problem
    try:
        runner_fd = runner.start(kept)
        tap_fd = guest_interface.make(order, address_of(order.device, partition))
    except OSError as error:
        _problem = f"no TAP here: {error.strerror or error}"
        return ()
    _born = BornTap(order.device, tap_fd, socket.socket(fileno=runner_fd))
    return tap_fd, runner_fd


def in_own_namespaces(inside: Callable[[], Collection[int]]) -> Collection[int]:
    """Without a sandbox there are no namespaces yet: an interface of the partition's own needs them all the same."""
    namespaces.enter(namespaces.NEW_USER | namespaces.NEW_NETWORK | namespaces.NEW_MOUNTS)
    return inside()


def born() -> BornTap:
    """Raises TapUnavailable."""
    if _born is None:
        raise TapUnavailable(_problem)
    return _born
