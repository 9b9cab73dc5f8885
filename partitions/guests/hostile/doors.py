"""Channels to attack: opened, set up as an honest guest would, and opened again when they were taken away."""

import contextlib
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final
from uuid import UUID

from bus.guids import NETWORK, SCSI
from bus.memory import PAGE_BYTES
from bus.native import Channel, RingError
from partitions.child import Partition
from partitions.custom.wire import CUSTOM_INTERFACE
from partitions.links.link_device import LINK_INTERFACE
from partitions.net.errors import NetClosedError, NetProtocolError, NetTimeoutError
from partitions.net.nic import Nic
from partitions.serial.wire import SERIAL_INTERFACE
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskError
from partitions.vsc.channel import GuestChannel
from partitions.vsc.conversation import VmbusError
from runtime.abi import HypercallError

DATA_BYTES: Final = 128 << 10
OFFER_S_MAX: Final = 1.5  # for a channel that was taken away to be offered again
FATE_S_MAX: Final = 1.0  # for a server to see what was done to its ring
_POLL_S: Final = 0.002
_INTERFACES: Final[Mapping[str, UUID]] = {
    "disk": SCSI,
    "custom": CUSTOM_INTERFACE,
    "net": NETWORK,
    "serial": SERIAL_INTERFACE,
    "link": LINK_INTERFACE,
}


class Door:
    """One opening. The first two pages of each ring's header and data are at known places of `memory`."""

    def __init__(self, kind: str, opened: GuestChannel, ring_bytes: int) -> None:
        self.kind, self.opened, self.ring_bytes = kind, opened, ring_bytes
        self.memory: Final = opened.slot.memory
        self.channel: Final[Channel] = opened.channel
        self.incoming: Final = PAGE_BYTES + ring_bytes  # where the other ring's header is
        self.nic: Nic | None = None
        self.next_id = 1 << 20

    def put(self, offset: int, value: int) -> int:
        """A u32 into the shared pages; what stands there then."""
        struct.pack_into("<I", self.memory, offset, value)
        return self.get(offset)

    def get(self, offset: int) -> int:
        value: int = struct.unpack_from("<I", self.memory, offset)[0]
        return value

    @property
    def is_lost(self) -> bool:
        return self.channel.is_closed

    def fate(self, seconds: float = FATE_S_MAX) -> str:
        """What the server does about it: rung again and again, so that it looks."""
        ends = time.monotonic() + seconds
        while not self.is_lost and time.monotonic() < ends:
            with contextlib.suppress(RingError, OSError):
                self.channel.kick()
            time.sleep(_POLL_S)
        return "channel taken away" if self.is_lost else "channel left as it is"

    def take_id(self) -> int:
        self.next_id += 1
        return self.next_id


class Doors:
    """Of one device."""

    def __init__(self, partition: Partition, args: Mapping[str, Any]) -> None:
        self._partition = partition
        self._name, self.kind = str(args.get("device", "")), str(args.get("kind", "disk"))
        self._kept: Door | None = None
        self._stack = contextlib.ExitStack()

    def open(self) -> Door | None:
        """A new one. None: it is not offered any more, or not yet again."""
        ends = time.monotonic() + OFFER_S_MAX
        while True:
            try:
                return self._open()
            except (VmbusError, DiskError, NetClosedError, NetProtocolError, NetTimeoutError, HypercallError):
                if time.monotonic() > ends:
                    return None
                time.sleep(_POLL_S)

    def _open(self) -> Door:
        partition = self._partition
        buffers = (DATA_BYTES // 2, DATA_BYTES // 2) if self.kind == "net" else ()
        data_bytes = 0 if self.kind in ("serial", "link") else DATA_BYTES
        opened = partition.open_channel(self._name, _INTERFACES[self.kind], data_bytes, buffers=buffers)
        opened.empties = self.kind != "link"  # its other end hears of our end a little later
        try:
            door = Door(self.kind, opened, partition.devices[self._name]["ring_bytes"])
            self._set_up(door)
        except BaseException:
            opened.close()
            raise
        return door

    def _set_up(self, door: Door) -> None:
        """As the device's protocol wants it, so that what follows is met by more than its first check."""
        opened = door.opened
        match self.kind:
            case "disk":
                Disk(opened.channel, opened.data, opened.data_gpfn, set_up_timeout_s=OFFER_S_MAX)
            case "custom":
                opened.channel.exact_lengths()
            case "net":
                half = DATA_BYTES // 2
                receive, send = opened.data[:half], opened.data[half:]
                door.nic = Nic(
                    opened.channel,
                    receive,
                    opened.buffers[0],
                    send,
                    opened.buffers[1],
                    set_up_timeout_s=OFFER_S_MAX,
                )

    @contextlib.contextmanager
    def fresh(self) -> Iterator[Door | None]:
        """One to be broken; closed behind it."""
        self.let_go()  # a device has one channel
        door = self.open()
        try:
            yield door
        finally:
            if door is not None:
                door.opened.close()

    def kept(self) -> Door | None:
        """One that stays open from attack to attack, as long as nobody takes it away."""
        if self._kept is not None and self._kept.is_lost:
            self.let_go()
        if self._kept is None:
            self._kept = self.open()
        return self._kept

    def let_go(self) -> None:
        if self._kept is not None:
            self._kept.opened.close()
            self._kept = None
