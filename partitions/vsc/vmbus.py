"""The guest's end of VMBus: finds what is offered, opens channels, lets go of them.

Whoever opens or closes a channel waits for the host's answer here, in the `conversation` with it.
"""

import contextlib
import itertools
import os
import struct
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from bus import tracing
from bus.channel_client_states import ClientChannelState
from bus.channel_events import (
    GpadlCreated,
    GpadlTornDown,
    Modified,
    Opened,
    Unloaded,
)
from bus.channel_message_codec import Version
from bus.channel_messages import OfferChannel
from bus.memory import PAGE_BYTES, MemorySlot
from bus.native import Channel, Waiting
from bus.packets import GpaRange
from bus.protocol_errors import LocalProtocolError
from bus.severing import empty, sever
from bus.synic import VMBUS_SINT, page_flag
from partitions.stack.vmbus_ports import guest_channel_port
from partitions.vp.processor import VirtualProcessor
from partitions.vsc.channel import GuestChannel
from partitions.vsc.channel_memory import ChannelMemory
from partitions.vsc.conversation import HostConversation, VmbusError
from runtime.abi import HvStatus, HypercallError, HypervisorGone, Route
from runtime.hypercalls.caller import HypercallPort

FAREWELL_S_MAX: Final = 2.0  # a host that does not take our leave any more will see us die
_FEATURE_OFFSET: Final = 64  # of feature_bits in a ring's header page
_FEATURE_PENDING_SEND_SIZE: Final = struct.pack("<I", 1)


class VmbusGuest(HostConversation):
    """This partition's connection to its host's VMBus server."""

    def __init__(
        self, vps: Sequence[VirtualProcessor], hypercalls: HypercallPort, partition: int = 0
    ) -> None:
        """Negotiate a version and learn the offers. `partition`: what a trace calls us. Raises VmbusError."""
        super().__init__(vps, hypercalls)
        self._partition = partition
        self._memory = ChannelMemory(hypercalls)
        self._channels: dict[int, GuestChannel] = {}
        self._turns = itertools.count()  # of the VPs, for the channels' interrupts
        self._connect()

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
        self._stop_listening()
        self._memory.close()

    def move_interrupts(self, opened: GuestChannel, vp: int) -> None:
        """The host moves the flags first, and rings: nothing is lost while they stand where we do not look yet."""
        taker = next((one for one in self._vps if one.index == vp), None)
        if taker is None:
            raise VmbusError(f"there is no VP {vp}")
        if (self._client.version or 0) < Version.V5_3:
            raise VmbusError(
                "before version 5.3 the host does not tell whether it has moved a channel's interrupts"
            )
        relid, gone = opened.relid, self._gone(opened.relid)
        try:
            self._do(lambda: self._client.modify(relid, vp))
        except LocalProtocolError as error:
            raise VmbusError(str(error)) from error
        moved = self._await(
            lambda fact: isinstance(fact, Modified) and fact.relid == relid, "the interrupts' move", gone
        )
        if isinstance(moved, Modified) and moved.status:
            raise VmbusError(f"the host did not move the channel's interrupts (status {moved.status:#x})")
        if opened.sets_flag:
            opened.channel.aim(taker.event_flags)

    # -- closing

    def close_channel(self, opened: GuestChannel) -> None:
        """As `GuestChannel.close`."""
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

    def _taken_away(self, relid: int) -> None:
        if (opened := self._channels.get(relid)) is not None:
            opened.channel.close()
            self._sever(opened)

    def _bus_is_lost(self) -> None:
        for opened in self._channels.values():
            opened.channel.close()

    def _sever(self, opened: GuestChannel) -> None:
        """The channel was taken away. What the host said of its pages is true, or it is not: we leave them."""
        with contextlib.suppress(OSError):  # no memory: then they are left when the channel is closed
            sever(opened.slot)
            if opened.empties:
                empty(opened.slot)
