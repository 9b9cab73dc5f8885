"""Calls that are forged, and partitions that are greedy, as in test_hypervisor_faults."""

from typing import Any, Final

import pytest

from runtime.abi import (
    ALL_PRIVILEGES,
    GUEST_PRIVILEGES,
    HvStatus,
)
from runtime.chaos.faults.orders import FaultRefused
from tests.runtime.broken_hypervisor import Broken

# -- authority


STATUSES: Final = {
    ("forge-partition-id", False): {HvStatus.ACCESS_DENIED, HvStatus.INVALID_PARTITION_ID},
    ("forge-partition-id", True): {HvStatus.ACCESS_DENIED, HvStatus.INVALID_PARTITION_ID},
    ("forge-connection-id", False): {HvStatus.INVALID_CONNECTION_ID},
    ("forge-connection-id", True): {HvStatus.INVALID_CONNECTION_ID},
    ("hypercall-garbage", False): {HvStatus.INVALID_HYPERCALL_CODE, HvStatus.INVALID_HYPERCALL_INPUT},
    ("hypercall-garbage", True): {HvStatus.INVALID_HYPERCALL_CODE, HvStatus.INVALID_HYPERCALL_INPUT},
}


@pytest.mark.parametrize("kind", ["forge-partition-id", "forge-connection-id", "hypercall-garbage"])
@pytest.mark.parametrize("privileges", [GUEST_PRIVILEGES, ALL_PRIVILEGES])
def test_forged_calls_are_refused_and_change_nothing(
    kind: str, privileges: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state machine's invariants are looked at after each; what others have is compared."""
    machine = Broken()
    world = machine.world
    sibling = world.child(pages=100, privileges=privileges, name="sibling")
    world.start(sibling)
    before = _standing(machine)
    calls = world.machine.calls_of[sibling].made if sibling in world.machine.calls_of else 0
    statuses: set[HvStatus] = set()
    decide = world.hypervisor.decide

    def hear(*call: Any) -> Any:
        reply = decide(*call)
        statuses.add(reply.status)
        return reply

    monkeypatch.setattr(world.hypervisor, "decide", hear)
    number = machine.arm(kind, target="sibling", rate=1_000)
    world.advance(400)
    assert statuses == STATUSES[kind, privileges is ALL_PRIVILEGES]
    assert machine.fired(number) >= 400
    count = world.machine.calls_of[sibling]
    assert count.made - calls == count.refused == machine.fired(number)
    assert [one.kind for one in world.announced if one.kind.startswith("fault.")] == []
    assert _standing(machine) == before
    machine.heal(number)
    assert machine.is_whole


def _standing(machine: Broken) -> list[tuple[object, ...]]:
    return [
        (one.id, one.state, one.process, one.pool.available, one.pool.in_use, len(one.ports), len(one.vps))
        for one in machine.world.machine.partitions.values()
    ]


def test_a_call_that_a_forger_gets_through_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hole, planted: whoever asks is taken for the parent."""
    machine = Broken()
    machine.world.child(pages=100, privileges=ALL_PRIVILEGES, name="sibling")
    machine.world.start(3)
    monkeypatch.setattr("runtime.hypervisor.machine.Machine.is_below", lambda *_: True)
    monkeypatch.setattr(
        "runtime.hypervisor.dispatch.Hypervisor._needed", lambda self, rule, caller, target: rule.on_child
    )
    monkeypatch.setattr(
        "runtime.hypervisor.forgeries.Forgeries._foreign_partition", lambda self, target, trigger: 2
    )
    machine.arm("forge-partition-id", target="sibling", rate=1_000)
    machine.world.advance(100)
    assert "fault.forgery_accepted" in [one.kind for one in machine.world.announced]


def test_a_greedy_partition_gets_what_its_pool_has_and_gives_it_back() -> None:
    machine = Broken()
    world = machine.world
    others = [row for row in _standing(machine) if row[0] != machine.child]
    pool = world.machine.partitions[machine.child].pool
    had = pool.available
    number = machine.arm("memory-greed", rate=1_000)
    world.advance(1_000)
    assert pool.available == 0
    assert [row for row in _standing(machine) if row[0] != machine.child] == others
    assert machine.fired(number) > had // 64
    machine.heal(number)
    assert pool.available == had
    assert machine.is_whole


def test_the_root_cannot_forge_what_it_may_do_anyway() -> None:
    machine = Broken()
    with pytest.raises(FaultRefused, match="it may call on any"):
        machine.arm("forge-partition-id", target="root")
