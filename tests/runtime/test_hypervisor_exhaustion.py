"""Every call that makes something runs out of pages, gets more, succeeds; and the pages come back with its end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.abi import (
    CONNECTION_PAGES,
    CREATE_PARTITION_PAGES,
    DEVICE_DOMAIN_PAGES,
    INITIALIZE_PARTITION_PAGES,
    INTERCEPT_PAGES,
    MAPPING_PAGES,
    PORT_PAGES,
    STATS_PAGE_PAGES,
    VP_PAGES,
    HvStatus,
    HypercallCode,
    InterceptType,
    PortType,
)
from runtime.hypervisor.call_rules import RULES
from runtime.statistics import StatsObject
from tests.runtime.hypercall_scene import NEW, READ_WRITE, SINT, Scene
from tests.runtime.test_hypercall_statuses import CASES

_C = HypercallCode
Arguments = Callable[[Scene], dict[str, Any]]


@dataclass(frozen=True)
class Object:
    """What a call makes: of whose pool, for how many pages, and how it ends."""

    pages: int
    make: Arguments
    end: HypercallCode
    end_with: Arguments
    caller: Callable[[Scene], int] = lambda s: s.p
    payer: Callable[[Scene], int] = lambda s: s.p
    before: Callable[[Scene], Scene] = lambda s: s


def _domain(scene: Scene) -> Scene:
    return scene.after(scene.p, _C.CREATE_DEVICE_DOMAIN, domain=3)


def _port(scene: Scene) -> dict[str, Any]:
    message = {"type": int(PortType.MESSAGE), "sint": SINT, "vp": 0}
    return {"partition": scene.p, "port": 20, "connection_partition": 1, **message}


def _connection(scene: Scene) -> dict[str, Any]:
    return {"connection": 20, "port_partition": scene.c, "port": 20}


def _childs_port(scene: Scene) -> Scene:
    made = _port(scene) | {"partition": scene.c, "connection_partition": scene.p}
    return scene.after(scene.p, _C.CREATE_PORT, **made)


_IO_PORT = {"type": int(InterceptType.IO_PORT), "parameter": 0x60}
_STATS = {"type": int(StatsObject.HYPERVISOR)}

OBJECTS: dict[HypercallCode, Object] = {
    _C.CREATE_PARTITION: Object(
        CREATE_PARTITION_PAGES,
        lambda s: {},
        _C.DELETE_PARTITION,
        lambda s: {"partition": s.w.machine.next_partition - 1},
    ),
    # its pages come back to the parent, with all that it had, when it is finalized
    _C.INITIALIZE_PARTITION: Object(
        INITIALIZE_PARTITION_PAGES,
        lambda s: {"partition": s.u},
        _C.FINALIZE_PARTITION,
        lambda s: {"partition": s.u},
        payer=lambda s: s.u,
    ),
    _C.MAP_GPA_PAGES: Object(
        6,
        lambda s: {"gpfn": 0x900, "pages": 6, "flags": NEW},
        _C.UNMAP_GPA_PAGES,
        lambda s: {"gpfn": 0x900, "pages": 6},
    ),
    _C.MAP_SPARSE_GPA_PAGES: Object(
        MAPPING_PAGES,
        lambda s: {"flags": READ_WRITE, "source_partition": s.c, "pages": [[0x900, 0x200]]},
        _C.UNMAP_GPA_PAGES,
        lambda s: {"gpfn": 0x900, "pages": 2},
    ),
    _C.CREATE_VP: Object(VP_PAGES, lambda s: {"vp": 9}, _C.DELETE_VP, lambda s: {"vp": 9}),
    _C.INSTALL_INTERCEPT: Object(
        INTERCEPT_PAGES,
        lambda s: {"partition": s.c, "access": 1, **_IO_PORT},
        _C.INSTALL_INTERCEPT,
        lambda s: {"partition": s.c, "access": 0, **_IO_PORT},
        payer=lambda s: s.c,
    ),
    _C.CREATE_PORT: Object(
        PORT_PAGES,
        _port,
        _C.DELETE_PORT,
        lambda s: {"partition": s.p, "port": 20},
        caller=lambda s: 1,
    ),
    _C.CREATE_PORT_DEPRECATED: Object(
        PORT_PAGES,
        _port,
        _C.DELETE_PORT,
        lambda s: {"partition": s.p, "port": 20},
        caller=lambda s: 1,
    ),
    _C.CONNECT_PORT: Object(
        CONNECTION_PAGES, _connection, _C.DISCONNECT_PORT, lambda s: {"connection": 20}, before=_childs_port
    ),
    _C.CONNECT_PORT_DEPRECATED: Object(
        CONNECTION_PAGES, _connection, _C.DISCONNECT_PORT, lambda s: {"connection": 20}, before=_childs_port
    ),
    _C.CREATE_DEVICE_DOMAIN: Object(
        DEVICE_DOMAIN_PAGES, lambda s: {"domain": 3}, _C.DELETE_DEVICE_DOMAIN, lambda s: {"domain": 3}
    ),
    _C.MAP_DEVICE_GPA_PAGES: Object(
        MAPPING_PAGES,
        lambda s: {"domain": 3, "gpfn": 0x100, "pages": 1, "flags": 1},
        _C.UNMAP_DEVICE_GPA_PAGES,
        lambda s: {"domain": 3, "gpfn": 0x100, "pages": 1},
        before=_domain,
    ),
    _C.MAP_STATS_PAGE: Object(STATS_PAGE_PAGES, lambda s: _STATS, _C.UNMAP_STATS_PAGE, lambda s: _STATS),
}


def test_every_call_that_can_run_out_of_pages_is_walked_through_here() -> None:
    can = {code for code, statuses in CASES.items() if HvStatus.INSUFFICIENT_MEMORY in statuses}
    assert can - {_C.DEPOSIT_MEMORY, _C.WITHDRAW_MEMORY} == set(OBJECTS)
    assert can <= set(RULES)


@pytest.mark.parametrize("code", list(OBJECTS), ids=lambda code: code.name)
def test_whoever_runs_out_deposits_tries_again_and_gets_it_all_back(code: HypercallCode) -> None:
    what = OBJECTS[code]
    scene = what.before(Scene(code))
    caller, payer = what.caller(scene), what.payer(scene)
    pool = scene.w.machine.partitions[payer].pool
    scene.poor(payer)
    kept = pool.in_use
    parent = scene.w.machine.partitions[payer].parent
    assert parent is not None
    for missing in range(what.pages, 0, -1):
        assert scene.ask(caller, **what.make(scene)) is HvStatus.INSUFFICIENT_MEMORY, missing
        scene.after(parent, _C.DEPOSIT_MEMORY, partition=payer, pages=1)
    before = scene.w.machine.partitions[parent].pool.available
    assert scene.ask(caller, **what.make(scene)) is HvStatus.SUCCESS
    assert (pool.available, pool.in_use) == (0, kept + what.pages)
    scene.after(caller, what.end, **what.end_with(scene))
    if code is _C.INITIALIZE_PARTITION:
        assert scene.w.machine.partitions[parent].pool.available == before + what.pages
    else:
        assert (pool.available, pool.in_use) == (what.pages, kept)


class Exhaustion(RuleBasedStateMachine):
    """Objects come and go in any order in a pool that is always about to run dry; nothing is lost or made."""

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(_C.CREATE_VP)
        self.machine = self.scene.w.machine
        self.pool = self.machine.partitions[self.scene.p].pool
        self.scene.poor(self.scene.p, 3)
        _domain(_childs_port(self.scene.after(1, _C.DEPOSIT_MEMORY, partition=self.scene.p, pages=1)))
        self.empty = self.pool.in_use
        self.made: dict[HypercallCode, int] = {}

    kinds = st.sampled_from(
        [
            code
            for code, what in OBJECTS.items()
            if code
            not in (
                _C.INITIALIZE_PARTITION,
                _C.CREATE_PARTITION,
                _C.INSTALL_INTERCEPT,
                _C.CREATE_PORT_DEPRECATED,
                _C.CONNECT_PORT_DEPRECATED,
                _C.MAP_SPARSE_GPA_PAGES,
                _C.CREATE_DEVICE_DOMAIN,
            )
        ]
    )

    @rule(code=kinds)
    def make(self, code: HypercallCode) -> None:
        if code in self.made:
            return
        what, scene = OBJECTS[code], self.scene
        scene.code = code
        enough = self.pool.available >= what.pages
        status = scene.ask(what.caller(scene), **what.make(scene))
        assert status is (HvStatus.SUCCESS if enough else HvStatus.INSUFFICIENT_MEMORY)
        if enough:
            self.made[code] = what.pages

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        code = data.draw(st.sampled_from(sorted(self.made)))
        what, scene = OBJECTS[code], self.scene
        scene.after(what.caller(scene), what.end, **what.end_with(scene))
        del self.made[code]

    @rule(pages=st.integers(1, 6))
    def deposit(self, pages: int) -> None:
        self.scene.after(1, _C.DEPOSIT_MEMORY, partition=self.scene.p, pages=pages)

    @rule(pages=st.integers(1, 9))
    def withdraw(self, pages: int) -> None:
        enough = self.pool.available >= pages
        status = self.scene.w.status(1, _C.WITHDRAW_MEMORY, partition=self.scene.p, pages=pages)
        assert status is (HvStatus.SUCCESS if enough else HvStatus.INSUFFICIENT_MEMORY)

    @invariant()
    def what_is_in_use_is_what_was_made(self) -> None:
        assert self.pool.in_use == self.empty + sum(self.made.values())


TestExhaustion = Exhaustion.TestCase
TestExhaustion.settings = settings(max_examples=25, stateful_step_count=25)
