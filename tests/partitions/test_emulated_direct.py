"""The direct way, with a parent that dies at each of its steps: the child's access is answered by the successor."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from bus.intercept_messages import PortIntercept
from bus.intercept_page import DirectAnswer, DirectRequest, InterceptPage
from bus.memory import MemorySlot
from partitions.emulated.direct import DirectServer
from partitions.vp.direct_access import DirectAccess
from partitions.vp.intercept_ports import INTERCEPT_PAGE_GPFN, intercept_port
from runtime.abi import MapFlags, Route
from runtime.hypercalls.caller import Doorbell, HypercallPort, MappedSlot

CHILD = 7
PATIENCE_S = 20


class Kept:
    """What the hypervisor holds: one page and two doorbells."""

    def __init__(self) -> None:
        self.slot = MemorySlot.create(1, INTERCEPT_PAGE_GPFN, "page")
        self.parent_bell, self.child_bell = os.eventfd(0), os.eventfd(0)

    def calls(self, is_parent: bool) -> HypercallPort:
        return cast(HypercallPort, _Calls(self, is_parent))

    def close(self) -> None:
        self.slot.close()
        os.close(self.parent_bell)
        os.close(self.child_bell)


class _Calls:
    """Those that the two sides make."""

    def __init__(self, kept: Kept, is_parent: bool) -> None:
        self._kept, self._is_parent = kept, is_parent

    def claim_gpa_pages(self, gpfn: int, pages: int) -> list[MappedSlot]:
        flags = MapFlags.READ | MapFlags.WRITE
        return [MappedSlot(gpfn, gpfn, pages, flags, os.dup(self._kept.slot.fd))]

    def claim_port_doorbell(self, port: int) -> Doorbell:
        bell = self._kept.parent_bell if self._is_parent else self._kept.child_bell
        return Doorbell(os.dup(bell), Route.DIRECT)

    def claim_connection_doorbell(self, connection: int) -> Doorbell:
        bell = self._kept.child_bell if self._is_parent else self._kept.parent_bell
        return Doorbell(os.dup(bell), Route.DIRECT)

    def disconnect_port(self, connection: int) -> None:
        assert connection == intercept_port(CHILD)

    def delete_port(self, port: int) -> None:
        assert port == intercept_port(CHILD)


@pytest.fixture
def kept() -> Iterator[Kept]:
    made = Kept()
    yield made
    made.close()


def _answer(request: DirectRequest) -> DirectAnswer:
    header = PortIntercept.decode(request.payload).header
    return DirectAnswer(0x1234, 0, 0, header.rip + header.instruction_length)


@pytest.mark.parametrize("death", ["before it woke", "when it had woken", "when it had answered", "never"])
def test_an_access_is_answered_though_the_parent_died(kept: Kept, death: str) -> None:
    child = DirectAccess(kept.calls(is_parent=False))
    results: list[Any] = []
    asking = threading.Thread(target=lambda: results.append(child.access_port(0, 0x3F8, 2)), daemon=True)
    asking.start()
    page = InterceptPage(kept.slot.memory)
    while (request := page.request()) is None:
        pass
    if death != "before it woke":
        os.eventfd_read(kept.parent_bell)
    if death in ("when it had answered", "never"):
        page.reply(request.sequence, _answer(request))
    if death == "never":
        os.eventfd_write(kept.child_bell, 1)
    successor = DirectServer(kept.calls(is_parent=True), 1, CHILD, taken_over=True)
    successor.start(_answer)
    asking.join(PATIENCE_S)
    assert [result.value for result in results] == [0x1234]
    for _ in range(20):  # and it goes on
        assert child.access_port(0, 0x3F8, 1).value == 0x34
    successor.stop()


def test_an_access_that_is_none_is_refused_before_it_is_made(kept: Kept) -> None:
    child = DirectAccess(kept.calls(is_parent=False))
    for port, size in ((0xFFFF, 2), (-1, 1), (0, 3)):
        with pytest.raises(ValueError, match="port"):
            child.access_port(0, port, size)
    with pytest.raises(ValueError, match="bytes"):
        child.access_memory(0, 0, 3)
    assert InterceptPage(kept.slot.memory).request() is None


def test_a_signal_that_a_guest_handles_does_not_break_its_access(kept: Kept) -> None:
    """It comes while the guest sleeps for the answer; on the main thread, as signals do."""
    child = DirectAccess(kept.calls(is_parent=False))
    parent = DirectServer(kept.calls(is_parent=True), 1, CHILD, taken_over=True)
    came: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: came.append(number))
    main = threading.get_ident()

    def disturb() -> None:
        while not came:  # until it has come while somebody slept there, or before
            signal.pthread_kill(main, signal.SIGUSR1)
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGUSR1)
        time.sleep(0.05)
        parent.start(_answer)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        assert child.access_port(0, 0x3F8, 2).value == 0x1234
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
        parent.stop()
    assert came
