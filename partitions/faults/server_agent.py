"""The orders of one process that serves devices, root or driver: what its board says is armed, and nothing else."""

import threading
from collections.abc import Callable
from typing import Final

from partitions.faults import page_stalls
from partitions.faults.armed import Armed
from partitions.faults.device_faults import DeviceFaults
from partitions.faults.fault_board import FaultBoard
from partitions.faults.faulty_medium import FaultyMedium
from runtime.chaos.faults.ring_kinds import MEMORY_STALL


class ServerAgent:
    """`look` is for one thread; servers are opened from any."""

    def __init__(self, board: FaultBoard, find_medium: Callable[[str], FaultyMedium | None]) -> None:
        """`find_medium`: of a device here, by its name; None: it has none."""
        self.board: Final = board
        self._find_medium = find_medium
        self._lock = threading.Lock()
        self._devices: dict[str, DeviceFaults] = {}
        self._armed: dict[int, str] = {}  # the target of each
        self._sequence = 0

    def of(self, device: str) -> DeviceFaults:
        with self._lock:
            return self._devices.setdefault(device, DeviceFaults())

    def look(self) -> None:
        """Do what the board says now. Not before all that a predecessor left is replayed: that is no pass of a seam."""
        if (sequence := self.board.sequence) == self._sequence:
            return
        self._sequence = sequence
        standing = {order.number: order for order in self.board.orders()}
        for number, target in list(self._armed.items()):
            if number not in standing:
                del self._armed[number]
                self.of(target).heal(number, self._find_medium(target))
        for number, order in standing.items():
            if number in self._armed or (order.kind == MEMORY_STALL and page_stalls.refusal() is not None):
                continue  # in this process it could not strike, and is not to count as if it had
            try:
                armed = Armed(order, self.board.trigger(order))
            except KeyError:  # taken away at this moment: we are told again
                continue
            self._armed[number] = order.target
            self.of(order.target).arm(armed, self._find_medium(order.target))
