"""When a fault strikes: the kernel's knobs, and decisions that a seed repeats."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.chaos.faults.kinds import Carrier, FaultKind, Group, Parameter, ParameterError
from runtime.chaos.faults.knobs import FOR_EVER, KnobError, Knobs, Trigger
from runtime.chaos.faults.orders import Order, OrderError

KNOBS = st.builds(
    Knobs,
    probability=st.floats(0, 100),
    interval=st.integers(1, 7),
    times=st.integers(FOR_EVER, 9),
    space=st.integers(0, 20),
)
SEEDS = st.integers(0, (1 << 63) - 1)


@given(KNOBS, SEEDS, st.integers(0, 200))
def test_the_same_seed_gives_the_same_decisions(knobs: Knobs, seed: int, passes: int) -> None:
    first, second = Trigger(knobs, seed), Trigger(knobs, seed)
    assert [first.strikes() for _ in range(passes)] == [second.strikes() for _ in range(passes)]


@given(KNOBS, SEEDS, st.integers(0, 200))
def test_each_knob_holds(knobs: Knobs, seed: int, passes: int) -> None:
    trigger = Trigger(knobs, seed)
    struck = [number for number in range(1, passes + 1) if trigger.strikes()]
    assert (trigger.passes, trigger.fired) == (passes, len(struck))
    assert all(number > knobs.space and (number - knobs.space) % knobs.interval == 0 for number in struck)
    assert knobs.times == FOR_EVER or len(struck) <= knobs.times
    assert trigger.is_spent == (trigger.fired == knobs.times)
    if knobs.probability == 100:
        eligible = max(passes - knobs.space, 0) // knobs.interval
        assert len(struck) == (eligible if knobs.times == FOR_EVER else min(eligible, knobs.times))


def test_a_probability_is_met_in_the_long_run() -> None:
    trigger = Trigger(Knobs(probability=25), seed=7)
    for _ in range(20_000):
        trigger.strikes()
    assert 0.24 < trigger.fired / trigger.passes < 0.26


@pytest.mark.parametrize(
    "table", [{"probability": 101}, {"interval": 0}, {"times": -2}, {"space": True}, {"often": 1}]
)
def test_bad_knobs_are_refused(table: dict[str, object]) -> None:
    with pytest.raises(KnobError):
        Knobs.from_table(table)


@given(KNOBS, SEEDS, st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=8), max_size=4))
def test_an_order_survives_its_wire(knobs: Knobs, seed: int, parameters: dict[str, int | str]) -> None:
    order = Order(3, "kill", "root", parameters, knobs, seed)
    assert Order.from_table(order.to_table()) == order


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner)))
def test_what_is_no_order_is_refused(table: object) -> None:
    with pytest.raises(OrderError):
        Order.from_table(table)


KIND = FaultKind(
    "storage-slow",
    Group.STORAGE,
    "a request takes longer",
    "storage.execute",
    Carrier.SERVER,
    (
        Parameter("delay_ms", 10, "how much longer", "ms", 0, 1000),
        Parameter("which", "read", "which requests", choices=("read", "write")),
    ),
)


def test_parameters_are_checked_and_filled_in() -> None:
    assert KIND.settle({"delay_ms": 5}) == {"delay_ms": 5, "which": "read"}
    assert KIND.parameters[0].parse("0x10") == 16


@pytest.mark.parametrize("given", [{"delay_ms": 1001}, {"delay_ms": True}, {"which": "both"}, {"delay": 1}])
def test_bad_parameters_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match=r"want|there is"):
        KIND.settle(given)
