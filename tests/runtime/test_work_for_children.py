"""What a parent asks of the hypervisor because its child wants something is charged to a child with a cap."""

from typing import Any

import pytest

from runtime.abi import GUEST_PRIVILEGES, HvStatus, HypercallCode, MapFlags, PartitionProperty, PortType
from tests.runtime.hypervisor_world import World

_C = HypercallCode
_SINT = 2
_TENTH = 0x10000 // 10
PAGES = 4


class Charged:
    """A root with two children, of which the first has a cap; who each call was charged to."""

    def __init__(self, cap: int | None = _TENTH) -> None:
        self.world = World()
        self.guest, self.other = (self.world.child(privileges=GUEST_PRIVILEGES) for _ in range(2))
        if cap is not None:
            properties = {"property": int(PartitionProperty.CPU_CAP), "value": cap}
            self.world.do(1, _C.SET_PARTITION_PROPERTY, partition=self.guest, **properties)

    def by(self, caller: int, code: HypercallCode, **args: Any) -> int:
        """0: to the caller."""
        self.world.machine.served_for = 0
        self.world.do(caller, code, **args)
        return self.world.machine.served_for

    def open_and_close_a_channel(self) -> set[int]:
        """As a stack does: ports both ways, doorbells, a message, pages; and all of it away again."""
        event = {"type": int(PortType.EVENT), "sint": _SINT, "vp": 0, "flag_count": 1}
        message = {"type": int(PortType.MESSAGE), "sint": _SINT, "vp": 0}
        guest = self.guest
        new = int(MapFlags.READ | MapFlags.WRITE | MapFlags.ZEROED)
        self.world.do(guest, _C.MAP_GPA_PAGES, gpfn=0x100, pages=PAGES, flags=new)
        pages = {"gpfn": 0x9000, "pages": PAGES, "source_partition": guest, "source_gpfn": 0x100}
        read = int(MapFlags.READ)
        return {
            self.by(1, _C.CREATE_PORT, port=5, connection_partition=guest, **event),
            self.by(1, _C.CONNECT_PORT, partition=guest, connection=5, port_partition=1, port=5),
            self.by(1, _C.CREATE_PORT, partition=guest, port=6, connection_partition=1, **event),
            self.by(1, _C.CONNECT_PORT, connection=6, port_partition=guest, port=6),
            self.by(1, _C.CLAIM_DOORBELL, port=5),
            self.by(1, _C.CLAIM_DOORBELL, connection=6),
            self.by(1, _C.CREATE_PORT, partition=guest, port=7, connection_partition=1, **message),
            self.by(1, _C.CONNECT_PORT, connection=7, port_partition=guest, port=7),
            self.by(1, _C.MAP_GPA_PAGES, **pages, flags=read),
            self.by(1, _C.UNMAP_GPA_PAGES, gpfn=0x9000, pages=PAGES),
            self.by(1, _C.DISCONNECT_PORT, connection=6),
            self.by(1, _C.DELETE_PORT, partition=guest, port=6),
            self.by(1, _C.DISCONNECT_PORT, partition=guest, connection=5),
            self.by(1, _C.DELETE_PORT, port=5),
            self.by(1, _C.GET_PARTITION_PROPERTY, partition=guest, property=int(PartitionProperty.STATE)),
        }


def test_what_a_channel_takes_is_charged_to_the_child_that_wants_it() -> None:
    charged = Charged()
    assert charged.open_and_close_a_channel() == {charged.guest}


@pytest.mark.parametrize("cap", [None, 0x10000])
def test_a_child_without_a_cap_changes_nothing(cap: int | None) -> None:
    assert Charged(cap).open_and_close_a_channel() == {0}


def test_a_message_is_charged_to_the_child_that_it_goes_to_even_where_there_is_no_room() -> None:
    charged = Charged()
    world, guest = charged.world, charged.guest
    world.do(
        1,
        _C.CREATE_PORT,
        partition=guest,
        port=7,
        connection_partition=1,
        type=int(PortType.MESSAGE),
        sint=_SINT,
        vp=0,
    )
    world.do(1, _C.CONNECT_PORT, connection=7, port_partition=guest, port=7)
    statuses = set()
    for _ in range(3):
        world.machine.served_for = 0
        statuses.add(world.status(1, _C.POST_MESSAGE, connection=7, type=1, payload=b"x"))
        assert world.machine.served_for == guest
    assert statuses == {HvStatus.INVALID_SYNIC_STATE}, "it takes none yet"


def test_nobody_but_a_parent_has_another_pay() -> None:
    """Two children with a link between them: what the one does to its own port is its own."""
    charged = Charged()
    world, guest, other = charged.world, charged.guest, charged.other
    event = {"type": int(PortType.EVENT), "sint": _SINT, "vp": 0, "flag_count": 1}
    assert (
        charged.by(1, _C.CREATE_PORT, partition=other, port=5, connection_partition=guest, **event) == guest
    )
    assert (
        charged.by(1, _C.CONNECT_PORT, partition=guest, connection=5, port_partition=other, port=5) == guest
    )
    assert charged.by(other, _C.CLAIM_DOORBELL, port=5) == 0
    assert charged.by(guest, _C.CLAIM_DOORBELL, connection=5) == 0
    world.machine.served_for = 0
    assert world.status(other, _C.GET_PARTITION_PROPERTY, partition=guest, property=1) != HvStatus.SUCCESS
    assert world.machine.served_for == 0
