"""The flight recorder: the last events in order, whatever was overwritten; and what it costs a hypercall."""

import mmap
import time
from collections.abc import Callable
from typing import Final

import pytest

from runtime.abi import HvStatus, HypercallCode
from runtime.hypervisor.dispatch import Hypervisor
from runtime.hypervisor.recorded import EFFECT_NAMES, RecordedHypervisor
from runtime.hypervisor.recorder import (
    EVENTS_KEPT,
    RECORDER_BYTES,
    EventKind,
    Recorder,
    RecordingError,
    read_events,
    read_partitions,
)
from runtime.simulation.world import World

ROUNDS: Final = 15
CALLS: Final = 1_500


@pytest.fixture
def memory() -> mmap.mmap:
    return mmap.mmap(-1, RECORDER_BYTES)


def recorded(memory: mmap.mmap) -> RecordedHypervisor:
    world = World()
    hypervisor = RecordedHypervisor(Recorder(memory), world, world)
    world.carry_out(hypervisor.adopt_root("root", 4096, {}, 100))
    return hypervisor


@pytest.mark.parametrize("count", [0, 1, EVENTS_KEPT - 1, EVENTS_KEPT, EVENTS_KEPT + 1, 3 * EVENTS_KEPT + 5])
def test_the_last_events_are_kept_in_order(memory: mmap.mmap, count: int) -> None:
    recorder = Recorder(memory)
    for number in range(1, count + 1):
        recorder.record(EventKind.CALL, number * 10, number % 7, HypercallCode.POST_MESSAGE, number)
    events = read_events(memory[:], EFFECT_NAMES)
    assert [event.number for event in events] == list(range(max(count - EVENTS_KEPT, 0) + 1, count + 1))
    assert all(event.when_ns == event.number * 10 == event.took_ns * 10 for event in events)
    assert [event.number for event in read_events(memory[:], EFFECT_NAMES, since=count - 3)] == list(
        range(max(count - 2, 1), count + 1)
    )


def test_a_record_that_is_being_overwritten_is_left_out(memory: mmap.mmap) -> None:
    recorder = Recorder(memory)
    for number in range(10):
        recorder.record(EventKind.CALL, number, 1)
    data = bytearray(memory[:])
    place = data.index((5).to_bytes(8, "little") + (4).to_bytes(8, "little"))
    data[place : place + 8] = bytes(8)
    assert [event.number for event in read_events(bytes(data), {})] == [1, 2, 3, 4, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("data", [b"", b"x" * RECORDER_BYTES, bytes(RECORDER_BYTES - 1)])
def test_what_is_no_recording_is_refused(data: bytes) -> None:
    with pytest.raises(RecordingError):
        read_events(data, {})
    with pytest.raises(RecordingError):
        read_partitions(data)


def test_calls_effects_and_the_partition_table_are_told(memory: mmap.mmap) -> None:
    hypervisor = recorded(memory)
    create, deposit, withdraw, delete = (
        int(code)
        for code in (
            HypercallCode.CREATE_PARTITION,
            HypercallCode.DEPOSIT_MEMORY,
            HypercallCode.WITHDRAW_MEMORY,
            HypercallCode.DELETE_PARTITION,
        )
    )
    reply, _ = hypervisor.handle(1, create, {}, now_ns=5)
    child = reply.values["partition"]
    assert isinstance(child, int)
    hypervisor.handle(1, deposit, {"partition": child, "pages": 64}, now_ns=6)
    hypervisor.handle(1, deposit, {"partition": child, "pages": 1 << 30}, now_ns=7)
    hypervisor.handle(1, 0xDEAD, {}, now_ns=8)
    hypervisor.handle(1, "garbage", None, now_ns=9)
    events = read_events(memory[:], EFFECT_NAMES)
    assert [event.what for event in events] == [
        "started",
        "CREATE_PARTITION",
        "DEPOSIT_MEMORY",
        "DEPOSIT_MEMORY",
        "call 0x0",
        "call 0x0",
    ]
    assert "Announce" in events[1].effects
    assert events[3].status == HvStatus.INSUFFICIENT_MEMORY.name
    rows = read_partitions(memory[:])
    assert [(row["id"], row["state"], row["parent"]) for row in rows] == [
        (1, "active", None),
        (child, "uninitialized", 1),
    ]
    assert rows[1]["pages"] == 64
    hypervisor.handle(1, withdraw, {"partition": child, "pages": 64})
    hypervisor.handle(1, delete, {"partition": child})
    assert [row["id"] for row in read_partitions(memory[:])] == [1]
    assert hypervisor.calls[deposit].made == 2
    assert hypervisor.calls[deposit].refused == 1


def test_recording_changes_no_answer(memory: mmap.mmap) -> None:
    """The same calls to both: the same replies and effects."""
    plain, watched = Hypervisor(World(), World()), RecordedHypervisor(Recorder(memory), World(), World())
    for each in (plain, watched):
        each.adopt_root("root", 4096, {}, 100)
    for code in (*map(int, HypercallCode), 0, -1, None, 2**70):
        for args in ({}, {"partition": 1}, {"vp": 0}, None, {"within_ms": 5}):
            assert plain.handle(1, code, args) == watched.handle(1, code, args)


def test_what_recording_costs_beside_a_call(memory: mmap.mmap, capsys: pytest.CaptureFixture[str]) -> None:
    """Deciding alone, the cheapest call: a whole hypercall, with its socket operations, takes several times that."""
    world = World()
    plain = Hypervisor(world, world)
    plain.adopt_root("root", 4096, {}, 100)
    code = int(HypercallCode.GET_PARTITION_ID)

    def best_us(handle: Callable[..., object]) -> float:
        """Of our own processor time: what a busy host gives to others meanwhile costs no call."""
        times = []
        for _ in range(ROUNDS):
            began = time.thread_time_ns()
            for _ in range(CALLS):
                handle(1, code, {}, 0, 1)
            times.append((time.thread_time_ns() - began) / CALLS / 1000)
        return min(times)

    without, with_it = best_us(plain.handle), best_us(recorded(memory).handle)
    with capsys.disabled():
        print(f"\ndeciding {without:.2f} us, recorded {with_it:.2f} us", end=" ")
    assert with_it < 3 * without
