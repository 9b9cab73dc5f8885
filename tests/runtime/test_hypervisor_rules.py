"""Who may call what: every row of the rule table, every state of a target, every shape of an argument."""

import inspect
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.abi import (
    ALL_PRIVILEGES,
    PARTITION_SELF,
    HvStatus,
    HypercallCode,
    MapFlags,
    PartitionState,
    PortType,
    Privilege,
)
from runtime.hypercalls.arguments import ARGUMENTS, Kind
from runtime.hypervisor.call_rules import RULES
from tests.runtime.hypervisor_world import World

_C = HypercallCode


def _arguments(code: HypercallCode, target: int) -> dict[str, Any]:
    """Arguments of the right shape; whether they make sense comes after the rule."""
    plausible: dict[Kind, Any] = {
        Kind.UINT: 1,
        Kind.BYTES: b"",
        Kind.UINTS: [],
        Kind.PAIRS: [],
        Kind.MAP: {},
    }
    found = {entry.name: plausible[entry.kind] for entry in ARGUMENTS[code] if entry.required}
    if any(entry.name == "partition" for entry in ARGUMENTS[code]):
        found["partition"] = target
    return found


def _takes_target(code: HypercallCode) -> bool:
    return any(entry.name == "partition" for entry in ARGUMENTS[code])


def test_each_handler_takes_exactly_the_arguments_that_the_abi_declares() -> None:
    for code, rule in RULES.items():
        parameters = inspect.signature(rule.handler).parameters.values()
        named = {each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}
        assert named == {entry.name for entry in ARGUMENTS[code]} - {"partition"}, code


@pytest.mark.parametrize(
    ("code", "relation"),
    [
        (code, relation)
        for code in HypercallCode
        for relation in ("self", "child", "deeper", "parent", "sibling")
        if relation == "self" or _takes_target(code)
    ],
)
def test_a_call_is_denied_without_each_of_its_privileges_and_beyond_its_relation(
    code: HypercallCode, relation: str
) -> None:
    """The caller has every privilege but the one in question; allowed calls get past ACCESS_DENIED."""
    rule = RULES[code]
    needed = {"self": rule.on_self, "child": rule.on_child, "deeper": rule.on_deeper}.get(relation)
    world = World()
    caller = world.child(privileges=ALL_PRIVILEGES, pages=512)
    child = world.child(caller, 128, ALL_PRIVILEGES)
    deeper = world.child(child, 32)
    sibling = world.child()
    target = {"self": caller, "child": child, "deeper": deeper, "parent": 1, "sibling": sibling}[relation]
    args = _arguments(code, target)
    if needed is None:
        assert world.status(caller, code, **args) == HvStatus.ACCESS_DENIED
        return
    for missing in needed:
        world.machine.partitions[caller].privileges = ALL_PRIVILEGES & ~missing
        assert world.status(caller, code, **args) == HvStatus.ACCESS_DENIED
    world.machine.partitions[caller].privileges = needed
    assert world.status(caller, code, **args) != HvStatus.ACCESS_DENIED


@pytest.mark.parametrize("code", [code for code in HypercallCode if RULES[code].on_child is not None])
@pytest.mark.parametrize("state", list(PartitionState))
def test_a_call_is_refused_in_every_state_of_its_target_that_its_rule_does_not_name(
    code: HypercallCode, state: PartitionState
) -> None:
    world = World()
    if state is PartitionState.UNINITIALIZED:
        target = world.do(1, _C.CREATE_PARTITION)["partition"]
    else:
        target = world.child()
    if state is PartitionState.FINALIZING:
        world.start(target)
    if state in (PartitionState.FINALIZING, PartitionState.FINALIZED):
        world.do(1, _C.FINALIZE_PARTITION, partition=target)
    assert world.machine.partitions[target].state is state
    refused = world.status(1, code, **_arguments(code, target)) == HvStatus.INVALID_PARTITION_STATE
    assert refused == (state not in RULES[code].states)


@pytest.mark.parametrize("code", [code for code in HypercallCode if _takes_target(code)])
def test_a_target_that_does_not_exist_is_named_so(code: HypercallCode) -> None:
    for nobody in (0, 77, 2**63):
        assert World().status(1, code, **_arguments(code, nobody)) == HvStatus.INVALID_PARTITION_ID


def test_a_dying_partition_calls_nothing_any_more() -> None:
    world = World()
    child = world.child()
    world.start(child)
    world.do(1, _C.FINALIZE_PARTITION, partition=child)
    for code in HypercallCode:
        args = _arguments(code, PARTITION_SELF)
        assert world.status(child, code, **args) == HvStatus.INVALID_PARTITION_STATE
    world.bury()
    for code in HypercallCode:
        args = _arguments(code, PARTITION_SELF)
        assert world.status(child, code, **args) == HvStatus.INVALID_PARTITION_STATE


def test_nobody_grants_privileges_that_it_does_not_hold() -> None:
    world = World()
    parent = world.child(privileges=Privilege.CREATE_PARTITIONS | Privilege.POST_MESSAGES, pages=256)
    child = world.child(parent, 16)
    mask = {"partition": child, "property": 0x10000}
    for wanted, status in (
        (Privilege.POST_MESSAGES, HvStatus.SUCCESS),
        (Privilege.SIGNAL_EVENTS, HvStatus.ACCESS_DENIED),
        (ALL_PRIVILEGES, HvStatus.ACCESS_DENIED),
        (1 << 63, HvStatus.PROPERTY_VALUE_OUT_OF_RANGE),
        (1 << 12, HvStatus.PROPERTY_VALUE_OUT_OF_RANGE),  # a hole in the mask
    ):
        assert world.status(parent, _C.SET_PARTITION_PROPERTY, **mask, value=int(wanted)) == status
    assert world.do(parent, _C.GET_PARTITION_PROPERTY, **mask)["value"] == Privilege.POST_MESSAGES


def test_a_partition_cannot_change_its_own_privileges() -> None:
    world = World()
    child = world.child(privileges=Privilege.CREATE_PARTITIONS)
    status = world.status(child, _C.SET_PARTITION_PROPERTY, property=0x10000, value=int(ALL_PRIVILEGES))
    assert status == HvStatus.ACCESS_DENIED


def test_unknown_codes_and_shapes_are_told_apart() -> None:
    world = World()
    bad_input, bad_value = HvStatus.INVALID_HYPERCALL_INPUT, HvStatus.INVALID_PARAMETER
    for code, args, files, status in (
        (0x3F, {}, 0, HvStatus.INVALID_HYPERCALL_CODE),
        (-1, {}, 0, HvStatus.INVALID_HYPERCALL_CODE),
        (2**200, {}, 0, HvStatus.INVALID_HYPERCALL_CODE),
        ("CreatePartition", {}, 0, bad_input),
        (True, {}, 0, bad_input),
        (0x40, [], 0, bad_input),
        (0x40, {"flags": "0"}, 0, bad_input),
        (0x40, {"flags": True}, 0, bad_input),
        (0x40, {"flags": 0.0}, 0, bad_input),
        (0x40, {"flag": 0}, 0, bad_input),
        (0x40, {b"flags": 0}, 0, bad_input),
        (0x40, {"flags": -1}, 0, bad_value),
        (0x40, {"flags": 2**64}, 0, bad_value),
        (0x40, {}, 1, bad_input),  # descriptors that nobody asked for
        (0x3E0, {}, 0, HvStatus.INVALID_HYPERCALL_CODE),
        (0x48, {"partition": 1}, 0, bad_input),
        (0x5C, {"connection": 1, "type": 1, "payload": bytes(241)}, 0, bad_value),
        (0x5C, {"connection": 1, "type": 1, "payload": "text"}, 0, bad_input),
        (0x50, {"vp": 0, "names": [0] * 65}, 0, bad_value),
        (0x51, {"vp": 0, "registers": [[1]]}, 0, bad_input),
        (0x51, {"vp": 0, "registers": [[1, 2, 3]]}, 0, bad_value),
        # the shape of all arguments comes before the limits of any
        (0x50, {"vp": 2**32}, 0, bad_input),
        (0x50, {"vp": 2**32, "names": ["0"]}, 0, bad_input),
        (0x50, {"names": [0] * 65, "vp": "0"}, 0, bad_input),
        (0x50, {"vp": 2**32, "names": [], "more": 0}, 0, bad_input),
    ):
        before = world.snapshot()
        assert world.call(1, code, args, files).status == status, (code, args)
        assert world.snapshot() == before


_JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.sampled_from([0, 1, 2, 3, 15, 2**32 - 1, PARTITION_SELF]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def _near_calls(draw: st.DrawFn) -> tuple[object, object, int]:
    """Calls that are almost right: real codes, real argument names, some of them with real values."""
    code = draw(st.sampled_from(list(HypercallCode)))
    args: dict[str, object] = {}
    for entry in ARGUMENTS[code]:
        if draw(st.integers(0, 9)) == 0:
            continue
        likely: st.SearchStrategy[object] = {
            Kind.UINT: st.integers(0, 5) | st.sampled_from([0x10000, 0x8F00_0000, PARTITION_SELF]),
            Kind.BYTES: st.binary(max_size=250),
            Kind.UINTS: st.lists(st.integers(0, 2**64), max_size=3),
            Kind.PAIRS: st.lists(st.lists(st.integers(0, 2**64), min_size=2, max_size=2), max_size=3),
            Kind.MAP: st.fixed_dictionaries({"module": st.just("a.b"), "name": st.just("x"), "args": _JUNK}),
        }[entry.kind]
        args[entry.name] = draw(likely | _JUNK)
    return int(code), args, draw(st.integers(0, 2))


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 99]), _near_calls() | st.tuples(_JUNK, _JUNK, st.just(0))),
        max_size=10,
    )
)
def test_no_call_whatever_it_holds_raises_or_changes_anything_when_refused(
    calls: list[tuple[int, tuple[object, object, int]]],
) -> None:
    world = World()
    child = world.child(privileges=ALL_PRIVILEGES, pages=200)
    assert child == 2
    world.start(child)
    world.child(child, 20, ALL_PRIVILEGES)
    for caller, (code, args, files) in calls:
        before = world.snapshot()
        reply = world.call(caller, code, args, files)
        if reply.status not in (HvStatus.SUCCESS, HvStatus.CALL_PENDING):
            assert world.snapshot() == before


@pytest.mark.parametrize("left", range(4))
def test_a_host_that_runs_out_refuses_the_call_and_nothing_has_changed(left: int) -> None:
    """`left` more resources succeed, then none."""
    world = World()
    child = world.child(pages=200)
    for owner, other in ((1, child), (child, 1)):
        ports = {"partition": owner, "port": 9, "connection_partition": other}
        world.do(1, _C.CREATE_PORT, **ports, type=int(PortType.EVENT), sint=2, vp=0, flag_count=1)
        world.do(1, _C.CONNECT_PORT, partition=other, connection=9, port_partition=owner, port=9)
    world.fail_after = left
    flags = int(MapFlags.READ | MapFlags.ZEROED)
    calls: list[tuple[HypercallCode, dict[str, Any]]] = [
        (_C.CLAIM_DOORBELL, {"connection": 9}),
        (_C.MAP_GPA_PAGES, {"gpfn": 0, "pages": 1, "flags": flags}),
        (_C.CREATE_VP, {"vp": 1}),
        (_C.WATCH_CHILDREN, {}),
    ]
    statuses = [world.status(1, code, **args) for code, args in calls]
    assert HvStatus.INSUFFICIENT_MEMORY in statuses
    assert statuses == sorted(statuses)  # once it runs out, it stays so
    world.fail_after = None
    for (code, args), status in zip(calls, statuses, strict=True):
        if status:
            world.do(1, code, **args)
