"""The guest's end of VMBus: connects, learns what is offered, opens channels, lets go of them.

One thread waits on VP 0's interrupt line and takes the host's messages; whoever opens or closes a channel waits for
the answer here. What is legal when is `bus.channel_client`'s business; this only carries it out.
"""

import contextlib
import itertools
import os
import select
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from bus import tracing
from bus.channel_client import ChannelClient, ClientChannelState
from bus.channel_events import (
    AllOffersDelivered,
    Connected,
    ConnectionRefused,
    GpadlCreated,
    GpadlTornDown,
    Modified,
    Offered,
    Opened,
    Output,
    Rescinded,
    SendMessage,
    StreamRefused,
    Unloaded,
)
from bus.channel_message_codec import Version
from bus.channel_messages import OfferChannel
from bus.memory import PAGE_BYTES, MemorySlot
from bus.native import Channel, Waiting
from bus.packets import GpaRange
from bus.protocol_errors import LocalProtocolError, RemoteProtocolError
from bus.severing import empty, sever
from bus.synic import CHANNEL_MESSAGE, VMBUS_SINT, page_flag
from partitions.stack.vmbus_ports import guest_channel_port
from partitions.vp.processor import VirtualProcessor
from partitions.vsc.arrivals import Arrivals
from partitions.vsc.channel import GuestChannel as GuestChannel
from partitions.vsc.channel_memory import ChannelMemory
from runtime.abi import HvStatus, HypercallError, HypervisorGone, Route
from runtime.hypercalls.caller import HypercallPort

ANSWER_S_MAX: Final = 30.0  # for any one answer of the host; a root that is being replaced answers late
FAREWELL_S_MAX: Final = 2.0  # a host that does not take our leave any more will see us die
POST_ATTEMPTS_MAX: Final = 100  # as Linux: the host's buffers are full, try again after a doubling pause
_POST_PAUSE_MS_MAX: Final = 250.0
_FEATURE_OFFSET: Final = 64  # of feature_bits in a ring's header page
_FEATURE_PENDING_SEND_SIZE: Final = struct.pack("<I", 1)


class VmbusError(Exception):
    """The bus, or one channel, cannot be used. The text says which step failed."""


class VmbusGuest:
    """This partition's connection to its host's VMBus server."""

    def __init__(
        self, vps: Sequence[VirtualProcessor], hypercalls: HypercallPort, partition: int = 0
    ) -> None:
        """Negotiate a version and learn the offers. `partition`: what a trace calls us. Raises VmbusError."""
        self._vps, self._hypercalls = vps, hypercalls
        self._partition = partition
        self._client = ChannelClient()
        self._memory = ChannelMemory(hypercalls)
        self._changed = threading.Condition()
        self.arrivals: Final = Arrivals(self._changed)  # of devices, and departures
        self._facts: set[Output] = set()  # what the host has said and nobody has asked for yet
        self.refused_streams: Final[set[UUID]] = set()  # by endpoint; of those that somebody waits for
        self._all_offers = False
        self._channels: dict[int, GuestChannel] = {}
        self._turns = itertools.count()  # of the VPs, for the channels' interrupts
        self._lost: str | None = None
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        for vp in vps:
            vp.enable((VMBUS_SINT,))
        self._thread = threading.Thread(target=self._receive, name="vmbus", daemon=True)
        self._thread.start()
        self._post_contact()
        answer = self._await(lambda fact: isinstance(fact, Connected | ConnectionRefused), "a version")
        if isinstance(answer, ConnectionRefused):
            raise VmbusError(f"the host refused the connection (state {answer.state})")
        self._do(self._client.request_offers)
        with self._changed:
            self._wait_until(lambda: self._all_offers, "the offers")

    # -- channels

    def find_offer(self, interface: UUID, instance: UUID) -> OfferChannel:
        """Raises VmbusError: the host does not offer it to us."""
        with self._changed:
            if (offer := self._find_offer(interface, instance, 0)) is None:
                raise VmbusError(f"the host does not offer {instance}")
            return offer

    def await_sub_channel(self, primary: OfferChannel, index: int) -> OfferChannel:
        """Its offer, which comes once it was asked for. Raises VmbusError."""

        def find() -> OfferChannel | None:
            return self._find_offer(primary.interface, primary.instance, index)

        with self._changed:
            gone = self._gone(primary.relid)
            self._wait_until(lambda: find() is not None or gone(), "a sub-channel")
            if (offer := find()) is None:
                raise VmbusError(f"the host took the device away: waited for sub-channel {index}")
            return offer

    def _find_offer(self, interface: UUID, instance: UUID, index: int) -> OfferChannel | None:
        wanted = interface, instance, index
        for offer in self._client.offers:
            if (offer.interface, offer.instance, offer.sub_channel_index) == wanted:
                return offer
        return None

    def open_channel(
        self,
        offer: OfferChannel,
        *,
        ring_bytes: int,
        data_bytes: int,
        waiting: str = "adaptive",
        buffers: Sequence[int] = (),
    ) -> GuestChannel:
        """Make a slot for the channel, hand it over, open.

        Args:
            ring_bytes: data area of each of the two rings, whole pages.
            data_bytes: of the buffers behind the rings, whole pages.
            buffers: so many bytes of them each, whole pages, are handed over as GPADLs of their own before the channel
                is opened: the device's protocol has to name them.

        Raises:
            VmbusError: the host refused, or does not answer.
            HypercallError: INSUFFICIENT_MEMORY: this partition has not that many pages left.
        """
        try:
            return self._open_channel(offer, ring_bytes, data_bytes, waiting, buffers)
        except LocalProtocolError as error:  # rescinded between two steps of ours
            raise VmbusError(str(error)) from error
        except HypercallError as error:
            if error.status == HvStatus.INSUFFICIENT_MEMORY:
                raise
            raise VmbusError(f"the channel's doorbells are gone again: {error}") from error

    def _open_channel(
        self, offer: OfferChannel, ring_bytes: int, data_bytes: int, waiting: str, buffers: Sequence[int]
    ) -> GuestChannel:
        ring_pages = 1 + ring_bytes // PAGE_BYTES
        data_offset = 2 * ring_pages * PAGE_BYTES
        pages = 2 * ring_pages + data_bytes // PAGE_BYTES
        with contextlib.ExitStack() as undo:
            slot = self._memory.make(pages)
            undo.callback(self._memory.drop, slot)
            for header in (0, ring_pages * PAGE_BYTES):  # fresh pages are zero, which is an empty ring
                at = header + _FEATURE_OFFSET
                slot.memory[at : at + 4] = _FEATURE_PENDING_SEND_SIZE
            gpadl, at = self._lend(offer.relid, slot, 0, data_offset, undo), data_offset
            lent: list[int] = []
            for size in buffers:
                lent.append(self._lend(offer.relid, slot, at, size, undo))
                at += size
            vp = self._vps[next(self._turns) % len(self._vps)]
            gone = self._gone(offer.relid)
            self._do(lambda: self._client.open(offer.relid, gpadl, ring_pages, vp.index))
            opened = self._await(
                lambda fact: isinstance(fact, Opened) and fact.relid == offer.relid, "the open", gone
            )
            if isinstance(opened, Opened) and opened.status:
                raise VmbusError(f"the host could not open the channel (status {opened.status:#x})")
            undo.callback(self._post_close, offer.relid)
            inbound = self._hypercalls.claim_port_doorbell(guest_channel_port(offer.relid))
            undo.callback(os.close, inbound.fd)
            outbound = self._hypercalls.claim_connection_doorbell(offer.connection_id)
            undo.callback(os.close, outbound.fd)
            by_flag = inbound.route == Route.BROKER
            traced = tracing.of_guest(self._partition, offer.relid, guest_channel_port(offer.relid))
            channel = Channel(
                slot.memory,
                outgoing_offset=0,
                outgoing_bytes=ring_bytes,
                incoming_offset=ring_pages * PAGE_BYTES,
                incoming_bytes=ring_bytes,
                signal_fd=outbound.fd,
                wait_fd=inbound.fd,
                waiting=Waiting(waiting),
                flags=vp.event_flags if by_flag else None,
                flag=page_flag(VMBUS_SINT, offer.relid) if by_flag else -1,
                trace=traced.trace,
                trace_channel=traced.channel,
            )
            undo.pop_all()
        opened_channel = GuestChannel(
            self,
            offer.relid,
            gpadl,
            slot,
            channel,
            data_offset,
            [inbound.fd, outbound.fd],
            by_flag,
            vp.index,
            tuple(lent),
        )
        with self._changed:
            self._channels[offer.relid] = opened_channel
            if self._client.channel_state(offer.relid) is not ClientChannelState.OPEN:
                channel.close()  # rescinded in the meantime
                self._sever(opened_channel)
        return opened_channel

    def _lend(self, relid: int, slot: MemorySlot, offset: int, size: int, undo: contextlib.ExitStack) -> int:
        """Hand pages over; the GPADL's handle. `undo` takes them back."""
        pages = [GpaRange.of_slot(slot, offset, size)]
        gone = self._gone(relid)
        gpadl = self._do(lambda: self._client.create_gpadl(relid, pages))
        created = self._await(
            lambda fact: isinstance(fact, GpadlCreated) and fact.gpadl == gpadl, "a GPADL", gone
        )
        if isinstance(created, GpadlCreated) and created.status:
            raise VmbusError(f"the host refused the channel's pages (status {created.status:#x})")
        undo.callback(self._teardown_gpadl, relid, gpadl)
        return gpadl

    def close(self) -> None:
        """Close every channel, leave the bus, end the thread. Bounded; the host may be gone."""
        for channel in list(self._channels.values()):
            channel.close()
        with contextlib.suppress(VmbusError, HypercallError, HypervisorGone):
            self._do(self._client.unload)
            self._await(lambda fact: isinstance(fact, Unloaded), "the farewell", seconds_max=FAREWELL_S_MAX)
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join(1)
        self._memory.close()
        os.close(self._stop_fd)

    def _move_interrupts(self, opened: GuestChannel, vp_index: int) -> None:
        """The host moves the flags first, and rings: nothing is lost while they stand where we do not look yet."""
        vp = next((vp for vp in self._vps if vp.index == vp_index), None)
        if vp is None:
            raise VmbusError(f"there is no VP {vp_index}")
        if (self._client.version or 0) < Version.V5_3:
            raise VmbusError(
                "before version 5.3 the host does not tell whether it has moved a channel's interrupts"
            )
        relid, gone = opened.relid, self._gone(opened.relid)
        try:
            self._do(lambda: self._client.modify(relid, vp_index))
        except LocalProtocolError as error:
            raise VmbusError(str(error)) from error
        moved = self._await(
            lambda fact: isinstance(fact, Modified) and fact.relid == relid, "the interrupts' move", gone
        )
        if isinstance(moved, Modified) and moved.status:
            raise VmbusError(f"the host did not move the channel's interrupts (status {moved.status:#x})")
        if opened.sets_flag:
            opened.channel.aim(vp.event_flags)

    # -- closing

    def _close_channel(self, opened: GuestChannel) -> None:
        with self._changed:
            if self._channels.pop(opened.relid, None) is None:
                return
        opened.channel.close()
        with contextlib.suppress(
            VmbusError, HypercallError, HypervisorGone
        ):  # whatever the host does, we let go
            self._post_close(opened.relid)
            for gpadl in (*opened.buffers, opened.gpadl):
                self._teardown_gpadl(opened.relid, gpadl)
            if opened.empties:  # the host has said that nobody touches them any more
                empty(opened.slot)
        self._memory.drop(opened.slot)
        for fd in opened.fds:
            os.close(fd)

    def _post_close(self, relid: int) -> None:
        with contextlib.suppress(LocalProtocolError):  # rescinded: nothing is open any more
            self._do(lambda: self._client.close(relid))

    def _teardown_gpadl(self, relid: int, gpadl: int) -> None:
        """Take the pages back, and wait until the host no longer touches them."""
        gone = self._gone(relid)
        try:
            self._do(lambda: self._client.teardown_gpadl(gpadl))
        except LocalProtocolError:
            return
        self._await(
            lambda fact: isinstance(fact, GpadlTornDown) and fact.gpadl == gpadl, "a GPADL's end", gone
        )

    def _sever(self, opened: GuestChannel) -> None:
        """The channel was taken away. What the host said of its pages is true, or it is not: we leave them."""
        with contextlib.suppress(OSError):  # no memory: then they are left when the channel is closed
            sever(opened.slot)
            if opened.empties:
                empty(opened.slot)

    # -- talking to the host

    def _post_contact(self) -> None:
        try:
            self._do(self._client.start)
        except HypercallError as error:
            if error.status != HvStatus.INVALID_CONNECTION_ID:
                raise VmbusError(f"the host cannot be reached: {error}") from error
            self._do(self._client.contact_unreachable)

    def _do(self, step: Callable[[], list[Output] | tuple[int, list[Output]]]) -> int:
        """Take one step of the state machine and carry out what it says. Returns the step's handle, if it has one."""
        with self._changed:
            result = step()
            handle, outputs = result if isinstance(result, tuple) else (0, result)
            self._carry_out(outputs)
        return handle

    def _carry_out(self, outputs: Sequence[Output]) -> None:
        """With the lock held, so that messages leave in the order of the decisions."""
        for output in outputs:
            match output:
                case SendMessage(connection_id, payload):
                    self._post(connection_id, payload)
                case AllOffersDelivered():
                    self._all_offers = True
                case StreamRefused(endpoint):
                    self.refused_streams.add(endpoint)
                case Offered(offer):
                    self.arrivals.offered(offer, first=not self._all_offers)
                case Rescinded(relid, in_use):
                    self.arrivals.rescinded(relid)
                    if (opened := self._channels.get(relid)) is not None:
                        opened.channel.close()
                        self._sever(opened)
                    if in_use:
                        self._carry_out(self._client.close(relid))
                case _:
                    self._facts.add(output)
        self._changed.notify_all()

    def _post(self, connection_id: int, payload: bytes) -> None:
        pause_ms = 0.25
        for attempt in range(POST_ATTEMPTS_MAX):
            try:
                self._hypercalls.post_message(connection_id, CHANNEL_MESSAGE, payload)
            except HypercallError as error:
                full = error.status in (HvStatus.INSUFFICIENT_BUFFERS, HvStatus.INSUFFICIENT_MEMORY)
                if not full or attempt == POST_ATTEMPTS_MAX - 1:
                    raise
            else:
                return
            time.sleep(pause_ms / 1000)
            pause_ms = min(pause_ms * 2, _POST_PAUSE_MS_MAX)

    def _await(
        self,
        matches: Callable[[Output], bool],
        what: str,
        gone: Callable[[], bool] = lambda: False,
        seconds_max: float = ANSWER_S_MAX,
    ) -> Output:
        """Wait for one thing that the host says, and take it off the list.

        VmbusError: it did not come in time, the bus is lost, or its channel was rescinded (`gone`): then it won't.
        """

        def found() -> bool:
            return any(matches(fact) for fact in self._facts)

        with self._changed:
            self._wait_until(lambda: found() or gone(), what, seconds_max)
            if not found():
                raise VmbusError(f"the host took the channel away: waited for {what}")
            fact = next(fact for fact in self._facts if matches(fact))
            self._facts.discard(fact)
        return fact

    def _gone(self, relid: int) -> Callable[[], bool]:
        """Whether the channel is rescinded, or was from here on: whoever sleeps may find it offered again."""
        before = self.arrivals.rescinds[relid]
        return lambda: (
            self._client.channel_state(relid) in (None, ClientChannelState.RESCINDED)
            or self.arrivals.rescinds[relid] != before
        )

    def _wait_until(
        self, condition: Callable[[], bool], what: str, seconds_max: float = ANSWER_S_MAX
    ) -> None:
        if not self._changed.wait_for(lambda: condition() or self._lost is not None, seconds_max):
            raise VmbusError(f"the host did not answer within {seconds_max:g} s: waited for {what}")
        if self._lost is not None and not condition():
            raise VmbusError(f"the bus is lost: {self._lost}")

    def _receive(self) -> None:
        """The control thread: VP 0's line, the host's messages, the state machine."""
        vp, poller = self._vps[0], select.poll()
        poller.register(vp.line_fd, select.POLLIN)
        poller.register(self._stop_fd, select.POLLIN)
        try:
            while all(fd != self._stop_fd for fd, _ in poller.poll()):
                vp.acknowledge()
                for message_type, _, payload in vp.take_messages(VMBUS_SINT):
                    if message_type != CHANNEL_MESSAGE:
                        continue
                    with self._changed, contextlib.suppress(RemoteProtocolError):
                        self._carry_out(self._client.receive(payload))
        except (HypervisorGone, HypercallError) as error:
            with self._changed:
                self._lost = str(error)
                for opened in self._channels.values():
                    opened.channel.close()
                self._changed.notify_all()
