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
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from bus.guids import NETWORK, SCSI
from partitions import trace_files
from partitions.custom.client import Custom, RingCustom
from partitions.custom.message_client import MessageCustom
from partitions.custom.wire import CUSTOM_INTERFACE
from partitions.descendants import Described, unpack
from partitions.machine_plan import instance_guid
from partitions.net.nic import Nic
from partitions.serial.port import SerialLine
from partitions.serial.wire import SERIAL_INTERFACE
from partitions.stack.vmbus_ports import message_connection
from partitions.storage.disk import Disk
from partitions.vp.processor import VirtualProcessor
from partitions.vp.reference_clock import ReferenceClock
from partitions.vsc.message_connection import connect_to
from partitions.vsc.vmbus import GuestChannel, VmbusGuest
from runtime.abi import ExitStatus, HypervisorGone
from runtime.hypercalls.caller import Birth, HypercallPort, adopt_socket
from runtime.loaded_code import report_if_asked
from runtime.machine.console import ConsoleWriter

if TYPE_CHECKING:
    from partitions.integration.guest import Integration
    from partitions.measuring import Load
    from partitions.storage.device import OfferedDevice
    from partitions.vp.direct_access import DirectAccess

DISK_DATA_BYTES: Final = 4 << 20
CUSTOM_DATA_BYTES: Final = 512 << 10
NET_RECEIVE_BYTES: Final = 4 << 20
NET_SEND_BYTES: Final = 1 << 20
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
        self._integration: Integration | None = None
        self._direct_intercepts = bool(boot.get("direct_intercepts"))
        self._direct: DirectAccess | None = None

    @property
    def console(self) -> ConsoleWriter:
        return self._console

    def report(self, kind: str, **fields: object) -> None:
        """Put an event into the machine's log: `partvisor events` shows it as `guest.KIND`."""
        self._console.emit(f"guest.{kind}", **fields)

    def measuring(
        self, name: str, *, transfer_bytes: int = 0, depth: int = 1
    ) -> "contextlib.AbstractContextManager[Load]":
        """Measure one load and report it, for `partvisor compare`: see `partitions.measuring`."""
        from partitions.measuring import measuring

        return measuring(self, name, transfer_bytes=transfer_bytes, depth=depth)

    def reference_time(self) -> int:
        """100 ns since this partition was created: from its reference page, without a call, where that is valid."""
        return self._clock.read()

    @property
    def accesses(self) -> "HypercallPort | DirectAccess":
        """What carries its port and memory accesses: the hypervisor, or, if the config says so, the direct way."""
        if not self._direct_intercepts:
            return self.hypercalls
        if self._direct is None:
            from partitions.vp.direct_access import DirectAccess

            self._direct = DirectAccess(self.hypercalls)
        return self._direct

    @property
    def vmbus(self) -> VmbusGuest:
        """The bus, connected at first use. Raises VmbusError: the root refused or does not answer."""
        if self._vmbus is None:
            self._vmbus = VmbusGuest(self.vps, self.hypercalls, self.id)
        return self._vmbus

    @property
    def integration(self) -> "Integration":
        """What the host asks of us: heartbeat, shutdown, time, key-value pairs, backup; from the first use on.

        Raises VmbusError: the config does not say integration = true.
        """
        if self._integration is None:
            from partitions.integration.guest import Integration

            self._integration = Integration(self)
        return self._integration

    def open_channel(
        self,
        name: str,
        interface: UUID,
        data_bytes: int,
        *,
        ring_bytes: int | None = None,
        buffers: Sequence[int] = (),
    ) -> GuestChannel:
        """Open the channel of the configured device `name`, whose interface type is `interface`.

        Args:
            ring_bytes: of each ring's data area; None: as the config says.
            buffers: parts of the data area that are lent under names of their own; see `VmbusGuest.open_channel`.

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
            buffers=buffers,
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
            from partitions.vsc.message_disk import open_message_disk

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
    def open_custom(self, name: str, data_bytes: int = CUSTOM_DATA_BYTES) -> Iterator[Custom]:
        """The device of that name, of kind "custom" or "echo", until the block ends: requests and their replies.

        Args:
            name: of a [[partition.device]] of this partition's config.
            data_bytes: for what is too large for the rings; whole pages.

        Raises CustomClosedError: its server is gone for good.
        """
        if self.devices[name].get("messages"):
            number = list(self.devices).index(name)
            custom = MessageCustom(connect_to(self.hypercalls, message_connection(number)))
            with contextlib.closing(custom):
                yield custom
            return
        with self.open_channel(name, CUSTOM_INTERFACE, data_bytes) as opened:
            ring_bytes = self.devices[name]["ring_bytes"]
            yield RingCustom(opened.channel, ring_bytes, opened.data, opened.data_gpfn)

    @contextlib.contextmanager
    def open_echo(self, name: str, data_bytes: int = ECHO_DATA_BYTES) -> Iterator[Custom]:
        """As `open_custom`: a device that answers each request with its own bytes, to measure what that costs."""
        with self.open_custom(name, data_bytes) as custom:
            yield custom

    @contextlib.contextmanager
    def open_net(
        self,
        name: str,
        receive_bytes: int = NET_RECEIVE_BYTES,
        send_bytes: int = NET_SEND_BYTES,
        **more: Any,
    ) -> Iterator[Nic]:
        """The network adapter of that name, until the block ends.

        Args:
            name: of a [[partition.device]] of this partition's config.
            receive_bytes, send_bytes: of the buffers that are lent to the server; whole pages.
            more: `mtu` and `promiscuous` of `partitions.net.nic.Nic`.
        """
        lent = receive_bytes, send_bytes
        with self.open_channel(name, NETWORK, sum(lent), buffers=lent) as opened:
            receive, send = opened.data[:receive_bytes], opened.data[receive_bytes:]
            nic = Nic(opened.channel, receive, opened.buffers[0], send, opened.buffers[1], **more)
            with contextlib.closing(nic):
                yield nic

    @contextlib.contextmanager
    def open_serial(self, name: str) -> Iterator[SerialLine]:
        """The serial line of that name, until the block ends."""
        with self.open_channel(name, SERIAL_INTERFACE, 0) as opened:
            yield SerialLine(opened.channel, self.devices[name]["ring_bytes"])

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
                if self._integration is not None:
                    self._integration.close()
                self._vmbus.close()
            self._vmbus = self._integration = None


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
        report_if_asked(console.emit)


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
