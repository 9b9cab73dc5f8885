"""The learning switch against a model, and what no port can do to another."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.net import switch as switch_module
from partitions.net.switch import LearningSwitch

PORTS = 3
OWN = [bytes((0, 0x15, 0x5D, 0, 0, number)) for number in range(PORTS)]
OTHERS = [bytes((2, 0, 0, 0, 0, number)) for number in range(4)]
BROADCAST, GROUP = b"\xff" * 6, b"\x33\x33\0\0\0\1"


@dataclass(eq=False)
class FakePort:
    """Takes everything that is for it."""

    mac: bytes | None
    got: list[bytes] = field(default_factory=list)
    waits: list[bool] = field(default_factory=list)

    def accepts(self, address: bytes) -> bool:
        return True

    def deliver(self, frames: Sequence[memoryview], *, patient: bool) -> None:
        self.got += [bytes(frame) for frame in frames]
        self.waits += [patient] * len(frames)


def make(uplink: bool = False) -> tuple[LearningSwitch, list[FakePort]]:
    switch, ports = LearningSwitch(), [FakePort(mac) for mac in OWN]
    if uplink:
        ports.append(FakePort(None))
    for port in ports:
        switch.join(port)
    return switch, ports


addresses = st.sampled_from([*OWN, *OTHERS, BROADCAST, GROUP])
senders = st.sampled_from([*OWN, *OTHERS, GROUP])


@given(
    st.lists(
        st.tuples(st.integers(0, PORTS), st.lists(st.tuples(addresses, senders), max_size=6)), max_size=20
    )
)
def test_frames_go_where_they_are_for_and_never_back(
    batches: list[tuple[int, list[tuple[bytes, bytes]]]],
) -> None:
    """By address where it is known, to all others where it is not; a port's own address is nobody else's to use."""
    switch, ports = make(uplink=True)
    places = {mac: index for index, mac in enumerate(OWN)}
    expected: list[list[bytes]] = [[] for _ in ports]
    number = 0
    for source, heads in batches:
        frames = []
        for destination, sender in heads:
            number += 1
            frame = destination + sender + number.to_bytes(4, "big")
            frames.append(memoryview(frame))
            if sender[0] & 1 or (sender in OWN and OWN.index(sender) != source):
                continue
            places[sender] = source
            known = None if destination[0] & 1 else places.get(destination)
            for target in range(len(ports)) if known is None else [known]:
                if target != source:
                    expected[target].append(frame)
        switch.forward(ports[source], frames)
    assert [port.got for port in ports] == expected


def test_nobody_is_waited_for_on_account_of_a_broadcast() -> None:
    switch, ports = make()
    switch.forward(ports[0], [memoryview(BROADCAST + OWN[0])])
    switch.forward(ports[0], [memoryview(OWN[1] + OWN[0])])
    assert (ports[1].waits, ports[2].waits) == ([False, True], [False])


def test_a_port_that_left_gets_nothing_and_what_was_learned_of_it_is_forgotten() -> None:
    switch, ports = make()
    switch.forward(ports[1], [memoryview(BROADCAST + OTHERS[0])])
    switch.leave(ports[1])
    ports[2].got.clear()
    switch.forward(ports[0], [memoryview(OTHERS[0] + OWN[0]), memoryview(OWN[1] + OWN[0])])
    assert len(ports[2].got) == 2  # flooded, since nobody knows
    assert not ports[1].got
    assert switch.statistics()["learned"] == 0


def test_a_guest_cannot_make_the_table_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch_module, "LEARNED_MAX", 8)
    switch, ports = make()
    for number in range(100):
        switch.forward(ports[0], [memoryview(OWN[1] + b"\2\1\0\0\0" + bytes([number]))])
    assert switch.statistics()["learned"] == 8
    assert len(ports[1].got) == 100
