"""A channel that is rescinded and offered again under its old number, before whoever waits for an answer has looked."""

import fcntl
import os
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from bus import channel_messages as messages
from bus.channel_message_codec import ChannelMessage, FeatureFlags, Side, Version, decode_message
from bus.guids import SCSI
from bus.memory import PAGE_BYTES, REQUIRED_SEALS
from bus.synic import CHANNEL_MESSAGE
from partitions.vp.processor import VirtualProcessor
from partitions.vsc.conversation import VmbusError
from partitions.vsc.vmbus import VmbusGuest
from runtime.hypercalls.caller import HypercallPort

RELID = 1
OFFER = messages.OfferChannel(SCSI, UUID(int=1), 0, 0, bytes(120), 0, 0, RELID, 0xFF, 0, 1, 0x2000 | RELID)
_QUICK = (messages.RescindChannelOffer(RELID), OFFER)


class QuickHost:
    """Answers as a host does, until it gets `instead_of`: then it takes the channel away and offers it anew.

    Both arrive while the guest still holds its lock, so nobody in it can see the time between them.
    """

    index = 0

    def __init__(self, instead_of: type[ChannelMessage]) -> None:
        self.guest: VmbusGuest | None = None
        self.line_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._instead_of, self._queued = instead_of, deque[bytes]()

    # -- its processor

    def enable(self, sints: object) -> None:
        pass

    def acknowledge(self) -> None:
        os.eventfd_read(self.line_fd)

    def take_messages(self, sint: int) -> Iterator[tuple[int, int, bytes]]:
        while self._queued:
            yield CHANNEL_MESSAGE, 0, self._queued.popleft()

    # -- its calls

    def map_gpa_pages(self, gpfn: int, pages: int) -> Any:
        fd = os.memfd_create("pages", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, pages * PAGE_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, REQUIRED_SEALS)
        return SimpleNamespace(fd=fd)

    def unmap_gpa_pages(self, gpfn: int, pages: int) -> None:
        pass

    def post_message(self, connection: int, message_type: int, payload: bytes) -> None:
        message = decode_message(payload, Side.GUEST, Version.V6_0, FeatureFlags.NONE)
        if isinstance(message, self._instead_of):
            assert self.guest is not None
            self._instead_of = type(None)  # type: ignore[assignment]
            for quick in _QUICK:
                self.guest._carry_out(self.guest._client.receive(quick.encode()))
            return
        self._queued += [answer.encode() for answer in _answers(message)]
        os.eventfd_write(self.line_fd, 1)


def _answers(message: ChannelMessage) -> tuple[ChannelMessage, ...]:
    match message:
        case messages.InitiateContact():
            return (messages.VersionResponse(1, 0, 4, 0),)
        case messages.RequestOffers():
            return OFFER, messages.AllOffersDelivered()
        case messages.GpadlHeader(relid, gpadl):
            return (messages.GpadlCreated(relid, gpadl, 0),)
        case messages.OpenChannel(relid, open_id):
            return (messages.OpenChannelResult(relid, open_id, messages.STATUS_FAILURE),)
        case messages.GpadlTeardown(_, gpadl):
            return (messages.GpadlTorndown(gpadl),)
        case messages.Unload():
            return (messages.UnloadResponse(),)
    return ()


@pytest.fixture
def guest_of() -> Iterator[Callable[[type[ChannelMessage]], VmbusGuest]]:
    made: list[tuple[VmbusGuest, QuickHost]] = []

    def make(instead_of: type[ChannelMessage]) -> VmbusGuest:
        host = QuickHost(instead_of)
        guest = VmbusGuest([cast(VirtualProcessor, host)], cast(HypercallPort, host))
        host.guest = guest
        made.append((guest, host))
        return guest

    yield make
    for guest, host in made:
        guest.close()
        os.close(host.line_fd)


@pytest.mark.parametrize("asked", [messages.GpadlHeader, messages.OpenChannel, messages.GpadlTeardown])
def test_who_waits_hears_of_a_rescind_though_the_channel_is_there_again(
    asked: type[ChannelMessage], guest_of: Callable[[type[ChannelMessage]], VmbusGuest]
) -> None:
    """Otherwise it would wait for an answer that nobody owes it, as long as it waits for any."""
    guest = guest_of(asked)
    with pytest.raises(VmbusError, match="the host took the channel away"):
        guest.open_channel(OFFER, ring_bytes=PAGE_BYTES, data_bytes=PAGE_BYTES)
    assert guest.find_offer(OFFER.interface, OFFER.instance) == OFFER
