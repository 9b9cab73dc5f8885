"""What a stack's event loop does for a child with a cap is told to the hypervisor; of others nothing is counted."""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from bus.synic import CHANNEL_MESSAGE
from partitions.stack.service_budgets import TOLD_NS_MIN, ServiceBudgets
from partitions.stack.virtualization_stack import VirtualizationStack
from partitions.stack.vmbus_ports import root_message_port
from partitions.stack.work_for_children import WorkForChildren
from runtime.abi import WHOLE_PROCESSOR, HvStatus, HypercallCode, HypercallError, PartitionProperty

CAPPED, FREE = 7, 8
MS = TOLD_NS_MIN


class Loop:
    """An event loop whose time passes when a test says so."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.told: list[tuple[int, int]] = []
        self.caps = {CAPPED: WHOLE_PROCESSOR // 20, FREE: WHOLE_PROCESSOR}
        self.gone = False
        self.budgets = ServiceBudgets(lambda child, code: self.caps[child])
        for child in self.caps:
            self.budgets.add(child, 1)
        self.work = WorkForChildren(self.budgets, self._write, lambda: self.now_ns)

    def _write(self, child: int, code: PartitionProperty, value: int) -> None:
        assert code is PartitionProperty.CAPPED_TIME
        if self.gone:
            raise HypercallError(HypercallCode.SET_PARTITION_PROPERTY, HvStatus.INVALID_PARTITION_ID)
        self.told.append((child, value))

    def work_for(self, child: int, spent_ns: int) -> None:
        with self.work.of(child):
            self.now_ns += spent_ns


def test_what_was_done_for_a_child_with_a_cap_is_told_once_it_is_worth_it() -> None:
    loop = Loop()
    loop.work_for(CAPPED, MS // 2)
    loop.now_ns += 100 * MS  # for nobody
    loop.work_for(CAPPED, MS // 2 - 1)
    assert loop.told == []
    loop.work_for(CAPPED, 5)
    assert loop.told == [(CAPPED, MS + 4)]
    loop.work_for(CAPPED, 3 * MS)
    assert loop.told[1:] == [(CAPPED, 3 * MS)]


def test_of_a_child_without_a_cap_and_of_a_stranger_nothing_is_counted() -> None:
    loop = Loop()
    loop.work_for(FREE, 100 * MS)
    loop.work_for(99, 100 * MS)
    assert loop.told == []


def test_one_inside_another_is_the_outer_ones_and_counted_once() -> None:
    loop = Loop()
    with loop.work.of(CAPPED):
        loop.now_ns += MS
        loop.work_for(CAPPED, MS)
    assert loop.told == [(CAPPED, 2 * MS)]


def test_what_raises_is_charged_too_and_a_child_that_is_gone_is_no_error() -> None:
    loop = Loop()

    def work(spent_ns: int) -> None:
        with loop.work.of(CAPPED):
            loop.now_ns += spent_ns
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work(2 * MS)
    assert loop.told == [(CAPPED, 2 * MS)]
    loop.gone = True
    loop.work_for(CAPPED, 2 * MS)
    loop.gone = False
    loop.work_for(CAPPED, MS // 2)
    loop.work.forget(CAPPED)
    loop.work_for(CAPPED, MS // 2)
    assert loop.told == [(CAPPED, 2 * MS)], "what another one of that number did is not its own"


def test_each_channel_message_is_dealt_with_for_who_sent_it() -> None:
    loop, line_fd = Loop(), os.eventfd(0)

    class Guest:
        def __init__(self, partition: int) -> None:
            self.partition = partition

        def receive(self, payload: bytes) -> None:
            loop.now_ns += len(payload) * MS

    def messages(sint: int) -> Iterator[tuple[int, int, bytes]]:
        for child, payload in ((CAPPED, b"two"), (FREE, b"three"), (CAPPED, b"one")):
            yield CHANNEL_MESSAGE, root_message_port(child), payload

    vp = SimpleNamespace(messages=messages, line_fd=line_fd, acknowledge=lambda: None)
    resources = SimpleNamespace(hypercalls=None, work=loop.work, listeners={})
    stack = VirtualizationStack(cast(Any, resources), cast(Any, vp))
    stack.received.is_new = lambda port, payload: True  # type: ignore[method-assign]
    stack.guests.update({child: cast(Any, Guest(child)) for child in (CAPPED, FREE)})

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stack.receive_messages)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    try:
        trio.run(run)
    finally:
        os.close(line_fd)
    assert loop.told == [(CAPPED, 3 * MS), (CAPPED, 3 * MS)]
