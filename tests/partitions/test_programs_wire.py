"""What a guest and the runner of its programs say to each other: any bytes are understood or refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.programs import wire
from partitions.programs.wire import MalformedOrder
from runtime.config.sandbox import SandboxMode, SandboxOrders
from runtime.config.tap_order import TapOrder

words = st.text(max_size=20).filter(lambda word: "\0" not in word)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda one: st.lists(one) | st.dictionaries(st.text(max_size=3), one),
    max_leaves=6,
)


@given(
    st.lists(words, min_size=1, max_size=5).filter(lambda argv: argv[0] != ""),
    st.dictionaries(words, words, max_size=3),
)
def test_an_order_arrives_as_it_was_given(argv: list[str], environment: dict[str, str]) -> None:
    assert wire.decode_order(wire.encode({"argv": argv, "environment": environment})) == (argv, environment)


@given(st.binary(max_size=80) | st.builds(lambda value: json.dumps(value).encode(), json_values))
def test_any_bytes_are_understood_or_refused(data: bytes) -> None:
    for decode in (wire.decode_order, wire.decode_answer):
        try:
            decode(data)
        except MalformedOrder:
            continue


@pytest.mark.parametrize(
    "order",
    [
        {"argv": [], "environment": {}},
        {"argv": [""], "environment": {}},
        {"argv": ["a\0b"], "environment": {}},
        {"argv": ["a", 1], "environment": {}},
        {"argv": ["a"], "environment": {"k": 1}},
        {"argv": "a", "environment": {}},
    ],
)
def test_what_no_program_can_be_given_is_refused(order: object) -> None:
    with pytest.raises(MalformedOrder):
        wire.decode_order(json.dumps(order).encode())


def test_the_zygote_is_told_of_taps_in_one_word() -> None:
    taps = {
        "left": TapOrder("net0", 1500, "10.0.0.1/24", "10.0.0.254"),
        "right": TapOrder("net-1", 9000),
    }
    orders = SandboxOrders(SandboxMode.STRICT, {"left": SandboxMode.OFF}, taps)
    assert SandboxOrders.parse(str(orders)) == orders
    for nonsense in ("on,+left=net0", "on,+left=net0;x;;", "on,+left=net0;1500;10.0.0.300/24;"):
        with pytest.raises(ValueError, match=r"."):
            SandboxOrders.parse(nonsense)
