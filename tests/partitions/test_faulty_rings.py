"""Rings that their server breaks on purpose: what each fault causes, and that nothing of it stays once it is healed."""

import contextlib
import mmap
import os
import threading
from functools import partial

import pytest

from bus.memory import PAGE_BYTES
from partitions.faults.page_stalls import PageStalls, refusal
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskClosedError, DiskCommandError, DiskError, DiskTimeoutError
from partitions.storage.vsp import StorageVsp
from runtime.chaos.faults.kinds import Group
from runtime.chaos.faults.knobs import Knobs
from runtime.chaos.faults.ring_kinds import INDEX_VALUES, RING_KINDS
from tests.partitions.faulty_machine import FaultyMachine, comes_true, faulty_machine

BLOCK = bytes(range(256)) * 2
THREE = Knobs(space=2, times=3)

# What a client sees of it: nothing.
HARMLESS = (
    "ring-replayed-id",
    "ring-unknown-id",
    "ring-twice",
    "ring-delayed",
    "ring-pending-size",
    "memory-slow",
)
# What waits for the healing: by no means a wrong answer.
WAITING = ("ring-lost", "ring-not-drained", "ring-mask-stuck")
# What ends the channel, and on whose side that is found.
FATAL = {
    "guest": (
        ("ring-bad-write-index", {"ring": "completions"}),
        ("ring-bad-write-index", {"ring": "completions", "value": "unaligned"}),
        ("ring-bad-read-index", {"ring": "requests"}),
        ("ring-bad-completion-header", {"field": "type"}),
        ("ring-bad-completion-header", {"field": "flags"}),
    ),
    "server": (
        ("ring-bad-write-index", {"ring": "requests"}),
        ("ring-bad-write-index", {"ring": "requests", "value": "unaligned"}),
        ("ring-bad-read-index", {"ring": "completions"}),
        ("ring-bad-request-header", {"field": "type"}),
        ("ring-bad-request-header", {"field": "length"}),
        ("ring-bad-request-header", {"field": "offset"}),
        ("ring-bad-request-header", {"field": "flags"}),
    ),
}


def is_native(machine: FaultyMachine) -> bool:
    """Its server has the real channel, and C serves it."""
    service = machine.served._service
    return isinstance(service, StorageVsp) and service._fast is not None and not service._stays_here


def work(disk: Disk, times: int = 8) -> None:
    for number in range(times):
        disk.write(number * 512, BLOCK)
        assert disk.read(number * 512, 512) == BLOCK


@pytest.mark.parametrize("kind", HARMLESS)
def test_a_client_does_not_notice(kind: str) -> None:
    with faulty_machine() as machine, machine.disk() as disk:
        machine.inject(kind, THREE)
        work(disk)
        assert machine.fired == 3
        assert not is_native(machine)
        machine.site.heal(1)
        work(disk)
        assert comes_true(lambda: is_native(machine))
        assert machine.site.counts() == {}
        assert not machine.ends


@pytest.mark.parametrize("kind", WAITING)
def test_it_waits_until_it_is_healed(kind: str) -> None:
    with faulty_machine() as machine, machine.disk() as disk:
        disk.write(0, BLOCK)
        machine.inject(kind)
        done = threading.Event()

        def read() -> None:
            assert disk.read(0, 512) == BLOCK
            done.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert comes_true(lambda: machine.fired > 0)
        if kind != "ring-mask-stuck":  # a client that does not sleep needs no interrupt
            assert not done.wait(0.05)
        machine.site.heal(1)
        reader.join(20)
        assert done.is_set()
        assert disk.read(0, 512) == BLOCK
        assert comes_true(lambda: is_native(machine))


@pytest.mark.parametrize("finder", FATAL)
def test_a_broken_ring_ends_its_channel_and_nothing_else(finder: str) -> None:
    for kind, parameters in FATAL[finder]:
        with faulty_machine() as machine, machine.disk() as disk:
            machine.inject(kind, **parameters)  # type: ignore[arg-type]
            disk.timeout_s = 0.05
            assert comes_true(partial(is_found, machine, disk, finder)), kind
            assert machine.fired > 0, kind
            with pytest.raises(DiskError):
                disk.read(0, 512)
            if finder == "server":
                assert not machine.ends[0].failed, f"{kind}: to the server it is the guest's doing"


def is_found(machine: FaultyMachine, disk: Disk, finder: str) -> bool:
    """By whoever is to find it. A request that was not answered in time says nothing: the server may be slow."""
    try:
        for _ in range(50):  # an index of free room is looked at once in a while
            disk.read(0, 512)
    except DiskTimeoutError:
        pass
    except DiskClosedError:
        return finder == "guest"
    return finder == "server" and bool(machine.ends)


@pytest.mark.parametrize("value", INDEX_VALUES)
def test_an_index_that_nobody_has_looked_at_yet_is_put_right(value: str) -> None:
    """Before a server attaches to the rings again: it would go on from there."""
    with faulty_machine() as machine, machine.disk() as disk:
        machine.inject("ring-bad-read-index", ring="requests", value=value)
        assert disk.read(0, 512) == bytes(512)
        assert machine.fired > 0
        machine.site.heal(1)
        for _ in range(400):  # several laps
            assert disk.read(0, 512) == bytes(512)
        assert not machine.ends


def test_a_storm_of_indexes_is_survived_or_ends_the_channel_in_a_typed_way() -> None:
    with faulty_machine() as machine, machine.disk() as disk:
        machine.inject("ring-index-storm", writes=20_000)
        with contextlib.suppress(DiskClosedError):
            work(disk)
        assert machine.fired > 0
        assert not machine.ends, "its server never looks at its own words"


@pytest.mark.parametrize(
    "kind", ["ring-flip-request", "ring-flip-completion", "ring-double-fetch", "ring-unsolicited"]
)
def test_what_is_spoilt_is_refused_or_answered_but_breaks_no_server(kind: str) -> None:
    with faulty_machine() as machine, machine.disk() as disk:
        disk.timeout_s = 0.02
        if kind == "ring-double-fetch":
            machine.inject(kind, field="payload")
        else:
            machine.inject(kind)
        for number in range(16):
            with contextlib.suppress(DiskError):
                disk.write(number * 512, BLOCK)
        assert comes_true(lambda: machine.fired > 0)  # what was not answered in time is in the ring still
        assert not any(end.failed for end in machine.ends), machine.ends


def test_a_length_that_changes_while_it_is_read_is_read_once() -> None:
    with faulty_machine() as machine, machine.disk() as disk:
        machine.inject("ring-double-fetch", field="length")
        disk.timeout_s = 0.2
        try:
            for _ in range(50):
                disk.read(0, 512)
        except DiskError:  # its server has ended, or was only slow
            assert comes_true(lambda: bool(machine.ends) or bool(disk.poll()))
        assert machine.fired > 0
        assert all(not end.failed for end in machine.ends)


def test_pages_that_are_taken_away_are_refused_each_time_and_are_there_again() -> None:
    with faulty_machine() as machine, machine.disk() as disk:
        disk.write(0, BLOCK)
        machine.inject("memory-revoked", Knobs(times=2))
        for _ in range(2):
            with pytest.raises(DiskCommandError):
                disk.read(0, 512)
        assert disk.read(0, 512) == BLOCK
        machine.site.heal(1)
        assert disk.read(0, 512) == BLOCK


@pytest.mark.skipif(refusal() is not None, reason=str(refusal()))
def test_a_stalled_page_keeps_who_touches_it_and_lets_go() -> None:
    with faulty_machine() as machine, machine.disk() as disk:
        disk.write(0, BLOCK)
        machine.inject("memory-stall", Knobs(interval=2, times=3), delay_ms=30)
        for _ in range(3):
            disk.write(0, BLOCK)
            assert disk.read(0, 512) == BLOCK
        assert machine.fired == 3
        machine.site.heal(1)
        assert disk.read(0, 512) == BLOCK
    stalls, page = PageStalls(), memoryview(mmap.mmap(-1, PAGE_BYTES))
    descriptor = os.memfd_create("content", os.MFD_CLOEXEC)
    os.write(descriptor, BLOCK)
    page[0] = 1
    stalls.stall([page], 20)
    reader = threading.Thread(target=os.preadv, args=(descriptor, [page], 0))  # the kernel touches it
    reader.start()
    reader.join(0.05)
    assert reader.is_alive()
    stalls.end()
    reader.join(20)
    assert not reader.is_alive()
    assert page[:512] == BLOCK
    os.close(descriptor)


def test_every_kind_is_looked_at_above() -> None:
    looked_at = {*HARMLESS, *WAITING, *(kind for kinds in FATAL.values() for kind, _ in kinds)} | {
        "ring-index-storm",
        "ring-flip-request",
        "ring-flip-completion",
        "ring-double-fetch",
        "ring-unsolicited",
        "memory-revoked",
        "memory-stall",
    }
    assert looked_at == {kind.name for kind in RING_KINDS if kind.group in (Group.RING, Group.MEMORY)}


def test_the_rest_of_a_channel_is_its_own() -> None:
    with faulty_machine() as machine, machine.disk() as disk:
        machine.inject("ring-delayed", delay_ms=1)
        work(disk)
        service = machine.served._service
        assert isinstance(service, StorageVsp)
        assert type(service._channel).__name__ == "FaultyChannel"
        assert service._channel.packets_received == machine.served.channel.packets_received


def test_a_completion_that_was_kept_back_comes_when_it_is_healed_and_a_late_one_is_no_harm() -> None:
    with faulty_machine() as machine, machine.disk() as disk:
        disk.timeout_s = 0.1
        machine.inject("ring-lost", Knobs(times=1))
        with pytest.raises(DiskTimeoutError):
            disk.read(0, 512)
        disk.timeout_s = 20
        disk.write(0, BLOCK)
        machine.site.heal(1)
        assert disk.read(0, 512) == BLOCK
        assert comes_true(lambda: is_native(machine))
