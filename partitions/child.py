"""What a child partition's program is given: its birth, its arguments, its devices.

A program is a function of one argument, plain or async:

    def main(partition: Partition) -> int | None:
        with partition.open_disk("disk0") as disk:
            disk.write(0, b"hello".ljust(512, b"."))
            disk.flush()

Its return value is the partition's exit code (None: 0). What it prints becomes console lines of the machine; what
it tells `partition.report` becomes events.
"""

import contextlib
import faulthandler
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from bus.guids import SCSI
from partitions import trace_files
from partitions.descendants import Described, unpack
from partitions.echo.client import Echo
from partitions.echo.device import ECHO_INTERFACE
from partitions.machine_plan import instance_guid
from partitions.reference_clock import ReferenceClock
from partitions.storage.disk import Disk
from partitions.virtual_processor import VirtualProcessor
from partitions.vmbus_guest import GuestChannel, VmbusGuest
from runtime.abi import ExitStatus, HypervisorGone
from runtime.console import ConsoleWriter
from runtime.hypercalls import Birth, HypercallPort, adopt_socket

if TYPE_CHECKING:
    from partitions.direct_access import DirectAccess
    from partitions.storage.device import OfferedDevice

DISK_DATA_BYTES: Final = 4 << 20
ECHO_DATA_BYTES: Final = 64 << 10

# Never emptied: the hypervisor takes a closed hypercall socket for a partition that is lost, and kills it.
_lifelines: Final[list[HypercallPort]] = []


class Partition:
    """This partition, as its program sees it."""

    def __init__(self, birth: Birth, port: HypercallPort, console: ConsoleWriter) -> None:
        boot = birth.args
        self.id, self.name = birth.partition, birth.name
        self.hypercalls = port
        self.args: Mapping[str, Any] = _table(boot.get("args"))
        self.devices: Mapping[str, Mapping[str, Any]] = {
            str(device["name"]): device for device in _tables(boot.get("devices"))
        }
        names = [str(file["name"]) for file in _tables(boot.get("files"))]
        own, self._descendants = birth.files[: len(names)], birth.files[len(names) :]
        files = dict(zip(names, own, strict=True))
        trace_files.take(files)
        self.files: Mapping[str, int] = files  # descriptors, by name
        self._console = console
        self.vps = [VirtualProcessor(lines, port) for lines in birth.vps]
        self._clock = ReferenceClock(port)
        self._vmbus: VmbusGuest | None = None
        self._direct_intercepts = bool(boot.get("direct_intercepts"))
        self._direct: DirectAccess | None = None

    @property
    def console(self) -> ConsoleWriter:
        return self._console

    def report(self, kind: str, **fields: object) -> None:
        """Put an event into the machine's log: `partvisor events` shows it as `guest.KIND`."""
        self._console.emit(f"guest.{kind}", **fields)

    def reference_time(self) -> int:
        """100 ns since this partition was created: from its reference page, without a call, where that is valid."""
        return self._clock.read()

    @property
    def accesses(self) -> "HypercallPort | DirectAccess":
        """What carries its port and memory accesses: the hypervisor, or, if the config says so, the direct way."""
        if not self._direct_intercepts:
            return self.hypercalls
        if self._direct is None:
            from partitions.direct_access import DirectAccess

            self._direct = DirectAccess(self.hypercalls)
        return self._direct

    @property
    def vmbus(self) -> VmbusGuest:
        """The bus, connected at first use. Raises VmbusError: the root refused or does not answer."""
        if self._vmbus is None:
            self._vmbus = VmbusGuest(self.vps, self.hypercalls, self.id)
        return self._vmbus

    def open_channel(
        self, name: str, interface: UUID, data_bytes: int, *, ring_bytes: int | None = None
    ) -> GuestChannel:
        """Open the channel of the configured device `name`, whose interface type is `interface`.

        Args:
            ring_bytes: of each ring's data area; None: as the config says.

        Raises:
            KeyError: the config gives this partition no such device.
            VmbusError: the offer did not come, or the channel could not be opened.
        """
        device = self.devices[name]
        offer = self.vmbus.find_offer(interface, instance_guid(self.name, name))
        return self.vmbus.open_channel(
            offer,
            ring_bytes=ring_bytes or device["ring_bytes"],
            data_bytes=data_bytes,
            waiting=device["waiting"],
        )

    @contextlib.contextmanager
    def open_disk(self, name: str, data_bytes: int = DISK_DATA_BYTES) -> Iterator[Disk]:
        """The disk of that name, with the blocking API of `partitions.storage.vsc.Disk`, until the block ends.

        For trio programs: `with partition.open_disk(...) as disk: async with AsyncDisk(disk) as disk: ...`

        Args:
            name: of a [[partition.device]] of this partition's config.
            data_bytes: for the buffers that are shared with the server; whole pages.
        """
        if self.devices[name].get("messages"):
            from partitions.message_disk import open_message_disk

            number = list(self.devices).index(name)
            with open_message_disk(self.hypercalls, number, data_bytes) as disk:
                yield disk
            return
        with (
            self.open_channel(name, SCSI, data_bytes) as opened,
            Disk(opened.channel, opened.data, opened.data_gpfn) as disk,
        ):
            yield disk

    @contextlib.contextmanager
    def open_echo(self, name: str, data_bytes: int = ECHO_DATA_BYTES) -> Iterator[Echo]:
        """The echo of that name, until the block ends: a device that answers each request with its own bytes.

        Args:
            name: of a [[partition.device]] of this partition's config.
            data_bytes: for requests that travel in pages; whole pages.
        """
        with self.open_channel(name, ECHO_INTERFACE, data_bytes) as opened:
            yield Echo(opened.channel, opened.data, opened.data_gpfn)

    def take_descendants(self) -> tuple[Mapping[str, Any], list[Described]]:
        """The [machine] table and the partitions below this one; none from the second call on."""
        descriptors, self._descendants = self._descendants, []
        return unpack(descriptors) if descriptors else ({}, [])

    def run_children(self, devices: "Mapping[str, OfferedDevice] | None" = None) -> Mapping[str, ExitStatus]:
        """Create the partitions that the config names this one the parent of, and serve them until all have ended.

        A SIGTERM, which the whole machine gets when it stops, ends them and then this. A plain function: a program
        that runs trio awaits `partitions.parent.serve_children` instead.

        Args:
            devices: what to offer to them, by name; for those left out, this partition's own disk of that name.

        Raises:
            BuildError: they can't be created as configured. What was created goes with this partition.
        """
        import trio

        from partitions.parent import serve_children

        return trio.run(serve_children, self, devices)

    def close(self) -> None:
        """Close every channel and leave the bus, as a guest does when it shuts down."""
        if self._vmbus is not None:
            with contextlib.suppress(HypervisorGone):
                self._vmbus.close()
            self._vmbus = None


def main(hypercall_fd: int, console_fd: int) -> int:
    """A partition's life, from birth to exit code. Runs in the process that the zygote forked."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the platform's business
    port = adopt_socket(hypercall_fd)
    _lifelines.append(port)
    birth = port.get_birth()
    console = ConsoleWriter(console_fd)
    sys.stdout, sys.stderr = console.stream("stdout"), console.stream("stderr")
    if cpus := birth.args.get("cpus"):
        os.sched_setaffinity(0, [int(cpu) for cpu in cpus] if isinstance(cpus, list) else [])
    partition = Partition(birth, port, console)
    try:
        return _run(birth.program, str(birth.args["function"]), partition)
    finally:
        partition.close()


def _run(module_name: str, function_name: str, partition: Partition) -> int:
    function = getattr(importlib.import_module(module_name), function_name)
    if inspect.iscoroutinefunction(function):
        import trio

        result = trio.run(function, partition)
    else:
        result = function(partition)
    return int(result or 0)


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _tables(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
