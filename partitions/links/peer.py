"""A guest's end of a link or a switch: a channel to another guest, with packets both ways."""

import contextlib
from collections.abc import Iterator
from typing import Final

from bus.memory import PAGE_BYTES, MemorySlot
from bus.native import Channel, RingError, Waiting
from bus.packets import DESCRIPTOR_BYTES, TRAILER_BYTES
from bus.synic import VMBUS_SINT, page_flag
from partitions.child import Partition
from partitions.links.link_device import LINK_INTERFACE
from partitions.links.switch_device import SWITCH_INTERFACE
from partitions.links.windows import first_gpfn_of
from partitions.vsc.channel import GuestChannel
from partitions.vsc.conversation import VmbusError
from runtime.abi import HypercallError

LEAVING_NS_MAX: Final = 10_000_000_000
_PACKET_BYTES_MAX: Final = 0xFFFF * 8 + TRAILER_BYTES  # the length has 16 bits, in units of 8
_IDLE_RING_BYTES: Final = (
    PAGE_BYTES  # of who borrows the other's rings: it has to bring some, and never uses them
)


@contextlib.contextmanager
def open_switch(partition: Partition, name: str) -> Iterator[Channel]:
    """The channel to the root's switch `name`, behind which is the other guest.

    It is left when all that was sent has gone over, though the other guest opens its port later: what is still in
    the ring of a closed channel is lost. It waits LEAVING_NS_MAX at most, for the other guest may have left first; and
    in a ring above 512 KiB for all but the last packets.
    """
    with partition.open_channel(name, SWITCH_INTERFACE, 0) as opened:
        yield opened.channel
        emptied = (
            partition.devices[name]["ring_bytes"] - DESCRIPTOR_BYTES
        )  # room that is there with no packet only
        with contextlib.suppress(RingError):  # closed or broken already
            opened.channel.wait_writable(min(emptied, _PACKET_BYTES_MAX), LEAVING_NS_MAX)


@contextlib.contextmanager
def lend_link(partition: Partition, name: str) -> Iterator[Channel]:
    """The end of link `name` of whoever the config names first: its own rings. Waits for the other end.

    VmbusError: the other did not come, within the time for any answer of the host.
    """
    with partition.open_channel(name, LINK_INTERFACE, 0) as opened:
        opened.empties = False  # the other one hears of our end a little later
        yield opened.channel


@contextlib.contextmanager
def borrow_link(partition: Partition, name: str) -> Iterator[Channel]:
    """The other end: the first one's rings, seen from the other side. Waits and raises as `lend_link`."""
    device, place = partition.devices[name], list(partition.devices).index(name)
    with partition.open_channel(name, LINK_INTERFACE, 0, ring_bytes=_IDLE_RING_BYTES) as opened:
        ring_pages = 1 + device["ring_bytes"] // PAGE_BYTES
        gpfn = first_gpfn_of(place)
        try:
            (mapped,) = partition.hypercalls.claim_gpa_pages(gpfn, 2 * ring_pages)
        except (HypercallError, ValueError) as error:
            raise VmbusError(f"the other end's pages are not there: {error}") from error
        with MemorySlot.from_fd(mapped.fd, mapped.gpfn, mapped.pages) as slot:
            start = (gpfn - mapped.gpfn) * PAGE_BYTES
            _turn_round(partition, opened, slot.memory[start:], device["ring_bytes"], device["waiting"])
            try:
                yield opened.channel
            finally:
                opened.channel.close()


def _turn_round(
    partition: Partition, opened: GuestChannel, rings: memoryview, ring_bytes: int, waiting: str
) -> None:
    """Use these rings instead of our own, with the same doorbells. The lender's outgoing ring is our incoming one."""
    wait_fd, signal_fd = opened.fds
    second = PAGE_BYTES + ring_bytes
    if len(rings) < 2 * second:
        raise VmbusError(f"the other end's rings are smaller than ours of {ring_bytes} bytes")
    vp = next(vp for vp in partition.vps if vp.index == opened.vp)
    channel = Channel(
        rings,
        outgoing_offset=second,
        outgoing_bytes=ring_bytes,
        incoming_offset=0,
        incoming_bytes=ring_bytes,
        signal_fd=signal_fd,
        wait_fd=wait_fd,
        waiting=Waiting(waiting),
        flags=vp.event_flags if opened.sets_flag else None,
        flag=page_flag(VMBUS_SINT, opened.relid) if opened.sets_flag else -1,
    )
    idle, opened.channel = opened.channel, channel
    idle.close()
