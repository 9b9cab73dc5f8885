"""One guest on its VMBus, and roots that die: between any two hypercalls, before or after any save.

What outlives a root is in `Kept`; the hypercalls that a root makes are answered from it, strictly: a port that is
there cannot be created again, one that is not there cannot be deleted. The guest is a real channel client.
"""

import gc
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, cast
from uuid import UUID

import trio

from bus import channel_events as events
from bus import guids
from bus.channel_client import ChannelClient
from bus.memory import PAGE_BYTES, MemorySlot
from bus.packets import GpaRange
from bus.synic import MESSAGE_CONNECTION
from partitions.machine_plan import AttachmentPlan
from partitions.stack.guest_bus import GuestBus
from partitions.stack.offered_device import OfferedDevice
from partitions.stack.offers import Devices
from partitions.stack.received_messages import ReceivedMessages
from partitions.stack.saved_state import SLOT_PAGES, SavedState
from partitions.stack.served_channel import stop_all
from partitions.stack.stack_resources import RootResources
from partitions.stack.vmbus_ports import root_message_port
from runtime.abi import PARTITION_SELF, HvStatus, HypercallCode, HypercallError, MapFlags, Route
from runtime.hypercalls.caller import Doorbell, HypercallPort, MappedSlot
from runtime.hypercalls.results import PortCounts

ROOT: Final = 1
GUEST: Final = 2
SLOT_GPFN: Final = 0x100
RINGS_PAGES: Final = 8  # two rings of one header page and three others
PATIENCE_S: Final = 20
_DOORBELLS: Final = 8
_PLAN: Final = AttachmentPlan("disk0", 3 * PAGE_BYTES, Route.DIRECT, "block")


class Died(BaseException):
    """This root is dead. Nothing that it would still do happens."""


class _Idle:
    """A service that waits to be stopped."""

    def replay(self) -> None:
        pass

    def serve(self, stop: threading.Event) -> None:
        stop.wait()

    def statistics(self) -> dict[str, int]:
        return {}


class _Device:
    name = "disk0"
    interface = guids.SCSI

    def open(self, *_: object) -> _Idle:
        return _Idle()

    def close(self) -> None:
        pass


DEVICES: Final = {"disk0": cast(OfferedDevice, _Device())}


@dataclass
class Kept:
    """What the hypervisor holds, and the guest."""

    saved: bytearray = field(default_factory=lambda: bytearray(SLOT_PAGES * PAGE_BYTES))
    ports: set[tuple[int, int]] = field(default_factory=set)  # partition, id
    connections: set[tuple[int, int]] = field(default_factory=set)
    mapped: dict[int, int] = field(
        default_factory=dict
    )  # the guest's slots in the root's GPA space: GPFN, the guest's
    posted: list[bytes] = field(default_factory=list)  # to the guest, ever
    taken: int = 0  # of those, by the guest
    to_root: deque[bytes] = field(default_factory=deque)
    sent: list[bytes] = field(default_factory=list)  # by the guest, ever
    received: int = 0  # of those, by roots: they left the slot
    pages: int = RINGS_PAGES
    slot: MemorySlot = field(init=False)
    bells: list[int] = field(
        default_factory=lambda: [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(_DOORBELLS)]
    )

    def __post_init__(self) -> None:
        self.slot = MemorySlot.create(self.pages, SLOT_GPFN, "guest")

    def send(self, payload: bytes) -> None:
        """As the guest does."""
        self.sent.append(payload)
        self.to_root.append(payload)

    def close(self) -> None:
        self.slot.close()
        for bell in self.bells:
            os.close(bell)


class Hypercalls(HypercallPort):
    """Those that a guest's bus makes. `passes` counts the moments at which this root can die."""

    def __init__(self, kept: Kept, dies_at: int | None) -> None:
        self._kept, self._dies_at = kept, dies_at
        self.passes, self.dead = 0, False

    def pass_by(self) -> None:
        self.passes += 1
        self.dead = self.dead or self.passes == self._dies_at
        if self.dead:
            raise Died

    @contextmanager
    def _call(self, code: HypercallCode, possible: bool = True) -> Iterator[None]:
        self.pass_by()
        if not possible:
            raise HypercallError(code, HvStatus.INVALID_PARAMETER)
        yield
        self.pass_by()

    def create_port(self, port: int, *_: object, partition: int = PARTITION_SELF, **__: object) -> None:
        key = _owner(partition), port
        with self._call(HypercallCode.CREATE_PORT, key not in self._kept.ports):
            self._kept.ports.add(key)

    def delete_port(self, port: int, partition: int = PARTITION_SELF) -> None:
        key = _owner(partition), port
        with self._call(HypercallCode.DELETE_PORT, key in self._kept.ports):
            self._kept.ports.discard(key)

    def connect_port(
        self,
        connection: int,
        port_partition: int,
        port: int,
        *,
        partition: int = PARTITION_SELF,
        route: Route = Route.DIRECT,
    ) -> None:
        key = _owner(partition), connection
        possible = key not in self._kept.connections and (port_partition, port) in self._kept.ports
        with self._call(HypercallCode.CONNECT_PORT, possible):
            self._kept.connections.add(key)

    def disconnect_port(self, connection: int, partition: int = PARTITION_SELF) -> None:
        key = _owner(partition), connection
        with self._call(HypercallCode.DISCONNECT_PORT, key in self._kept.connections):
            self._kept.connections.discard(key)

    def claim_port_doorbell(self, port: int) -> Doorbell:
        with self._call(HypercallCode.CLAIM_DOORBELL, (ROOT, port) in self._kept.ports):
            return Doorbell(os.dup(self._kept.bells[0]), Route.DIRECT)

    def claim_connection_doorbell(self, connection: int, flag: int = 0) -> Doorbell:
        with self._call(HypercallCode.CLAIM_DOORBELL, (ROOT, connection) in self._kept.connections):
            return Doorbell(os.dup(self._kept.bells[1]), Route.DIRECT)

    def map_partition_pages(
        self,
        source_partition: int,
        source_gpfn: int,
        pages: int,
        gpfn: int,
        flags: MapFlags = MapFlags.READ,
        partition: int = PARTITION_SELF,
    ) -> list[MappedSlot]:
        with self._call(HypercallCode.MAP_GPA_PAGES, gpfn not in self._kept.mapped):
            self._kept.mapped[gpfn] = source_gpfn
        return self._slots([gpfn])

    def claim_gpa_pages(self, gpfn: int, pages: int) -> list[MappedSlot]:
        with self._call(HypercallCode.CLAIM_GPA_PAGES, gpfn in self._kept.mapped):
            pass
        return self._slots([gpfn])

    def _slots(self, gpfns: Sequence[int]) -> list[MappedSlot]:
        kept = self._kept
        return [
            MappedSlot(gpfn, kept.mapped[gpfn], kept.pages, MapFlags.READ, os.dup(kept.slot.fd))
            for gpfn in gpfns
        ]

    def unmap_gpa_pages(self, gpfn: int, pages: int, partition: int = PARTITION_SELF) -> int:
        with self._call(HypercallCode.UNMAP_GPA_PAGES):
            found = [one for one in self._kept.mapped if gpfn <= one < gpfn + pages]
            for one in found:
                del self._kept.mapped[one]
        return len(found)

    def post_message(self, connection: int, message_type: int, payload: bytes) -> None:
        with self._call(HypercallCode.POST_MESSAGE):
            self._kept.posted.append(payload)

    def get_posted_messages(self, port: int, partition: int = PARTITION_SELF) -> int:
        return len(self._kept.posted)

    def get_port_counts(self, port: int, partition: int = PARTITION_SELF) -> PortCounts:
        waiting = len(self._kept.to_root) - 1  # the first one stands in the slot
        delivered = self._kept.received + 1
        with self._call(HypercallCode.GET_PORT_COUNTS):
            return PortCounts(delivered + waiting, 0, 0, delivered, waiting)


def _owner(partition: int) -> int:
    return ROOT if partition == PARTITION_SELF else partition


class AnyGuest(Protocol):
    @property
    def has_left(self) -> bool: ...
    def take(self) -> None:
        """All messages that were posted to it."""


class Guest:
    """Connects, opens its disk's channel, closes it, leaves; one step when the last one has been answered."""

    def __init__(self, kept: Kept) -> None:
        self._kept, self._client = kept, ChannelClient()
        self.heard: list[object] = []
        self._relid = self._gpadl = 0
        self._send(self._client.start())

    @property
    def has_left(self) -> bool:
        return any(isinstance(one, events.Unloaded) for one in self.heard)

    def take(self) -> None:
        """All messages that were posted to it."""
        while self._kept.taken < len(self._kept.posted):
            self._kept.taken += 1
            self._send(self._client.receive(self._kept.posted[self._kept.taken - 1]))

    def _send(self, outputs: Sequence[events.Output]) -> None:
        for output in outputs:
            if isinstance(output, events.SendMessage):
                self._kept.send(output.payload)
                continue
            self.heard.append(output)
            self._go_on(output)

    def _go_on(self, output: events.Output) -> None:
        client = self._client
        match output:
            case events.Connected():
                self._send(client.request_offers())
            case events.Offered(offer):
                self._relid = offer.relid
            case events.AllOffersDelivered():
                rings = GpaRange.contiguous(SLOT_GPFN, RINGS_PAGES * PAGE_BYTES)
                self._gpadl, sent = client.create_gpadl(self._relid, [rings])
                self._send(sent)
            case events.GpadlCreated(gpadl, 0):
                self._send(client.open(self._relid, gpadl, RINGS_PAGES // 2))
            case events.Opened(relid, 0):
                self._send(client.close(relid))
                self._send(client.teardown_gpadl(self._gpadl))
            case events.GpadlTornDown():
                self._send(client.unload())


class _Root:
    """One root's life: as partitions/root.py lives it, with one guest."""

    def __init__(self, kept: Kept, guest: AnyGuest, dies_at: int | None, devices: Devices) -> None:
        self._kept, self._guest, self._devices = kept, guest, devices
        self._calls = Hypercalls(kept, dies_at)
        self._saved = SavedState(memoryview(kept.saved))
        self._bus: GuestBus | None = None
        self._received = ReceivedMessages(self._calls)

    def _save(self) -> None:
        assert self._bus is not None
        self._calls.pass_by()
        self._saved.save({"guests": [self._bus.to_state()], "received": self._received.to_state()})
        self._calls.pass_by()

    async def live(self) -> dict[str, Any]:
        """Until the guest has left; what is then saved."""
        async with trio.open_nursery() as nursery:
            resources = RootResources(
                self._calls,
                ROOT,
                memoryview(bytearray(PAGE_BYTES)),
                nursery,
                lambda kind, **fields: None,
                self._save,
                self._saved.record,
                self._saved.seam,
            )
            self._bus = bus = GuestBus(resources, GUEST, "guest", 1)
            if (GUEST, MESSAGE_CONNECTION) not in self._kept.connections:
                bus.connect()
                self._saved.format()
                bus.offer(UUID(int=1), self._devices["disk0"], _PLAN)
            else:
                state = self._saved.load()
                self._received.adopt(state["received"], state.get("last_message"))
                relids = bus.take_over(state["guests"][0], self._devices, {"disk0": _PLAN})
                for relid in relids:
                    bus.replay(relid)
                for relid in relids:
                    bus.serve(relid)
                bus.resume()
            while not self._guest.has_left:
                self._guest.take()
                if self._kept.to_root:
                    payload = self._kept.to_root[0]
                    if self._received.is_new(root_message_port(GUEST), payload):
                        bus.receive(payload)
                    self._kept.to_root.popleft()
                    self._kept.received += 1
                else:
                    await trio.sleep(0)  # a channel is being closed
            return bus.to_state()

    def bury(self) -> None:
        """End its threads, as a death does."""
        if self._bus is not None:
            stop_all(self._bus.workers())
        self._bus = None


def run(
    kept: Kept, guest: AnyGuest, dies_at: int | None = None, devices: Devices = DEVICES
) -> tuple[int, dict[str, Any] | None]:
    """One root: at how many moments it could have died, and what it saved at last, unless it did die."""
    open_before = _open_descriptors()
    gc.freeze()  # what was there before need not be looked through again at each death
    root, state = _Root(kept, guest, dies_at, devices), None

    async def live(root: _Root) -> None:
        nonlocal state
        with trio.fail_after(PATIENCE_S):
            state = await root.live()

    try:
        trio.run(live, root)
    except* Died:
        pass
    except* trio.TrioInternalError:  # so trio calls what leaves a function that a thread asked for
        assert root._calls.dead
    passes = root._calls.passes
    root.bury()
    del root
    gc.collect()
    gc.unfreeze()
    for fd in _open_descriptors() - open_before:
        with suppress(OSError):  # the folder's own
            os.close(fd)
    return passes, state


def _open_descriptors() -> set[int]:
    return {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
