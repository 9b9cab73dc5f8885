"""Orders in memory that outlives both processes: whatever byte one dies at, the other finds a whole set of orders."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.seam import Seam, Step
from partitions.faults.fault_board import BOARD_BYTES, FaultBoard
from partitions.faults.fault_site import FaultSite
from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.knobs import Knobs, Trigger
from runtime.chaos.faults.orders import ARMED_MAX, Counts, FaultRefused, Order

KINDS = ("storage-slow", "ring-lost", "kill-at-step")


def order_of(number: int, kind: str = KINDS[0], knobs: Knobs | None = None) -> Order:
    return Order(number, kind, "disk0", FAULTS[kind].settle({}), knobs or Knobs(), seed=number)


def numbers(board: FaultBoard) -> list[int]:
    return sorted(order.number for order in board.orders())


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12), st.sampled_from(KINDS))))
def test_what_stands_is_what_was_put_and_not_taken(steps: list[tuple[bool, int, str]]) -> None:
    memory = memoryview(bytearray(BOARD_BYTES))
    board, model = FaultBoard(memory), dict[int, Order]()
    for puts, number, kind in steps:
        if puts:
            board.put(order_of(number, kind))
            model.setdefault(number, order_of(number, kind))
        else:
            board.take(number)
            model.pop(number, None)
        assert {order.number: order for order in FaultBoard(memory).orders()} == model
    board.take(None)
    assert numbers(board) == []


def test_a_writer_that_dies_at_any_byte_leaves_what_was_before_or_what_is_after() -> None:
    memory = bytearray(BOARD_BYTES)
    board = FaultBoard(memoryview(memory))
    board.put(order_of(1))
    board.put(order_of(2))
    before = bytes(memory)
    board.put(order_of(3, "kill-at-step"))
    after = bytes(memory)
    seen = set[tuple[int, ...]]()
    changed = [at for at in range(BOARD_BYTES) if before[at] != after[at]]
    torn = bytearray(before)
    for at in changed:  # in any order of stores, one prefix of it
        torn[at] = after[at]
        seen.add(tuple(numbers(FaultBoard(memoryview(bytearray(torn))))))
    for at in reversed(changed):
        torn[at] = before[at]
        seen.add(tuple(numbers(FaultBoard(memoryview(bytearray(torn))))))
    assert seen == {(1, 2), (1, 2, 3)}


@given(st.binary(max_size=200), st.integers(0, BOARD_BYTES - 200))
def test_whatever_stands_there_a_reader_sees_orders_or_none(garbage: bytes, at: int) -> None:
    memory = bytearray(BOARD_BYTES)
    board = FaultBoard(memoryview(memory))
    board.put(order_of(1))
    memory[at : at + len(garbage)] = garbage
    assert numbers(board) in ([], [1])
    assert set(board.counts()) <= {1}


def test_decisions_go_on_in_the_next_process() -> None:
    memory = memoryview(bytearray(BOARD_BYTES))
    knobs = Knobs(probability=30, interval=2, space=3, times=9)
    order = order_of(7, knobs=knobs)
    FaultBoard(memory).put(order)
    whole = Trigger(knobs, order.seed)
    decisions = [whole.strikes() for _ in range(100)]
    found: list[bool] = []
    while len(found) < 100:
        trigger = FaultBoard(memory).trigger(order)  # of another process, every 10 passes
        found += [trigger.strikes() for _ in range(10)]
    assert found == decisions
    assert FaultBoard(memory).counts() == {7: Counts(100, 9)}


def test_said_again_an_order_keeps_its_counts_and_a_number_of_later_has_none() -> None:
    board = FaultBoard(memoryview(bytearray(BOARD_BYTES)))
    board.put(order_of(1))
    board.trigger(order_of(1)).strikes()
    board.put(order_of(1))
    assert board.counts()[1].fired == 1
    board.take(1)
    board.put(order_of(2))
    assert board.counts() == {2: Counts(0, 0)}
    with pytest.raises(KeyError):
        board.trigger(order_of(1))


def put_many(board: FaultBoard) -> None:
    for number in range(1, ARMED_MAX + 2):
        board.put(order_of(number))


def test_there_is_an_end_of_the_room_and_it_is_said() -> None:
    board = FaultBoard(memoryview(bytearray(BOARD_BYTES)))
    with pytest.raises(FaultRefused):
        put_many(board)
    assert numbers(board) == list(range(1, len(numbers(board)) + 1))
    assert len(numbers(board)) >= ARMED_MAX // 2


def test_deaths_at_a_step_are_counted_by_what_the_seam_has_left() -> None:
    seam, knocks = Seam(), list[int]()
    site = FaultSite(FaultBoard(memoryview(bytearray(BOARD_BYTES))), seam, lambda: knocks.append(1))
    order = Order(
        1,
        "kill-at-step",
        "root",
        FAULTS["kill-at-step"].settle({"deaths": 2, "step": "take"}),
        Knobs(space=2),
    )
    site.inject(order)
    assert site.counts() == {1: Counts(0, 0)}
    for _ in range(2):
        seam.passing(Step.TAKE)
    assert site.counts() == {1: Counts(2, 0)}
    with pytest.raises(FaultRefused):
        site.inject(Order(2, "kill-at-step", "root", order.parameters))
    site.inject(order)
    assert site.counts() == {1: Counts(2, 0)}, "said again, nothing begins anew"
    seam.memory[:].cast("I")[3] = 1  # as if one had died of it
    assert site.counts()[1].fired == 1
    site.heal(None)
    seam.passing(Step.TAKE)  # and we live
    assert site.counts() == {}
    assert len(knocks) == 3
