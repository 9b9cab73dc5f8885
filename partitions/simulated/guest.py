"""A simulated guest: connects to its bus, opens its disk, loads it in bursts. It does what follows from what comes."""

import contextlib
import os
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from bus import guids
from bus.channel_client import ChannelClient
from bus.channel_events import (
    AllOffersDelivered,
    Connected,
    GpadlCreated,
    GpadlTornDown,
    Opened,
    Output,
    Rescinded,
    SendMessage,
)
from bus.channel_messages import OfferChannel
from bus.memory import PAGE_BYTES, MemorySlot
from bus.native import Channel, Waiting
from bus.packets import GpaRange
from bus.protocol_errors import RemoteProtocolError
from bus.synic import CHANNEL_MESSAGE, VMBUS_SINT
from partitions.guests.verified import Plan
from partitions.machine_plan import instance_guid
from partitions.simulated.clock import NS_PER_MS
from partitions.simulated.costs import Costs
from partitions.simulated.kernel import Kernel, SimulatedHypercalls
from partitions.simulated.load import BurstyLoad, KeptHistory
from partitions.simulated.process import Process
from partitions.stack.vmbus_ports import guest_channel_port
from partitions.storage.buffers import BufferPool
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskError
from partitions.storage.handshake import ANSWER_BYTES, Answer, Ask, DiskDescription, set_up
from partitions.storage.requests import Requests, Segment, Ticket
from runtime.abi import HvStatus, HypercallError, HypervisorGone
from runtime.chaos.blocks import BLOCK_BYTES

RING_BYTES: Final = 8 * PAGE_BYTES
_FIRST_GPFN: Final = 0x1000
_POST_AGAIN_NS: Final = NS_PER_MS
_NOT_NOW: Final = (HvStatus.INSUFFICIENT_BUFFERS, HvStatus.INSUFFICIENT_MEMORY)


class SimulatedGuest:
    """One boot of one guest."""

    def __init__(
        self,
        process: Process,
        kernel: Kernel,
        costs: Costs,
        rng: Random,
        partition: int,
        device: str,
        plan: Plan,
        burst: int,
        report: Callable[..., None],
        wake_server: Callable[[int], None],
        on_over: Callable[[], None],
    ) -> None:
        """
        Args:
            wake_server: a doorbell of the channel with this connection id was rung.
            on_over: the load has come to its end, or was given up.
        """
        self.process, self.partition, self._device, self._plan = process, partition, device, plan
        self._kernel, self._costs, self._rng, self._burst = kernel, costs, rng, burst
        self._report, self._wake_server, self._on_over = report, wake_server, on_over
        self._call = SimulatedHypercalls(kernel, process.name)
        self._client = ChannelClient()
        self._outbox: list[tuple[int, bytes]] = []
        self._offer: OfferChannel | None = None
        self._slot: MemorySlot | None = None
        self._gpadl = 0
        self.channel: Channel | None = None
        self._asked: tuple[Requests, Ticket, Ask] | None = None  # of the set-up
        self._steps = set_up()
        self._data_pool: BufferPool | None = None
        self.load: BurstyLoad | None = None
        self._is_awake = False
        self._thinks = False

    @property
    def data_bytes(self) -> int:
        return self._plan.depth * self._plan.blocks_max * BLOCK_BYTES

    def start(self) -> None:
        self._call.enable_synic(0, (VMBUS_SINT,))
        self._carry_out(self._client.start())

    def close(self) -> None:
        """The process is gone."""
        if self.channel is not None:
            self.channel.close()
        if self._slot is not None:
            self._slot.close()

    # -- the bus

    def take_messages(self) -> None:
        """The VP's line was raised."""
        inbox = self._kernel.inboxes.get(self.partition)
        while inbox:
            message_type, _, payload = inbox[0]
            self._kernel.take_message(self.process.name)
            if message_type == CHANNEL_MESSAGE:
                with contextlib.suppress(RemoteProtocolError):
                    self._carry_out(self._client.receive(payload))

    def _carry_out(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            match output:
                case SendMessage(connection, payload):
                    self._outbox.append((connection, payload))
                case Connected():
                    self._carry_out(self._client.request_offers())
                case AllOffersDelivered():
                    self._look_for_the_disk()
                case GpadlCreated(gpadl, 0) if gpadl == self._gpadl and self._offer is not None:
                    pages = 1 + RING_BYTES // PAGE_BYTES
                    self._carry_out(self._client.open(self._offer.relid, gpadl, pages))
                case Opened(relid, 0) if self._offer is not None and relid == self._offer.relid:
                    self._opened()
                case Rescinded(relid, in_use):
                    if self.channel is not None:
                        self.channel.close()
                        self.wake()
                    if in_use:
                        self._carry_out(self._client.close(relid))
                case GpadlTornDown(gpadl) if gpadl == self._gpadl:
                    self._torn_down()
                case GpadlCreated() | Opened():
                    self._report("bus_refused", what=type(output).__name__)
                    self._on_over()
                case _:
                    pass
        self._post()

    def _post(self) -> None:
        while self._outbox:
            connection, payload = self._outbox[0]
            try:
                self._call.post_message(connection, CHANNEL_MESSAGE, payload)
            except HypercallError as error:
                if error.status not in _NOT_NOW:
                    self._outbox.clear()
                    return
                self.process.after(_POST_AGAIN_NS, self._post)
                return
            except HypervisorGone:
                return
            self._outbox.pop(0)

    def _torn_down(self) -> None:
        """Its pages are its own again."""

    def _look_for_the_disk(self) -> None:
        wanted = guids.SCSI, instance_guid(self.process.name, self._device)
        offers = [one for one in self._client.offers if (one.interface, one.instance) == wanted]
        if not offers:
            return
        (self._offer,) = offers
        ring_pages = 2 * (1 + RING_BYTES // PAGE_BYTES)
        mapped = self._call.map_gpa_pages(_FIRST_GPFN, ring_pages + self.data_bytes // PAGE_BYTES)
        self._slot = MemorySlot.from_fd(mapped.fd, mapped.gpfn, mapped.pages)
        pages = [GpaRange.of_slot(self._slot, 0, ring_pages * PAGE_BYTES)]
        self._gpadl, outputs = self._client.create_gpadl(self._offer.relid, pages)
        self._carry_out(outputs)

    def _opened(self) -> None:
        assert self._slot is not None
        assert self._offer is not None
        inbound = self._call.claim_port_doorbell(guest_channel_port(self._offer.relid))
        outbound = self._call.claim_connection_doorbell(self._offer.connection_id)
        self.channel = Channel(
            self._slot.memory,
            outgoing_offset=0,
            outgoing_bytes=RING_BYTES,
            incoming_offset=PAGE_BYTES + RING_BYTES,
            incoming_bytes=RING_BYTES,
            signal_fd=outbound.fd,
            wait_fd=inbound.fd,
            waiting=Waiting("block"),
        )
        os.close(inbound.fd)
        os.close(outbound.fd)
        rings = 2 * (PAGE_BYTES + RING_BYTES)
        self._data_pool = BufferPool(self._slot.memory[rings:], self._slot.gpfn + rings // PAGE_BYTES)
        self._steps = set_up()
        self._ask(Requests(self.channel), next(self._steps))
        self._turn_over()

    # -- the disk's set-up, a question a turn

    def _ask(self, requests: Requests, ask: Ask) -> None:
        assert self._data_pool is not None
        segment = None
        if ask.data_bytes:
            segment = Segment(self._data_pool.allocate(ANSWER_BYTES), 0, ask.data_bytes)
        ticket = requests.start_packet(ask.packet, segment)
        self._asked = requests, ticket, ask
        self._buffer = segment.buffer if segment else None

    def _answered(self) -> None:
        assert self.channel is not None
        assert self._asked is not None
        requests, ticket, ask = self._asked
        requests.finish(self.channel.receive_batch(1, 0))
        self.channel.release()
        if not ticket.done:
            return
        if ticket.reply is None:
            self._on_over()
            return
        data = b""
        if self._buffer is not None:
            data = bytes(self._buffer.view[: ask.data_bytes])
            self._buffer.release()
        try:
            self._ask(requests, self._steps.send(Answer(ticket.reply, data)))
        except StopIteration as stop:
            self._asked = None
            self._begin(stop.value, requests.sequence)
        except DiskError as error:
            self._report("disk_refused", error=str(error))
            self._on_over()

    def _begin(self, description: DiskDescription, sequence: int) -> None:
        assert self._data_pool is not None
        assert self.channel is not None
        pool = self._data_pool
        disk = Disk(self.channel, pool._data, pool.gpfn, description=description)
        disk.requests.sequence = sequence  # a late answer to the set-up matches nothing
        self.load = BurstyLoad(disk, KeptHistory(self.process.clock, self._plan), self._plan, self._report)
        self._disk = disk
        self._think()

    # -- the load

    def wake(self) -> None:
        """Its channel's doorbell has rung."""
        if not self._is_awake and self.channel is not None:
            self._is_awake = True
            self.process.after(self._costs.wake, self._look)

    def _look(self) -> None:
        self._is_awake = False
        if self.channel is None:
            return
        if self._asked is not None:
            self._answered()
        elif self.load is not None and not self.load.is_over:
            self._disk.poll()
            if self.channel.is_closed:
                self.load.give_up()
                self._on_over()
                return
            if not self.load.in_flight:
                self._think()
        self._turn_over()

    def _think(self) -> None:
        assert self.load is not None
        if self.load.has_enough:
            if not self.load.in_flight:
                self.load.finish_load()
                self._on_over()
        elif not self._thinks:
            self._thinks = True
            self.process.after(self._rng.expovariate(1) * self._costs.think, self._thought)

    def _thought(self) -> None:
        self._thinks = False
        self.act()

    def act(self) -> None:
        """Ask for something now."""
        load = self.load
        if load is None or load.is_over:
            return
        if load.has_enough:
            self._think()
            return
        goes_on = load.burst(self._burst, self._rng)
        self.process.after(self._plan.patience_s * 1e9 + 1, self.look_at_patience)
        if not goes_on:
            self._on_over()
            return
        self._turn_over()

    def end_soon(self) -> None:
        """As SIGTERM does."""
        if self.load is not None and not self.load.is_over:
            self.load.end_soon()
            if not self.load.in_flight:
                self.load.finish_load()
                self._on_over()

    def look_at_patience(self) -> None:
        """Whoever waits too long gives up."""
        if self.load is not None and not self.load.is_over:
            oldest = self.load.oldest_ns
            if oldest is not None and self.process.clock.now_ns - oldest > self._plan.patience_s * 1e9:
                self._report("verified_gave_up", in_flight=self.load.in_flight)
                self.load.give_up()
                self._on_over()

    def _turn_over(self) -> None:
        """Before it sleeps: whoever was rung is woken, and what came meanwhile is not slept over."""
        assert self.channel is not None
        assert self._offer is not None
        self._wake_server(self._offer.connection_id)
        if not self.channel.is_closed and not self.channel.arm():
            self.wake()
