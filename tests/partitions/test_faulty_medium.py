"""A medium with faults: each does what its name says, where and as often as it was told, and nothing else."""

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.faults.faulty_medium import FaultyMedium
from partitions.storage.backends import BackendError, MemoryBackend
from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.knobs import Knobs
from runtime.chaos.faults.orders import FaultRefused, Order
from runtime.chaos.faults.storage_kinds import STORAGE_KINDS

SIZE = 64 << 10
BLOCK = 512


class Died(Exception):
    """Where a real one is gone."""


def die() -> None:
    raise Died


@contextlib.contextmanager
def medium() -> Iterator[FaultyMedium]:
    with MemoryBackend(SIZE) as backend:
        yield FaultyMedium(backend, die=die)


def order(kind: str, number: int = 1, knobs: Knobs | None = None, **parameters: int | str) -> Order:
    settled = FAULTS[kind].settle(parameters)
    return Order(number, kind, "disk0", settled, knobs or Knobs(), seed=3)


def read(disk: FaultyMedium, offset: int, length: int) -> bytes:
    content = bytearray(length)
    half = length // 2  # in two pieces, as guests' pages come
    disk.readv([memoryview(content)[:half], memoryview(content)[half:]], offset)
    return bytes(content)


def write(disk: FaultyMedium, offset: int, content: bytes) -> None:
    half = len(content) // 2
    disk.writev([memoryview(content)[:half], memoryview(content)[half:]], offset)


PLACES = st.integers(0, SIZE // BLOCK - 8).map(lambda block: block * BLOCK)


@given(st.lists(st.tuples(PLACES, st.integers(1, 8), st.integers(1, 255)), max_size=12), st.booleans())
def test_with_nothing_armed_or_an_unused_power_cut_it_is_the_disk_itself(
    writes: list[tuple[int, int, int]], cached: bool
) -> None:
    with medium() as disk:
        if cached:
            disk.inject(order("storage-power-cut", knobs=Knobs(times=0)))
        model = bytearray(SIZE)
        for offset, blocks, value in writes:
            content = bytes([value]) * blocks * BLOCK
            write(disk, offset, content)
            model[offset : offset + len(content)] = content
            assert (
                read(disk, offset // 2 // BLOCK * BLOCK, 4096) == model[offset // 2 // BLOCK * BLOCK :][:4096]
            )
        disk.heal(None)
        assert read(disk, 0, SIZE) == model
        left = bytearray(SIZE)
        disk.medium.readv([memoryview(left)], 0)
        assert left == model


@pytest.mark.parametrize("which", ["read", "write", "flush", "discard"])
def test_an_error_hits_what_it_was_told_to_hit(which: str) -> None:
    with medium() as disk:
        disk.inject(order("storage-error", which=which, errno="ENODATA"))
        calls: dict[str, Callable[[], object]] = {
            "read": lambda: read(disk, 0, BLOCK),
            "write": lambda: write(disk, 0, bytes(BLOCK)),
            "flush": disk.flush,
            "discard": lambda: disk.discard(0, BLOCK),
        }
        for verb, call in calls.items():
            if verb == which:
                with pytest.raises(BackendError) as caught:
                    call()
                assert caught.value.errno == errno.ENODATA
            else:
                call()


def test_a_range_is_hit_and_its_neighbours_are_not() -> None:
    with medium() as disk:
        disk.inject(order("storage-full", first=1024, length=512))
        write(disk, 512, bytes(512))
        write(disk, 1536, bytes(512))
        for offset in (1024, 512):
            with pytest.raises(BackendError) as caught:
                write(disk, offset, bytes(1024))
            assert caught.value.errno == errno.ENOSPC


@given(st.integers(0, 5), st.integers(1, 3), st.integers(0, 4))
def test_it_strikes_as_often_as_it_was_told(space: int, interval: int, times: int) -> None:
    with medium() as disk:
        disk.inject(order("storage-lost-write", knobs=Knobs(space=space, interval=interval, times=times)))
        for number in range(20):
            write(disk, number * BLOCK, bytes([1]) * BLOCK)
        kept = [read(disk, number * BLOCK, 1) == b"\1" for number in range(20)]
        assert kept.count(False) == disk.counts()[1].fired == min(times, (20 - space) // interval)
        assert disk.counts()[1].passes == 20


def test_what_each_fault_of_a_write_leaves() -> None:
    content = bytes([7]) * 1024
    expected = {
        "storage-lost-write": (bytes(1024), bytes(1024)),
        "storage-torn-write": (content[:512] + bytes(512), bytes(1024)),
        "storage-misdirected-write": (bytes(1024), content),
    }
    for kind, (here, there) in expected.items():
        with medium() as disk:
            disk.inject(order(kind, shift=8192) if "misdirected" in kind else order(kind))
            write(disk, 4096, content)
            assert (read(disk, 4096, 1024), read(disk, 4096 + 8192, 1024)) == (here, there), kind


@pytest.mark.parametrize("kind", ["storage-corrupt-write", "storage-corrupt-read"])
def test_corruption_is_one_bit(kind: str) -> None:
    with medium() as disk:
        disk.inject(order(kind, knobs=Knobs(times=1)))
        content = bytes([7]) * 1024
        write(disk, 0, content)
        found = read(disk, 0, 1024)
        differing = int.from_bytes(found) ^ int.from_bytes(content)
        assert differing.bit_count() == 1
        write(disk, 0, content)
        assert read(disk, 0, 1024) == content


def test_faults_of_a_read_leave_the_medium_alone() -> None:
    with medium() as disk:
        write(disk, 0, b"a" * 512)
        write(disk, 4096, b"b" * 512)
        disk.inject(order("storage-misdirected-read", knobs=Knobs(times=1), shift=4096))
        disk.inject(order("storage-stale-read", 2, Knobs(space=1, times=1)))
        assert [read(disk, 0, 512)[:1] for _ in range(3)] == [b"b", b"\0", b"a"]


def test_a_flush_fails_or_lies() -> None:
    with medium() as disk:
        disk.inject(order("storage-flush-error", knobs=Knobs(times=1)))
        with pytest.raises(BackendError):
            disk.flush()
        disk.flush()


def test_a_power_cut_takes_what_was_not_flushed() -> None:
    with medium() as disk:
        write(disk, 0, b"a" * 512)
        disk.inject(order("storage-power-cut", knobs=Knobs(space=3, times=1)))
        write(disk, 0, b"b" * 512)
        disk.flush()
        write(disk, 512, b"c" * 512)
        disk.inject(order("storage-flush-lie", 2))
        disk.flush()
        write(disk, 1024, b"d" * 512)
        assert read(disk, 0, 1536) == b"b" * 512 + b"c" * 512 + b"d" * 512
        with pytest.raises(Died):
            write(disk, 1536, b"e" * 512)
        left = bytearray(2048)
        disk.medium.readv([memoryview(left)], 0)
        assert left == b"b" * 512 + bytes(1536)


def test_a_stuck_request_comes_back_when_it_is_healed() -> None:
    with medium() as disk:
        disk.inject(order("storage-stuck", which="read"))
        thread = threading.Thread(target=read, args=(disk, 0, 512))
        thread.start()
        while not disk.counts()[1].fired:
            thread.join(0.001)
        assert thread.is_alive()
        disk.heal(1)
        thread.join(20)
        assert not thread.is_alive()


def test_what_would_never_strike_is_refused() -> None:
    with MemoryBackend(SIZE) as backend:
        backend.read_only = True  # type: ignore[misc]
        disk = FaultyMedium(backend)
        with pytest.raises(FaultRefused):
            disk.inject(order("storage-lost-write"))
        with pytest.raises(FaultRefused):
            disk.inject(order("kill"))
        assert disk.is_idle


def test_every_kind_of_the_catalogue_is_carried_out_here() -> None:
    for kind in STORAGE_KINDS:
        with medium() as disk:
            disk.inject(order(kind.name, knobs=Knobs(times=1)))
            with contextlib.suppress(BackendError, Died):
                if kind.name != "storage-stuck":
                    write(disk, 0, b"x" * 1024)
                    read(disk, 0, 1024)
                    disk.flush()
            assert disk.counts()[1].fired == (kind.name != "storage-stuck"), kind.name
