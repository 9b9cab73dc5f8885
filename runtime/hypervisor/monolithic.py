"""Drivers inside this very process: a monolithic machine's. No other one loads code of devices here.

A loaded driver is a partition for the state machine, with pages, ports and hypercalls like any other; what stands for
its process is a thread of ours. It can be asked to end. It cannot be killed but with everything else.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from bus.native import eventfd_signal
from runtime.abi import ExitStatus
from runtime.hypervisor.broker import Broker
from runtime.hypervisor.effects import Effect, LoadDriver
from runtime.hypervisor.loop import now_ns
from runtime.hypervisor.machine import RootFailurePolicy
from runtime.hypervisor.recorder import Recorder
from runtime.hypervisor.zygote import Zygote

SWITCH_S: Final = 0.0005  # after which a thread of Python's that others wait for gives way


class LoadedDriver(Protocol):
    def leave(self) -> None:
        """Ask it to end: once nobody is served any more it says so. From any thread."""


class DriverModule(Protocol):
    """What the module that `--driver-module` names has."""

    def load(self, hypercall_fd: int, console_fd: int, ended: Callable[[int], None]) -> LoadedDriver:
        """Run a driver on threads of its own. Takes the descriptors over; `ended(exit code)` comes from a thread."""


class MonolithicBroker(Broker):
    """The broker of a machine whose drivers it loads."""

    def __init__(
        self, zygote: Zygote, recorder: Recorder, on_root_failure: RootFailurePolicy, driver_module: str
    ) -> None:
        """ImportError: there is no such module."""
        super().__init__(zygote, recorder, on_root_failure)
        self._module: DriverModule = importlib.import_module(driver_module)
        self._drivers: dict[int, LoadedDriver] = {}  # by partition
        self._ends: deque[tuple[int, int]] = deque()  # filled by threads
        self._wake_fd: Final = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.loop.watch(self._wake_fd, lambda events: self._hear())
        self.hypervisor.machine.loads_drivers = True
        # All guests' servers, and our own loop, take turns on one interpreter. With CPython's usual 5 ms, who blocks
        # after each few microseconds of work gets on once in 5 ms beside one guest that keeps its server busy.
        sys.setswitchinterval(SWITCH_S)

    @property
    def live_partitions(self) -> set[int]:
        return super().live_partitions | (set() if self.halted else set(self._drivers))

    def signal(self, partition: int, signal_number: int) -> None:
        if (driver := self._drivers.get(partition)) is None:
            super().signal(partition, signal_number)
        elif signal_number == signal.SIGTERM:
            driver.leave()

    def _kill(self, partition: int) -> None:
        if partition in self._drivers:
            self.halted = self.halted or f"driver partition {partition}, in the hypervisor, was killed"
        else:
            super()._kill(partition)

    def carry_out(self, effects: list[Effect], fds: list[int] | None = None) -> bool:
        kept = False
        for effect in effects:
            if isinstance(effect, LoadDriver):
                self._load(effect.partition)
            else:
                kept |= super().carry_out([effect], fds)
        return kept

    def _load(self, partition: int) -> None:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            console_fd = self._console()
        except OSError as error:
            self._spawning.add(partition)
            self._spawn_fails(partition, f"it cannot be loaded: {error}")
            return
        self._sockets.add(partition, ours)
        self._drivers[partition] = self._module.load(
            theirs.detach(), console_fd, lambda code: self._end(partition, code)
        )
        self.loop.after(0, lambda: self._loaded(partition))

    def _loaded(self, partition: int) -> None:
        self.carry_out(self.hypervisor.process_started(partition, os.getpid(), now_ns()))

    def _end(self, partition: int, code: int) -> None:
        """From the driver's thread."""
        self._ends.append((partition, code))
        eventfd_signal(self._wake_fd)

    def _hear(self) -> None:
        os.eventfd_read(self._wake_fd)
        while self._ends:
            partition, code = self._ends.popleft()
            self._serve_last_calls(partition)
            self._sockets.close(partition)
            del self._drivers[partition]
            status = ExitStatus(code, None)
            self.carry_out(self.hypervisor.process_exited(partition, status, str(status), now_ns()))
