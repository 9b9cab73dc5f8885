"""Interrupts, from sender to VP: the delivery rules, their accounting, vectors, and ports that move."""

from collections import deque
from typing import Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from runtime.abi import (
    ALL_PRIVILEGES,
    FLAGS_PER_SINT,
    MESSAGE_BUFFERS_PER_PORT,
    SINT_MASKED,
    SINT_POLLING,
    VP_ANY,
    HvStatus,
    HypercallCode,
    OverlayPage,
    PortProperty,
    PortType,
    RegisterName,
    sint_register,
)
from tests.runtime.hypervisor_world import World
from tests.runtime.plain_synic import take_message

_C = HypercallCode
_SINTS: Final = (2, 3)
_VPS: Final = 2
_MASK_VALUES: Final = {"loud": 16, "masked": SINT_MASKED, "polled": 16 | SINT_POLLING}
Counts = dict[str, int]


def _two(vps: int = _VPS) -> tuple[World, int]:
    """A running child with some VPs, all SINTs of ours on."""
    world = World()
    child = world.child(pages=600, privileges=ALL_PRIVILEGES)
    world.start(child)
    for vp in range(vps):
        if vp:
            world.do(1, _C.CREATE_VP, partition=child, vp=vp)
        for sint in _SINTS:
            world.enable_synic(child, sint, vp)
    return world, child


def _link(world: World, child: int, port: int, port_type: PortType, sint: int, vp: int, **more: Any) -> None:
    """The root's connection of the same number to a port of the child."""
    args = {"port": port, "connection_partition": 1, "type": int(port_type), "sint": sint, "vp": vp} | more
    world.do(1, _C.CREATE_PORT, partition=child, **args)
    world.do(1, _C.CONNECT_PORT, connection=port, port_partition=child, port=port)


def _counts(world: World, child: int, port: int) -> Counts:
    counts: Counts = world.do(1, _C.GET_PORT_COUNTS, partition=child, port=port)
    assert counts["sent"] == sum(counts.values()) - counts["sent"]
    return counts


def _write(world: World, child: int, register: int, value: int, vp: int = 0) -> None:
    world.do(child, _C.SET_VP_REGISTERS, vp=vp, registers=[[int(register), value]])


# -- the rules of delivery, against a model --------------------------------------------------------------------


class SynicMachine(RuleBasedStateMachine):
    """Posts, signals, kicks, takes, masks and moves in any order, against queues and sets of plain Python.

    What it looks for: a message lost, doubled, out of its order in a VP and SINT, or never delivered though the
    guest wrote the end-of-message that it owed; an interrupt that came although it should not, or did not.
    """

    MESSAGE_PORTS: Final = {11: (2, 0), 12: (2, 0), 13: (3, 0), 14: (2, 1)}  # (SINT, VP)
    EVENT_PORTS: Final = {21: (2, 0), 22: (3, 1)}  # 22 has a route by the broker
    FLAGS: Final = 3

    def __init__(self) -> None:
        super().__init__()
        self.world, self.child = _two()
        for port, (sint, vp) in self.MESSAGE_PORTS.items():
            _link(self.world, self.child, port, PortType.MESSAGE, sint, vp)
        for port, (sint, vp) in self.EVENT_PORTS.items():
            flags = {"base_flag": 40, "flag_count": self.FLAGS}
            _link(self.world, self.child, port, PortType.EVENT, sint, vp, **flags)
        self.world.do(1, _C.CLAIM_DOORBELL, connection=22, flag=1)
        (self.route,) = self.world.routes
        self.serial = 0
        self.sint_values = {(vp, sint): "loud" for vp in range(_VPS) for sint in _SINTS}
        self.queues: dict[tuple[int, int], deque[bytes]] = {key: deque() for key in self.sint_values}
        self.in_slot: dict[tuple[int, int], bytes | None] = dict.fromkeys(self.sint_values)
        self.used = dict.fromkeys(self.MESSAGE_PORTS, 0)
        self.event_vps = {port: vp for port, (_, vp) in self.EVENT_PORTS.items()}
        self.flags: dict[int, set[int]] = {port: set() for port in self.EVENT_PORTS}
        self.senders: dict[bytes, int] = {}
        self.sent = dict.fromkeys([*self.MESSAGE_PORTS, *self.EVENT_PORTS], 0)
        self.lines = [0] * _VPS
        self.doorbells = 0

    def _deliver(self, key: tuple[int, int]) -> None:
        if self.in_slot[key] is None and self.queues[key]:
            self.in_slot[key] = message = self.queues[key].popleft()
            self.used[self.senders[message]] -= 1
            if self.sint_values[key] == "loud":
                self.lines[key[0]] += 1

    @rule(port=st.sampled_from(sorted(MESSAGE_PORTS)), count=st.sampled_from([1, 1, 2, 18]))
    def post(self, port: int, count: int) -> None:
        sint, vp = self.MESSAGE_PORTS[port]
        for _ in range(count):
            self.serial += 1
            payload = self.serial.to_bytes(4, "little")
            self._deliver((vp, sint))  # another post to that SINT is a retry point, even one that is refused
            args = {"connection": port, "type": 1, "payload": payload}
            status = self.world.call(1, int(_C.POST_MESSAGE), args).status
            if self.used[port] >= MESSAGE_BUFFERS_PER_PORT:
                assert status == HvStatus.INSUFFICIENT_BUFFERS
                return
            assert status == HvStatus.SUCCESS
            self.senders[payload] = port
            self.sent[port] += 1
            self.queues[vp, sint].append(payload)
            self.used[port] += 1
            self._deliver((vp, sint))

    @rule(vp=st.integers(0, _VPS - 1), sint=st.sampled_from(_SINTS), end=st.booleans())
    def take(self, vp: int, sint: int, end: bool) -> None:
        """The guest empties a slot; `end`: it keeps its side, and writes EOM if one is owed."""
        message = take_message(self.world.vps[self.child, vp][0], sint)
        expected, self.in_slot[vp, sint] = self.in_slot[vp, sint], None
        assert (message is None) == (expected is None)
        if message is None:
            return
        message_type, port, payload, owed = message
        assert (message_type, port, payload) == (1, self.senders[payload], expected)
        assert owed or not self.queues[vp, sint]
        if owed and end:
            self.end_of_message(vp)

    @rule(vp=st.integers(0, _VPS - 1))
    def end_of_message(self, vp: int) -> None:
        """One write is for all of a VP's SINTs."""
        _write(self.world, self.child, RegisterName.EOM, 0, vp)
        for sint in _SINTS:
            self._deliver((vp, sint))

    @rule(
        vp=st.integers(0, _VPS - 1), sint=st.sampled_from(_SINTS), kind=st.sampled_from(sorted(_MASK_VALUES))
    )
    def set_sint(self, vp: int, sint: int, kind: str) -> None:
        was_loud = self.sint_values[vp, sint] == "loud"
        _write(self.world, self.child, sint_register(sint), _MASK_VALUES[kind], vp)
        self.sint_values[vp, sint] = kind
        # What came to a port with a doorbell of its own while it was quiet is told once it is loud.
        comes = kind == "loud" and not was_loud and self.event_vps[22] == vp and sint == 3
        self.doorbells += bool(comes and self.flags[22])

    @rule(port=st.sampled_from(sorted(EVENT_PORTS)), flag=st.integers(0, FLAGS - 1))
    def signal(self, port: int, flag: int) -> None:
        vp, sint = self.event_vps[port], self.EVENT_PORTS[port][0]
        kind = self.sint_values[vp, sint]
        status = self.world.status(1, _C.SIGNAL_EVENT, connection=port, flag=flag)
        assert status == (HvStatus.INVALID_SYNIC_STATE if kind == "masked" else HvStatus.SUCCESS)
        if status == HvStatus.SUCCESS:
            self._signalled(port, flag, loud=kind == "loud")

    @rule()
    def kick(self) -> None:
        """A masked SINT is no reason for the route to lose an event."""
        self.world.kick(self.route)
        self._signalled(22, 1, loud=self.sint_values[self.event_vps[22], 3] == "loud")

    def _signalled(self, port: int, flag: int, *, loud: bool) -> None:
        self.sent[port] += 1
        if loud and flag not in self.flags[port]:
            if port == 22:
                self.doorbells += 1
            else:
                self.lines[self.event_vps[port]] += 1
        self.flags[port].add(flag)

    @rule(port=st.sampled_from(sorted(EVENT_PORTS)), vp=st.integers(0, _VPS - 1))
    def move(self, port: int, vp: int) -> None:
        args = {"port": port, "property": int(PortProperty.TARGET_VP), "value": vp}
        self.world.do(1, _C.SET_PORT_PROPERTY, partition=self.child, **args)
        loud = self.sint_values[vp, self.EVENT_PORTS[port][0]] == "loud"
        if vp != self.event_vps[port] and self.flags[port] and loud:
            if port == 22:
                self.doorbells += 1
            else:
                self.lines[vp] += 1
        self.event_vps[port] = vp

    @rule(port=st.sampled_from(sorted(EVENT_PORTS)))
    def look(self, port: int) -> None:
        """The guest clears the port's flags, as it finds them in the page of the VP that they are aimed at."""
        sint = self.EVENT_PORTS[port][0]
        for vp in range(_VPS):
            page = self.world.vps[self.child, vp][1]
            found = set()
            for flag in range(self.FLAGS):
                bit = sint * FLAGS_PER_SINT + 40 + flag
                if page[bit // 8] >> bit % 8 & 1:
                    page[bit // 8] &= ~(1 << bit % 8)
                    found.add(flag)
            assert found == (self.flags[port] if vp == self.event_vps[port] else set())
        self.flags[port].clear()

    @invariant()
    def every_interrupt_came_and_no_other(self) -> None:
        assert [self.world.lines[self.child, vp] for vp in range(_VPS)] == self.lines
        assert self.world.doorbells[self.child, 22] == self.doorbells

    @invariant()
    def what_was_sent_is_accounted_for(self) -> None:
        for port, sent in self.sent.items():
            counts = _counts(self.world, self.child, port)
            assert counts["sent"] == sent
            assert counts["pending"] == self.used.get(port, 0)

    def teardown(self) -> None:
        """A guest that goes on taking gets everything that was accepted."""
        for vp, sint in self.queues:
            while self.in_slot[vp, sint] is not None or self.queues[vp, sint]:
                self.take(vp, sint, True)
                self.end_of_message(vp)


TestSynicMachine = SynicMachine.TestCase
TestSynicMachine.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


# -- accounting ------------------------------------------------------------------------------------------------


def test_messages_count_as_delivered_merged_suppressed_and_pending() -> None:
    world, child = _two()
    _link(world, child, 7, PortType.MESSAGE, 2, 0)
    sim = world.vps[child, 0][0]

    def post() -> None:
        world.do(1, _C.POST_MESSAGE, connection=7, type=1, payload=b"x")

    post()
    post()
    assert _counts(world, child, 7) == {"sent": 2, "merged": 0, "suppressed": 0, "delivered": 1, "pending": 1}
    _write(world, child, sint_register(2), SINT_MASKED)
    take_message(sim, 2)
    _write(world, child, RegisterName.EOM, 0)
    assert _counts(world, child, 7) == {"sent": 2, "merged": 0, "suppressed": 1, "delivered": 1, "pending": 0}
    _write(world, child, RegisterName.SIMP, 0)
    refused: dict[str, Any] = {"connection": 7, "type": 1, "payload": b"x"}
    assert world.status(1, _C.POST_MESSAGE, **refused) == HvStatus.INVALID_SYNIC_STATE
    assert _counts(world, child, 7)["sent"] == 2


def test_events_of_a_route_that_is_gone_are_still_accounted_for() -> None:
    world, child = _two()
    _link(world, child, 7, PortType.EVENT, 2, 0, flag_count=2)
    world.do(1, _C.CLAIM_DOORBELL, connection=7)
    (route,) = world.routes
    world.kick(route)
    world.kick(route)
    world.do(1, _C.SIGNAL_EVENT, connection=7, flag=1)
    expected = {"sent": 3, "merged": 1, "suppressed": 0, "delivered": 2, "pending": 0}
    assert _counts(world, child, 7) == expected
    world.do(1, _C.DISCONNECT_PORT, connection=7)
    assert _counts(world, child, 7) == expected


# -- moving ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "property_code", "value", "status"),
    [
        (7, 1, 1, HvStatus.SUCCESS),
        (7, 1, VP_ANY, HvStatus.SUCCESS),
        (7, 1, 5, HvStatus.INVALID_VP_INDEX),
        (8, 1, 1, HvStatus.SUCCESS),
        (8, 1, 0, HvStatus.SUCCESS),
        (8, 1, VP_ANY, HvStatus.INVALID_VP_INDEX),
        (8, 1, 2, HvStatus.INVALID_VP_INDEX),
        (8, 0, 1, HvStatus.UNKNOWN_PROPERTY),
        (9, 1, 1, HvStatus.INVALID_PORT_ID),
    ],
)
def test_a_port_moves_only_to_a_vp_that_is_there(
    port: int, property_code: int, value: int, status: HvStatus
) -> None:
    world, child = _two()
    _link(world, child, 7, PortType.MESSAGE, 2, 0)
    _link(world, child, 8, PortType.EVENT, 2, 0, flag_count=1)
    args = {"partition": child, "port": port, "property": property_code}
    assert world.status(1, _C.SET_PORT_PROPERTY, value=value, **args) == status
    if status == HvStatus.SUCCESS:
        assert world.do(1, _C.GET_PORT_PROPERTY, **args) == {"value": value}


def test_messages_that_wait_stay_with_their_vp_when_the_port_moves() -> None:
    world, child = _two()
    _link(world, child, 7, PortType.MESSAGE, 2, 0)
    args: dict[str, Any] = {"connection": 7, "type": 1}
    for number in range(3):
        world.do(1, _C.POST_MESSAGE, payload=bytes([number]), **args)
    world.do(1, _C.SET_PORT_PROPERTY, partition=child, port=7, property=1, value=1)
    world.do(1, _C.POST_MESSAGE, payload=b"\x09", **args)
    seen: list[bytes] = []
    while (message := take_message(world.vps[child, 0][0], 2)) is not None:
        seen.append(message[2])
        _write(world, child, RegisterName.EOM, 0)
    assert seen == [b"\0", b"\1", b"\2"]
    message = take_message(world.vps[child, 1][0], 2)
    assert message is not None
    assert message[2] == b"\x09"


# -- vectors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "status"),
    [
        ({"vp": 1, "vector": 16}, HvStatus.SUCCESS),
        ({"vp": 1, "vector": 255}, HvStatus.SUCCESS),
        ({"vp": 1, "vector": 15}, HvStatus.INVALID_PARAMETER),
        ({"vp": 1, "vector": 256}, HvStatus.INVALID_PARAMETER),
        ({"vp": 1, "vector": 16, "type": 4}, HvStatus.INVALID_PARAMETER),
        ({"vp": 2, "vector": 16}, HvStatus.INVALID_VP_INDEX),
        ({"vp": VP_ANY, "vector": 16}, HvStatus.INVALID_VP_INDEX),
    ],
)
def test_a_parent_interrupts_one_vp_of_its_child(args: dict[str, int], status: HvStatus) -> None:
    world, child = _two()
    assert world.status(1, _C.ASSERT_VIRTUAL_INTERRUPT, partition=child, **args) == status
    assert world.lines[child, 0] == 0
    assert world.lines[child, 1] == (status == HvStatus.SUCCESS)
    assert world.status(child, _C.ASSERT_VIRTUAL_INTERRUPT, vp=1, vector=16) == HvStatus.ACCESS_DENIED


def test_every_vector_is_seen_once_after_each_time_that_the_vp_looked() -> None:
    world, child = _two()
    world.do(child, _C.CLAIM_OVERLAY_PAGE, page=int(OverlayPage.INTERRUPTS), vp=1)
    page = world.interrupt_pages[child, 1]
    for vector in (16, 16, 99, 255, 99):
        world.do(1, _C.ASSERT_VIRTUAL_INTERRUPT, partition=child, vp=1, vector=vector)
    assert world.lines[child, 1] == 3
    assert int.from_bytes(page, "little") == 1 << 16 | 1 << 99 | 1 << 255
    page[:] = bytes(4096)
    world.do(1, _C.ASSERT_VIRTUAL_INTERRUPT, partition=child, vp=1, vector=99)
    assert world.lines[child, 1] == 4


def test_a_sint_requests_its_vector_and_raises_the_line_each_time() -> None:
    world, child = _two()
    world.do(child, _C.CLAIM_OVERLAY_PAGE, page=int(OverlayPage.INTERRUPTS), vp=0)
    _write(world, child, sint_register(2), 0x55)
    _link(world, child, 7, PortType.EVENT, 2, 0, flag_count=2)
    for flag in (0, 1):
        world.do(1, _C.SIGNAL_EVENT, connection=7, flag=flag)
    assert int.from_bytes(world.interrupt_pages[child, 0], "little") == 1 << 0x55
    assert world.lines[child, 0] == 2


@pytest.mark.parametrize(
    ("args", "status"),
    [
        ({"page": 0}, HvStatus.SUCCESS),
        ({"page": 0, "vp": 1}, HvStatus.INVALID_PARAMETER),
        ({"page": 1, "vp": 1}, HvStatus.SUCCESS),
        ({"page": 1, "vp": 2}, HvStatus.INVALID_VP_INDEX),
        ({"page": 2}, HvStatus.INVALID_PARAMETER),
    ],
)
def test_an_impossible_page_is_refused(args: dict[str, int], status: HvStatus) -> None:
    world, child = _two()
    assert world.status(child, _C.CLAIM_OVERLAY_PAGE, **args) == status
    world.fail_after = 0
    again = HvStatus.SUCCESS if status == HvStatus.SUCCESS else status
    assert world.status(child, _C.CLAIM_OVERLAY_PAGE, **args) == again  # nothing new is made for it
    if status == HvStatus.SUCCESS and "vp" in args:
        assert world.status(child, _C.CLAIM_OVERLAY_PAGE, page=1, vp=0) == HvStatus.INSUFFICIENT_MEMORY
