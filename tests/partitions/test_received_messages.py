"""Each message of a guest is dealt with once, whenever roots die, and however many equal ones there are."""

import contextlib
import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.memory import MemorySlot
from bus.synic import CHANNEL_MESSAGE, VMBUS_SINT
from partitions.stack.guest_bus import GuestBus
from partitions.stack.received_messages import ReceivedMessages
from partitions.stack.stack_resources import RootResources
from partitions.stack.virtualization_stack import VirtualizationStack
from partitions.stack.vmbus_ports import root_message_port
from partitions.vp.processor import VirtualProcessor
from runtime.abi import (
    ALL_PRIVILEGES,
    PARTITION_SELF,
    ROOT_PARTITION,
    HvStatus,
    HypercallCode,
    HypercallError,
    PortType,
    RegisterName,
)
from runtime.hypercalls.caller import HypercallPort, VpLines
from runtime.hypercalls.results import PortCounts
from runtime.hypervisor.effects import Page
from tests.runtime.hypervisor_world import World

_C = HypercallCode
_FROM_GUEST: Final = 1  # the guest's connection

Mail = Sequence[tuple[int, bytes]]  # which guest posts what


class Died(BaseException):
    """This root is dead."""


class _Host(World):
    """The hypervisor itself, and pages of VPs that can be mapped."""

    def __init__(self, guests: int) -> None:
        self.pages: dict[tuple[int, int], tuple[MemorySlot, MemorySlot]] = {}
        super().__init__()
        self.enable_synic(ROOT_PARTITION, VMBUS_SINT)
        self.guests = [self.child(privileges=ALL_PRIVILEGES) for _ in range(guests)]
        for guest in self.guests:
            self.start(guest)
            port = root_message_port(guest)
            ids = {"port": port, "connection_partition": guest}
            self.do(
                ROOT_PARTITION,
                _C.CREATE_PORT,
                partition=PARTITION_SELF,
                type=int(PortType.MESSAGE),
                sint=VMBUS_SINT,
                vp=0,
                **ids,
            )
            ids = {"port": port, "port_partition": ROOT_PARTITION, "connection": _FROM_GUEST}
            self.do(ROOT_PARTITION, _C.CONNECT_PORT, partition=guest, route=0, **ids)

    def create_vp(self, partition: int, vp: int) -> tuple[Page, Page]:
        super().create_vp(partition, vp)  # which looks for what makes no sense
        slots = MemorySlot.create(1, 0, "sim"), MemorySlot.create(1, 1, "sief")
        self.pages[partition, vp] = slots
        pages: Any = slots[0].memory, slots[1].memory
        self.vps[partition, vp] = pages
        return cast(tuple[Page, Page], pages)

    def post(self, guest: int, payload: bytes) -> None:
        ids = {"connection": _FROM_GUEST, "type": int(CHANNEL_MESSAGE)}
        self.do(self.guests[guest], _C.POST_MESSAGE, payload=payload, **ids)

    def close(self) -> None:
        for slots in self.pages.values():
            for slot in slots:
                slot.close()


class _Calls(HypercallPort):
    """A root's. `passes` counts the moments at which it can die."""

    def __init__(self, host: _Host, dies_at: int | None) -> None:
        self._host, self._dies_at, self.passes = host, dies_at, 0

    def pass_by(self) -> None:
        self.passes += 1
        if self.passes == self._dies_at:
            raise Died

    def get_port_counts(self, port: int, partition: int = PARTITION_SELF) -> PortCounts:
        self.pass_by()
        found = self._host.do(ROOT_PARTITION, _C.GET_PORT_COUNTS, partition=partition, port=port)
        self.pass_by()
        return PortCounts(**found)

    def end_of_message(self, vp: int = 0) -> None:
        self.pass_by()
        registers = [[int(RegisterName.EOM), 0]]
        self._host.do(
            ROOT_PARTITION, _C.SET_VP_REGISTERS, partition=PARTITION_SELF, vp=vp, registers=registers
        )
        self.pass_by()


class _Saved:
    """What outlives a root: what it had heard of each guest, and of which message that is."""

    def __init__(self, guests: int) -> None:
        self.heard: list[list[bytes]] = [[] for _ in range(guests)]
        self.received: dict[int, int] = {}


def live(host: _Host, saved: _Saved, dies_at: int | None = None) -> int | None:
    """One root, until it has nothing to do. At how many moments it could have died; None: it did die."""
    calls = _Calls(host, dies_at)
    slots = host.pages[ROOT_PARTITION, 0]
    fds = [os.dup(slot.fd) for slot in slots]
    line = os.eventfd(0, os.EFD_NONBLOCK)
    vp = VirtualProcessor(VpLines(0, fds[0], fds[1], line), calls)
    heard = [list(one) for one in saved.heard]

    def listener(guest: int) -> GuestBus:
        def receive(payload: bytes) -> None:
            heard[guest].append(payload)
            calls.pass_by()
            saved.heard = [list(one) for one in heard]
            saved.received = stack.received.to_state()
            calls.pass_by()

        return cast(GuestBus, SimpleNamespace(receive=receive, partition=host.guests[guest]))

    uncounted = SimpleNamespace(of=lambda guest: contextlib.nullcontext())
    nobody = cast(RootResources, SimpleNamespace(hypercalls=calls, listeners={}, work=uncounted))
    stack = VirtualizationStack(nobody, vp)
    stack.guests.update({partition: listener(guest) for guest, partition in enumerate(host.guests)})
    stack.received.adopt(saved.received)

    async def receive() -> None:
        calls.end_of_message()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stack.receive_messages)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    died = False
    try:
        trio.run(receive)
    except* Died:
        died = True
    finally:
        vp.close()
    return None if died else calls.passes


def live_through(mail: Mail, deaths: Sequence[int], late: int = 0) -> int:
    """Roots that die at those moments, and one that lives. The last `late` messages come after the first death.

    Returns at how many moments a root that lives could have died.
    """
    guests = 1 + max(guest for guest, _ in mail)
    host, saved = _Host(guests), _Saved(guests)
    try:
        for place, (guest, payload) in enumerate(mail):
            if place == len(mail) - late:
                live(host, saved, deaths[0] if deaths else None)
                deaths = deaths[1:]
            host.post(guest, payload)
        for dies_at in deaths:
            live(host, saved, dies_at)
        passes = live(host, saved)
    finally:
        host.close()
    posted: list[list[bytes]] = [[] for _ in range(guests)]
    for guest, payload in mail:
        posted[guest].append(payload)
    assert saved.heard == posted
    assert passes is not None
    return passes


@pytest.mark.parametrize("late", [0, 1])
def test_two_equal_messages_are_two_wherever_two_roots_die(late: int) -> None:
    """All moments of the first root with all of the second: around each take, save, and end of message."""
    mail = [(0, b"again"), (0, b"again")]
    passes = live_through(mail, ())
    assert passes >= 8
    for first in range(1, passes + 1):
        for second in range(1, passes + 1):
            live_through(mail, (first, second), late)


@settings(max_examples=100, deadline=None)
@given(
    mail=st.lists(st.tuples(st.integers(0, 1), st.sampled_from([b"x", b"y"])), min_size=1, max_size=6),
    deaths=st.lists(st.integers(1, 24), max_size=5),
    data=st.data(),
)
def test_no_message_is_lost_or_dealt_with_twice_by_roots_that_die_anywhere(
    mail: Mail, deaths: list[int], data: st.DataObject
) -> None:
    live_through(mail, deaths, data.draw(st.integers(0, len(mail) - 1)))


def test_what_a_predecessor_did_not_count_is_compared() -> None:
    """Format 1 kept the last message itself. It is the first one here, or it has left its slot."""
    host = _Host(1)
    port = root_message_port(host.guests[0])
    try:
        for _ in range(3):
            host.post(0, b"same")
        for compared, is_new in ((None, True), ([port, b"same"], False), ([port, b"other"], True)):
            received = ReceivedMessages(_Calls(host, None))
            received.adopt({}, compared)
            assert received.is_new(port, b"same") is is_new
            assert received.is_new(port, b"same"), "the next one has another number"
            assert received.to_state() == {port: 2}
    finally:
        host.close()


def test_a_message_whose_port_is_gone_hurts_nobody() -> None:
    class NoPort(HypercallPort):
        def __init__(self) -> None:
            pass

        def get_port_counts(self, port: int, partition: int = PARTITION_SELF) -> PortCounts:
            raise HypercallError(_C.GET_PORT_COUNTS, HvStatus.INVALID_PORT_ID)

    received = ReceivedMessages(NoPort())
    assert received.is_new(7, b"x")
    assert received.is_new(7, b"x")
    assert received.to_state() == {}
