"""A driver inside the hypervisor's own process: a monolithic machine. Only then does the hypervisor load this.

It is the driver that other machines run in a partition of its own, on a thread. It makes its hypercalls over a socket
as they do, to the very process that it lives in; rings and pages it maps a second time there. What it lacks is what a
process has: nobody can kill it alone, and when it dies, by a signal or by a bug, everything does.
"""

import os
import threading
import traceback
from collections.abc import Callable
from typing import Final

from partitions.child import Partition
from partitions.drivers.process import EXIT_CANNOT_LOAD, Driver
from partitions.sdk.loading import DriverLoadError
from runtime.abi import HypervisorGone
from runtime.hypercalls.caller import adopt_socket
from runtime.machine.console import ConsoleWriter

_CRASHED: Final = 70  # the hypervisor's exit code, where a driver in it failed


class ResidentDriver(Driver):
    def _listen_for_the_end(self) -> None:
        """Signals are the hypervisor's; whoever loaded us calls `leave`."""

    def _promise(self) -> None:
        """None: a hung thread cannot be replaced."""

    def _give_up(self) -> None:
        """Nor can a stuck one. It has been reported."""

    def leave(self) -> None:
        self._leave()


class LoadedDriver:
    """The thread, for the hypervisor. `leave` may be called from any thread, also before it has begun."""

    def __init__(self, hypercall_fd: int, console_fd: int, ended: Callable[[int], None]) -> None:
        """Takes the descriptors over. `ended(exit code)`: called from the thread, as its last act."""
        self._fds, self._ended = (hypercall_fd, console_fd), ended
        self._lock = threading.Lock()
        self._driver: ResidentDriver | None = None
        self._leaving = False
        threading.Thread(target=self._run, name="driver", daemon=True).start()

    def _run(self) -> None:
        port = adopt_socket(self._fds[0])
        try:
            birth = port.get_birth()
            console = ConsoleWriter(self._fds[1], speaks_for=birth.name)
            if isinstance(cpus := birth.args.get("cpus"), list) and cpus:
                os.sched_setaffinity(
                    0, map(int, cpus)
                )  # of this thread, and of its channels', which inherit it
            partition = Partition(birth, port, console)
            driver = ResidentDriver(partition)
            with self._lock:
                self._driver = driver
                if self._leaving:
                    driver.leave()
            code = driver.run()
        except HypervisorGone:  # the machine is going down
            return
        except DriverLoadError as error:  # found out before it was let at anything
            partition.report("driver_not_loaded", error=str(error))
            code = EXIT_CANNOT_LOAD
        except BaseException:  # in a kernel this would be the end, and so it is here
            traceback.print_exc()
            os._exit(_CRASHED)
        self._ended(code)
        port.close()

    def leave(self) -> None:
        with self._lock:
            self._leaving = True
            if self._driver is not None:
                self._driver.leave()


def load(hypercall_fd: int, console_fd: int, ended: Callable[[int], None]) -> LoadedDriver:
    """What the hypervisor calls: see `runtime.hypervisor.monolithic`."""
    return LoadedDriver(hypercall_fd, console_fd, ended)
