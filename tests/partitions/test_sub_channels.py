"""Sub-channels of a disk: asked for on its first channel, offered by the root, gone with it; while roots die."""

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any, cast
from uuid import UUID

import pytest

from bus import channel_events as events
from bus import guids
from bus.memory import PAGE_BYTES
from bus.packets import GpaRange
from partitions.stack.offered_device import OfferedDevice
from partitions.storage._blockio import DeviceLock
from partitions.storage.backends import MemoryBackend
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskProtocolError
from partitions.storage.protocol import ChannelProperties
from partitions.storage.queues import Queue, SubChannelRequests
from partitions.storage.session import Session, SessionState
from tests.partitions.kept_machine import RINGS_PAGES, SLOT_GPFN, Guest, Kept, run
from tests.partitions.storage_pair import connected

SIZE = 1 << 20
BOOT_PASSES = 14  # of test_take_over: until the first save is complete
ASKED = 2  # sub-channels, of which the guest opens one


class _Idle:
    def replay(self) -> None: ...
    def serve(self, stop: threading.Event) -> None:
        stop.wait()

    def statistics(self) -> dict[str, int]:
        return {}


class _Asks(_Idle):
    """A primary whose guest has asked, as its session says."""

    def __init__(self) -> None:
        session = Session(ChannelProperties(7, True), SessionState.READY, 0x600, ASKED)
        self.sub_channel_requests = SubChannelRequests(session)


class _Device:
    name = "disk0"
    interface = guids.SCSI

    def open(self, *_: object) -> _Idle:
        return _Asks()

    def open_queue(self, index: int, *_: object) -> _Idle:
        assert 0 < index <= ASKED
        return _Idle()

    def close(self) -> None: ...


DEVICES = {"disk0": cast(OfferedDevice, _Device())}


class QueueGuest(Guest):
    """Opens its disk and one of two sub-channels, and closes the first one alone."""

    def __init__(self, kept: Kept) -> None:
        self._subs: dict[int, int] = {}  # relid by index
        self._rescinded: set[int] = set()
        super().__init__(kept)

    def _go_on(self, output: events.Output) -> None:
        client = self._client
        match output:
            case events.Offered(offer) if offer.sub_channel_index:
                assert offer.instance == UUID(int=1)
                self._subs[offer.sub_channel_index] = offer.relid
                if len(self._subs) == ASKED:
                    rings = GpaRange.contiguous(SLOT_GPFN, RINGS_PAGES * PAGE_BYTES)
                    self._sub_gpadl, sent = client.create_gpadl(self._subs[1], [rings])
                    self._send(sent)
            case events.GpadlCreated(gpadl, 0) if self._subs:
                self._send(client.open(self._subs[1], gpadl, RINGS_PAGES // 2))
            case events.Opened(relid, 0) if relid == self._relid:
                pass  # the sub-channels' offers follow
            case events.Opened(relid, 0):
                assert relid == self._subs[1]
                self._send(client.close(self._relid))
            case events.Rescinded(relid, in_use):
                if in_use:
                    self._send(client.close(relid))
                self._rescinded.add(relid)
                if self._rescinded == set(self._subs.values()):
                    self._send(client.teardown_gpadl(self._gpadl))
            case _:
                super()._go_on(output)


class Undisturbed:
    def __init__(self) -> None:
        with contextlib.closing(Kept()) as kept:
            self.guest = QueueGuest(kept)
            self.passes, self.state = run(kept, self.guest, devices=DEVICES)
            self.posted, self.ports = kept.posted, kept.ports


@pytest.fixture(scope="module")
def undisturbed() -> Undisturbed:
    return Undisturbed()


def live_through(deaths: Iterator[int | None], undisturbed: Undisturbed) -> None:
    """Roots that die at those moments, until one lives. The guest must not have noticed."""
    state: dict[str, Any] | None = None
    with contextlib.closing(Kept()) as kept:
        guest = QueueGuest(kept)
        while state is None:
            _, state = run(kept, guest, next(deaths), DEVICES)
        assert guest.heard == undisturbed.guest.heard
        assert kept.posted == undisturbed.posted, "a message was posted twice, or never"
        assert kept.ports == undisturbed.ports, "ports are left of a channel"
        assert not kept.mapped
        assert undisturbed.state is not None
        assert len(state["offers"]) == len(undisturbed.state["offers"]) == 1, "the sub-channels are gone"


def test_sub_channels_come_with_their_primary_and_go_when_it_closes(undisturbed: Undisturbed) -> None:
    offered = [one.offer for one in undisturbed.guest.heard if isinstance(one, events.Offered)]
    assert [one.sub_channel_index for one in offered] == [0, 1, 2]
    rescinded = {one.relid for one in undisturbed.guest.heard if isinstance(one, events.Rescinded)}
    assert rescinded == {one.relid for one in offered[1:]}


@pytest.mark.parametrize("part", [0, *(pytest.param(one, marks=pytest.mark.soak) for one in range(1, 6))])
def test_a_root_may_die_at_each_moment_of_it(part: int, undisturbed: Undisturbed) -> None:
    for dies_at in range(BOOT_PASSES + 1 + part, undisturbed.passes + 1, 6):
        live_through(iter((dies_at, None)), undisturbed)


@pytest.mark.parametrize("seed", [0, *(pytest.param(one, marks=pytest.mark.soak) for one in range(1, 40))])
def test_so_may_its_successors(seed: int, undisturbed: Undisturbed) -> None:
    rng = random.Random(seed)
    first = rng.randrange(BOOT_PASSES + 1, undisturbed.passes + 1)
    live_through(iter([first, *(rng.randrange(1, 40) for _ in range(8)), None]), undisturbed)


# -- the service


def test_a_guest_that_asks_again_is_heard_once_and_a_successor_says_it_again() -> None:
    heard: list[int] = []
    record = memoryview(bytearray(64))
    with MemoryBackend(SIZE) as backend, connected(backend, queue=Queue(4), record=record) as pair:
        pair.vsp.sub_channel_requests.tell(heard.append)
        disk = Disk(pair.guest, pair.data, pair.data_gpfn, timeout_s=20)
        assert disk.description.max_sub_channels == 3
        assert heard == []
        for count in (1, 1, 0, 3, 2, 3):
            disk.ask_for_sub_channels(count)
        with pytest.raises(DiskProtocolError, match="0xc000000d"):
            disk.ask_for_sub_channels(4)
        disk.write(0, bytes(4096))
        assert heard == [1, 3]
        pair.end()
        with connected(backend, queue=Queue(4), record=record) as successor:
            successor.vsp.sub_channel_requests.tell(heard.append)
            assert heard == [1, 3, 3]


def test_two_queues_are_one_disk() -> None:
    """What was written by one is read by the other, and a flush by either is a flush."""
    lock, rng = DeviceLock(), random.Random(1)
    with (
        MemoryBackend(SIZE) as backend,
        connected(backend, queue=Queue(2), lock=lock) as first,
        connected(backend, queue=Queue(2, 1), lock=lock) as second,
    ):
        primary = Disk(first.guest, first.data, first.data_gpfn, timeout_s=20)
        sub = Disk(second.guest, second.data, second.data_gpfn, timeout_s=20, description=primary.description)
        for _ in range(50):
            writer, reader = rng.sample((primary, sub), 2)
            at, data = rng.randrange(SIZE // 4096) * 4096, rng.randbytes(4096)
            writer.write(at, data)
            assert reader.read(at, 4096) == data
            reader.flush()
        with pytest.raises(DiskProtocolError, match="0xc0000184"):
            sub.ask_for_sub_channels(1)
