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
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from bus.guids import SCSI
from partitions import trace_files
from partitions.calls.call_socket import Connect
from partitions.child_network import NetworkAccess
from partitions.child_saving import SavingAccess
from partitions.custom.wire import CUSTOM_INTERFACE
from partitions.descendants import Described, unpack
from partitions.machine_plan import instance_guid
from partitions.measuring import Load, measuring
from partitions.own_device import OwnDevices
from partitions.serial.wire import SERIAL_INTERFACE
from partitions.stack.vmbus_ports import message_connection, receive_connection
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskProtocolError
from partitions.vp.processor import VirtualProcessor
from partitions.vp.reference_clock import ReferenceClock
from partitions.vsc.channel import GuestChannel
from partitions.vsc.conversation import VmbusError
from partitions.vsc.disk_queues import further_queues
from partitions.vsc.message_connection import connect_to
from partitions.vsc.vmbus import VmbusGuest
from runtime.abi import ExitStatus, HypervisorGone
from runtime.hypercalls.caller import Birth, HypercallPort, adopt_socket
from runtime.loaded_code import report_if_asked
from runtime.machine.console import ConsoleWriter

if TYPE_CHECKING:
    from partitions.custom.client import Custom
    from partitions.display.keyboard import Keyboard
    from partitions.display.mouse import Mouse
    from partitions.display.video import Video
    from partitions.integration.guest import Integration
    from partitions.serial.line import Line
    from partitions.stack.offered_device import OfferedDevice
    from partitions.vp.direct_access import DirectAccess
    from partitions.vsc.arrivals import DeviceChange

DISK_DATA_BYTES: Final = 4 << 20
CUSTOM_DATA_BYTES: Final = 512 << 10
ECHO_DATA_BYTES: Final = 64 << 10
VRAM_BYTES: Final = 8 << 20  # as Hyper-V's adapter has
DEVICE_S_MAX: Final = 30.0  # for a device to come
ADDED_DEVICE: Final = {
    "ring_bytes": 64 << 10,
    "waiting": "adaptive",
}  # how one is opened that the config does not know

# Never emptied: the hypervisor takes a closed hypercall socket for a partition that is lost, and kills it.
_lifelines: Final[list[HypercallPort]] = []


class Partition(NetworkAccess, SavingAccess):
    """This partition, as its program sees it."""

    def __init__(self, birth: Birth, port: HypercallPort, console: ConsoleWriter) -> None:
        boot = birth.args
        self.id, self.name = birth.partition, birth.name
        self.hypercalls = port
        self.args: Mapping[str, Any] = _table(boot.get("args"))
        self.devices: dict[str, Mapping[str, Any]] = {
            str(device["name"]): device for device in _tables(boot.get("devices"))
        }
        names = [str(file["name"]) for file in _tables(boot.get("files"))]
        own, self._descendants = birth.files[: len(names)], birth.files[len(names) :]
        files = dict(zip(names, own, strict=True))
        trace_files.take(files)
        self._own = OwnDevices(_table(boot.get("assigned")), files, console.emit)
        self.files: Mapping[str, int] = files  # descriptors, by name
        self._console = console
        self.vps = [VirtualProcessor(lines, port) for lines in birth.vps]
        self._clock = ReferenceClock(port)
        self._first_use = threading.RLock()  # what is made then is made once, whichever threads come
        self._vmbus: VmbusGuest | None = None
        self._integration: Integration | None = None
        self._direct_intercepts = bool(boot.get("direct_intercepts"))
        self._direct: DirectAccess | None = None
        self.has_integration = bool(boot.get("integration"))  # whether `integration` is there to be used

    @property
    def console(self) -> ConsoleWriter:
        return self._console

    def report(self, kind: str, **fields: object) -> None:
        """Put an event into the machine's log: `partvisor events` shows it as `guest.KIND`."""
        self._console.emit(f"guest.{kind}", **fields)

    def measuring(
        self, name: str, *, transfer_bytes: int = 0, depth: int = 1
    ) -> contextlib.AbstractContextManager[Load]:
        """Measure one load and report it, for `partvisor compare`: see `partitions.measuring`."""
        return measuring(self, name, transfer_bytes=transfer_bytes, depth=depth)

    def reference_time(self) -> int:
        """100 ns since this partition was created: from its reference page, without a call, where that is valid."""
        return self._clock.read()

    @property
    def accesses(self) -> "HypercallPort | DirectAccess":
        """What carries its port and memory accesses: the hypervisor, or, if the config says so, the direct way."""
        if not self._direct_intercepts:
            return self.hypercalls
        with self._first_use:
            if self._direct is None:
                from partitions.vp.direct_access import DirectAccess

                self._direct = DirectAccess(self.hypercalls)
            return self._direct

    @property
    def vmbus(self) -> VmbusGuest:
        """The bus, connected at first use. Raises VmbusError: the root refused or does not answer."""
        with self._first_use:
            if self._vmbus is None:
                self._vmbus = VmbusGuest(self.vps, self.hypercalls, self.id)
            return self._vmbus

    @property
    def integration(self) -> "Integration":
        """What the host asks of us: heartbeat, shutdown, time, key-value pairs, backup; from the first use on.

        Raises VmbusError: the config does not say integration = true.
        """
        with self._first_use:
            if self._integration is None:
                from partitions.integration.guest import Integration

                self._integration = Integration(self.name, self.vmbus, self.hypercalls, self.reference_time)
            return self._integration

    def wait_for_device(self, name: str, seconds_max: float = DEVICE_S_MAX) -> None:
        """Until the host offers the device of that name, which the config need not know: then it can be opened.

        Raises VmbusError: it did not come in that time.
        """
        if not self.vmbus.arrivals.wait_for(instance_guid(self.name, name), seconds_max):
            raise VmbusError(f"{name} did not come within {seconds_max:g} s")
        self.devices.setdefault(name, {"name": name, **ADDED_DEVICE})

    def device_changes(self, seconds_max: float = 0.0) -> "list[DeviceChange]":
        """Devices that came or went since the last call, oldest first; waits so long for one. Those that were there at
        first are in none. A name is given where the config, or an earlier `wait_for_device`, has it."""
        names = {instance_guid(self.name, name): name for name in self.devices}
        changes = self.vmbus.arrivals.take(seconds_max)
        return [replace(change, name=names.get(change.instance)) for change in changes]

    def has_device(self, name: str) -> bool:
        """Whether the host offers the device of that name now."""
        return self.vmbus.arrivals.is_here(instance_guid(self.name, name))

    def open_channel(
        self,
        name: str,
        interface: UUID,
        data_bytes: int,
        *,
        ring_bytes: int | None = None,
        buffers: Sequence[int] = (),
        sub_channel: int = 0,
    ) -> GuestChannel:
        """Open the channel of the configured device `name`, whose interface type is `interface`.

        Args:
            ring_bytes: of each ring's data area; None: as the config says.
            buffers: parts of the data area that are lent under names of their own; see `VmbusGuest.open_channel`.
            sub_channel: of the device's, where it was asked for; it may still be on its way.

        Raises:
            KeyError: the config gives this partition no such device.
            VmbusError: the offer did not come, or the channel could not be opened.
        """
        device = self.devices[name]
        offer = self.vmbus.find_offer(interface, instance_guid(self.name, name))
        if sub_channel:
            offer = self.vmbus.await_sub_channel(offer, sub_channel)
        return self.vmbus.open_channel(
            offer,
            ring_bytes=ring_bytes or device["ring_bytes"],
            data_bytes=data_bytes,
            waiting=device["waiting"],
            buffers=buffers,
        )

    @contextlib.contextmanager
    def open_disk(self, name: str, data_bytes: int = DISK_DATA_BYTES, queues: int = 1) -> Iterator[Disk]:
        """The disk of that name, with the blocking API of `partitions.storage.vsc.Disk`, until the block ends.

        For trio programs: `with partition.open_disk(...) as disk: async with AsyncDisk(disk) as disk: ...`

        Args:
            name: of a [[partition.device]] of this partition's config.
            data_bytes: for the buffers that are shared with the server, of each queue; whole pages.
            queues: channels to it, each for a thread of its own: `Disk.queues`. At most the device's in the config.

        Raises DiskProtocolError: it has not as many queues.
        """
        if queues > 1 and (name in self._own or self.devices[name].get("messages")):
            raise DiskProtocolError(f"{name} has one queue here, not {queues}")
        if name in self._own:
            table = self.devices[name]
            with self._own.open_disk(name, table["ring_bytes"], data_bytes, table.get("waiting")) as disk:
                yield disk
            return
        if self.devices[name].get("messages"):
            from partitions.vsc.message_disk import open_message_disk

            number = list(self.devices).index(name)
            with open_message_disk(self.hypercalls, number, data_bytes) as disk:
                yield disk
            return
        with (
            self.open_channel(name, SCSI, data_bytes) as opened,
            Disk(opened.channel, opened.data, opened.data_gpfn) as disk,
            further_queues(self.open_channel, name, disk, data_bytes, queues),
        ):
            yield disk

    @contextlib.contextmanager
    def open_custom(self, name: str, data_bytes: int = CUSTOM_DATA_BYTES) -> "Iterator[Custom]":
        """The device of that name, of kind "custom" or "echo", until the block ends: requests and their replies.

        Args:
            name: of a [[partition.device]] of this partition's config.
            data_bytes: for what is too large for the rings; whole pages.

        Raises CustomClosedError: its server is gone for good.
        """
        if self.devices[name].get("messages"):
            from partitions.custom.message_client import MessageCustom

            number = list(self.devices).index(name)
            custom = MessageCustom(connect_to(self.hypercalls, message_connection(number)))
            with contextlib.closing(custom):
                yield custom
            return
        from partitions.custom.client import RingCustom

        with self.open_channel(name, CUSTOM_INTERFACE, data_bytes) as opened:
            ring_bytes = self.devices[name]["ring_bytes"]
            yield RingCustom(opened.channel, ring_bytes, opened.data, opened.data_gpfn)

    @contextlib.contextmanager
    def open_echo(self, name: str, data_bytes: int = ECHO_DATA_BYTES) -> "Iterator[Custom]":
        """As `open_custom`: a device that answers each request with its own bytes, to measure what that costs."""
        with self.open_custom(name, data_bytes) as custom:
            yield custom

    @contextlib.contextmanager
    def open_serial(self, name: str) -> "Iterator[Line]":
        """The serial line of that name, until the block ends."""
        ring_bytes = self.devices[name]["ring_bytes"]
        if self.devices[name].get("messages"):
            from partitions.serial.message_line import MessageLine

            with contextlib.closing(MessageLine(*self._connections(name), ring_bytes)) as line:
                yield line
            return
        from partitions.serial.port import SerialLine

        with self.open_channel(name, SERIAL_INTERFACE, 0) as opened:
            yield SerialLine(opened.channel, ring_bytes)

    def open_keyboard(self, name: str) -> "contextlib.AbstractContextManager[Keyboard]":
        """The keyboard of that name, until the block ends. DisplayClosedError: its host does not answer."""
        from partitions.display.opening import open_keyboard

        return open_keyboard(self.open_channel, name)

    def open_mouse(self, name: str) -> "contextlib.AbstractContextManager[Mouse]":
        """The mouse of that name, until the block ends. DisplayClosedError: its host does not answer."""
        from partitions.display.opening import open_mouse

        return open_mouse(self.open_channel, name)

    def open_video(
        self, name: str, width: int | None = None, height: int | None = None, vram_bytes: int = VRAM_BYTES
    ) -> "contextlib.AbstractContextManager[Video]":
        """The screen of that name, until the block ends.

        Args:
            width, height: pixels; None: as many as the config allows.
            vram_bytes: of this partition's memory, for the pixels; whole pages.

        Raises DisplayClosedError: its host does not answer, or shows no screen of this size.
        """
        from partitions.display.opening import open_video

        return open_video(self.open_channel, name, width, height, vram_bytes)

    def _connections(self, name: str) -> tuple[Connect, Connect]:
        """To a device that is reached without rings: for calls, and for what nobody asked for."""
        number = list(self.devices).index(name)
        ours = message_connection(number), receive_connection(number)
        return connect_to(self.hypercalls, ours[0]), connect_to(self.hypercalls, ours[1])

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
        self._own.close()
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
