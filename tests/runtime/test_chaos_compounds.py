"""Compounds are made of what there is, and their parts come when and as they say."""

import pytest

from runtime.chaos.faults.catalogue import FAULTS
from runtime.chaos.faults.compounds import BY_NAME, COMPOUNDS, Compound
from runtime.chaos.faults.kinds import Carrier, Group, Need
from runtime.chaos.faults.orders import Order


@pytest.mark.parametrize("compound", COMPOUNDS, ids=lambda one: one.kind.name)
def test_every_part_is_a_kind_with_such_parameters_and_none_is_a_compound(compound: Compound) -> None:
    for parameter in compound.kind.parameters:
        assert any(str(parameter.name) in str(part) for part in compound.parts), "nobody looks at it"
    order = Order(9, compound.kind.name, "victim", compound.kind.settle({}), seed=5)
    parts = compound.orders(order)
    assert len(parts) == len(compound.parts)
    assert [when for when, _ in parts] == sorted(when for when, _ in parts)
    for _, part in parts:
        kind = FAULTS[part.kind]
        assert kind.carrier is not Carrier.COMPOUND
        kind.settle(part.parameters)
        assert part.number == 0
        assert part.seed != order.seed
        if kind.group is Group.PROCESS and part.target == "root":
            assert Need.SUCCESSOR in compound.kind.needs


def test_what_is_given_to_a_compound_reaches_its_parts() -> None:
    compound = BY_NAME["root-dies-while-disk-is-slow"]
    order = Order(1, compound.kind.name, "disk3", compound.kind.settle({"delay_ms": 77, "after_ms": 5}))
    (first_ms, slow), (second_ms, kill) = compound.orders(order)
    assert (first_ms, slow.kind, slow.target, slow.parameters) == (
        0,
        "storage-slow",
        "disk3",
        {"delay_ms": 77},
    )
    assert (second_ms, kill.kind, kill.target) == (5, "kill", "root")


def test_there_are_more_than_forty_kinds_and_each_says_all_about_itself() -> None:
    assert len(FAULTS) >= 45
    for name, kind in FAULTS.items():
        assert name == kind.name == name.lower()
        assert "_" not in name
        assert kind.summary
        assert kind.seam
        assert kind.summary[-1] != "."
        kind.settle({})
