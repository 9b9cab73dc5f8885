"""A guest whose threads all come at once: what is made at first use is made once, and no page number is given twice."""

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Final, TypeVar, cast

import pytest

from bus.memory import MemorySlot
from partitions import child
from partitions.vp import reference_clock
from partitions.vsc.channel_memory import ChannelMemory
from runtime.abi import HvStatus, HypercallCode, HypercallError, MapFlags
from runtime.hypercalls.caller import Birth, HypercallPort, MappedSlot
from runtime.machine.console import ConsoleWriter, console_pair

THREADS: Final = 2
MEETING_S: Final = 0.1  # for the other thread to come in, too; where it is kept out it does not
_T = TypeVar("_T")


class Meeting:
    """Where both threads are at the same time; or one, because the other is kept out."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(THREADS)
        self.visits = 0

    def hold(self) -> None:
        self.visits += 1
        with contextlib.suppress(threading.BrokenBarrierError):
            self._barrier.wait(MEETING_S)


def all_at_once(body: Callable[[], _T]) -> list[_T]:
    """What each of the threads got; what one raised is raised here."""
    results: list[_T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(body())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error
    return results


class Hypervisor:
    """Its answers about pages: what is mapped is not mapped again, and who asks is held up."""

    def __init__(self) -> None:
        self.meeting = Meeting()
        self.mapped: set[int] = set()

    def map_gpa_pages(self, gpfn: int, pages: int) -> MappedSlot:
        self.meeting.hold()
        if not self.mapped.isdisjoint(wanted := range(gpfn, gpfn + pages)):
            raise HypercallError(HypercallCode.MAP_GPA_PAGES, HvStatus.OBJECT_IN_USE)
        self.mapped.update(wanted)
        with MemorySlot.create(pages, gpfn=gpfn, name="channel") as slot:
            return MappedSlot(gpfn, gpfn, pages, MapFlags(0), os.dup(slot.fd))

    def unmap_gpa_pages(self, gpfn: int, pages: int) -> None:
        self.mapped.difference_update(range(gpfn, gpfn + pages))

    def claim_reference_page(self) -> int:
        self.meeting.hold()
        with MemorySlot.create(1, gpfn=0, name="reference", peers_may_write=False) as slot:
            return os.dup(slot.fd)


def test_two_channels_that_are_opened_at_once_have_pages_of_their_own() -> None:
    hypervisor = Hypervisor()
    memory = ChannelMemory(cast(HypercallPort, hypervisor))
    slots = all_at_once(lambda: memory.make(3))
    assert len({slot.gpfn for slot in slots}) == THREADS
    for slot in slots:
        memory.drop(slot)
    assert not hypervisor.mapped
    memory.close()


def test_a_partition_connects_to_its_bus_once(monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = Meeting()

    def connect(*_: object) -> object:
        meeting.hold()
        return object()

    monkeypatch.setattr(child, "VmbusGuest", connect)
    ours, theirs = console_pair()
    with ours:
        birth = Birth(1, "guest", "program", {}, [], [])
        partition = child.Partition(birth, cast(HypercallPort, None), ConsoleWriter(theirs.detach()))
        first, second = all_at_once(lambda: partition.vmbus)
        partition.console._socket.close()
    assert first is second
    assert meeting.visits == 1


def test_the_reference_page_is_claimed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hypervisor = Hypervisor()
    monkeypatch.setattr(reference_clock, "reference_time", lambda _: 1)
    clock = reference_clock.ReferenceClock(cast(HypercallPort, hypervisor))
    assert all_at_once(clock.read) == [1, 1]
    assert hypervisor.meeting.visits == 1
    assert clock._page is not None
    clock._page.close()
