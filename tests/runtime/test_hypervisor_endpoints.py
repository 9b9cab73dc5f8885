"""Message endpoints, and drivers inside the hypervisor: who gets which end, and what goes with whom."""

import pytest

from runtime.abi import GUEST_PRIVILEGES, HvStatus, HypercallCode, PartitionProperty, PortType
from runtime.hypervisor.heartbeat import TAKE_OVER_MS_MAX
from runtime.hypervisor.program import Process
from runtime.hypervisor.replies import EndpointHandle
from tests.runtime.hypervisor_world import World

_C = HypercallCode
_SINT = 2


def _connected(world: World) -> tuple[int, int]:
    """(server, client): port 5 of the first, connection 5 of the second; the server takes events."""
    server, client = (world.child(privileges=GUEST_PRIVILEGES) for _ in range(2))
    world.do(
        1,
        _C.CREATE_PORT,
        partition=server,
        port=5,
        connection_partition=client,
        type=int(PortType.EVENT),
        sint=_SINT,
        vp=0,
        flag_count=1,
    )
    world.do(1, _C.CONNECT_PORT, partition=client, connection=5, port_partition=server, port=5)
    return server, client


def test_an_endpoint_goes_to_who_asked_and_to_the_ports_owner_and_to_nobody_else() -> None:
    world = World()
    server, client = _connected(world)
    assert world.status(server, _C.CLAIM_ENDPOINT, port=5) == HvStatus.NO_DATA
    ours = world.call(client, int(_C.CLAIM_ENDPOINT), {"connection": 5})
    (mine,) = ours.handles
    assert isinstance(mine, EndpointHandle)
    assert not mine.waiting
    stranger = world.child(privileges=GUEST_PRIVILEGES)
    for caller in (1, client, stranger):
        assert world.status(caller, _C.CLAIM_ENDPOINT, port=5) == HvStatus.INVALID_PORT_ID
        if caller != client:
            assert world.status(caller, _C.CLAIM_ENDPOINT, connection=5) == HvStatus.INVALID_CONNECTION_ID
    theirs = world.call(server, int(_C.CLAIM_ENDPOINT), {"port": 5})
    assert theirs.handles == (EndpointHandle(mine.endpoint, waiting=True),)
    assert world.status(server, _C.CLAIM_ENDPOINT, port=5) == HvStatus.NO_DATA, "it is handed out once"


def test_what_a_server_claims_is_done_for_who_wants_to_be_served() -> None:
    """Otherwise a client that connects without end, and has a cap, costs half of that beyond it."""
    world = World()
    server, client = _connected(world)
    machine = world.hypervisor.machine
    for _ in range(2):  # with an end that waits, and without one
        world.do(client, _C.CLAIM_ENDPOINT, connection=5)
        machine.served_for = 0
        world.do(server, _C.CLAIM_ENDPOINT, port=5)
        assert machine.served_for == client
        machine.served_for = 0
        assert world.status(server, _C.CLAIM_ENDPOINT, port=5) == HvStatus.NO_DATA
        assert machine.served_for == client


def test_an_end_that_waits_is_replaced_and_goes_with_its_port() -> None:
    """However often a client asks, one end waits; `World` compares what there is after each call."""
    world = World()
    server, client = _connected(world)
    for _ in range(5):
        world.do(client, _C.CLAIM_ENDPOINT, connection=5)
        assert len(world.endpoints) == 1
    world.do(1, _C.DELETE_PORT, partition=server, port=5)
    assert not world.endpoints
    assert world.status(client, _C.CLAIM_ENDPOINT, connection=5) == HvStatus.INVALID_PORT_ID


@pytest.mark.parametrize("who", ["server", "client"])
def test_an_end_that_waits_does_not_outlive_its_owner(who: str) -> None:
    world = World()
    server, client = _connected(world)
    world.do(client, _C.CLAIM_ENDPOINT, connection=5)
    world.do(1, _C.FINALIZE_PARTITION, partition=server if who == "server" else client)
    world.bury()
    assert bool(world.endpoints) == (who == "client"), "the port's owner may still claim what was sent"


def test_a_host_without_descriptors_refuses_an_endpoint_and_nothing_has_changed() -> None:
    world = World()
    _, client = _connected(world)
    world.fail_after = 0
    assert world.status(client, _C.CLAIM_ENDPOINT, connection=5) == HvStatus.INSUFFICIENT_MEMORY
    world.fail_after = None
    assert world.status(client, _C.CLAIM_ENDPOINT, connection=5) == HvStatus.SUCCESS


def test_a_driver_is_loaded_only_by_a_monolithic_hypervisor() -> None:
    """And only where the partition outlives its processes, as those of drivers do."""
    world = World()
    child = world.child()
    partition = world.machine.partitions[child]
    value = {"module": "partitions.drivers.resident_driver", "name": "disk0", "args": {}}
    world.do(
        1, _C.SET_PARTITION_PROPERTY_EX, partition=child, property=int(PartitionProperty.PROGRAM), value=value
    )
    assert world.status(1, _C.LOAD_DRIVER, partition=child) == HvStatus.OPERATION_DENIED
    world.machine.loads_drivers = True
    assert world.status(1, _C.LOAD_DRIVER, partition=child) == HvStatus.OPERATION_DENIED
    outlives = int(PartitionProperty.OUTLIVES_PROCESS)
    world.do(1, _C.SET_PARTITION_PROPERTY, partition=child, property=outlives, value=1)
    assert world.status(child, _C.LOAD_DRIVER, partition=child) == HvStatus.ACCESS_DENIED
    world.do(1, _C.LOAD_DRIVER, partition=child)
    assert partition.process is Process.STARTING
    assert world.status(1, _C.LOAD_DRIVER, partition=child) == HvStatus.INVALID_VP_STATE


def test_a_driver_in_the_hypervisor_may_be_silent_for_ever() -> None:
    """Nobody ends it alone. So no promise is made for it, and none of its own binds it."""
    world = World()
    world.machine.loads_drivers = True
    child = world.child()
    value = {"module": "partitions.drivers.resident_driver", "name": "disk0", "args": {}}
    world.do(
        1, _C.SET_PARTITION_PROPERTY_EX, partition=child, property=int(PartitionProperty.PROGRAM), value=value
    )
    outlives = int(PartitionProperty.OUTLIVES_PROCESS)
    world.do(1, _C.SET_PARTITION_PROPERTY, partition=child, property=outlives, value=1)
    world.do(1, _C.LOAD_DRIVER, partition=child)
    world.started(child)
    world.advance(10 * TAKE_OVER_MS_MAX)
    assert not world.doomed
    world.do(child, _C.HEARTBEAT, within_ms=10)
    world.advance(10 * TAKE_OVER_MS_MAX)
    assert not world.doomed
    world.check()
