"""A comparison: every variant that was asked for is there or says why not, noise is called noise, and nothing is lost
between what was measured and what is shown. Made-up figures; `tests/machine/test_compare.py` has real machines."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.config.architecture import Architecture
from runtime.config.loading import load
from runtime.config.model import SignalRoute, WaitingKind
from runtime.measure.compare_matrix import Variant, matrix, not_applicable, order_of, terms_of
from runtime.measure.compare_noise import (
    Question,
    Ratio,
    Statement,
    Verdict,
    answer_all,
    ratio_of_values,
    times,
)
from runtime.measure.compare_page import compare_page
from runtime.measure.compare_run import COLUMNS, statements
from runtime.measure.compare_store import to_run
from runtime.measure.compare_table import missing, sentences, table_rows, to_json
from runtime.measure.results import decode_run, encode_run
from tests.runtime.compare_making import LOADS, comparison
from tests.runtime.result_making import latencies
from tests.runtime.test_drawing import collected

CONFIG = """
[machine]
name = "c"
memory = "256MiB"
architecture = "{architecture}"
waiting = "{waiting}"
signal_route = "{route}"
[[root.device]]
name = "d"
kind = "{kind}"
{backend}
[[partition]]
name = "g"
program = "partitions.guests.idle:main"
memory = "16MiB"
[[partition.device]]
name = "d"
{own}
"""


def config_file(
    folder: Path,
    architecture: str = "microkernelized",
    waiting: str = "adaptive",
    route: str = "direct",
    kind: str = "disk",
    own: str = "",
) -> Path:
    backend = 'backend = "memory"\nsize = "1MiB"' if kind == "disk" else ""
    path = folder / "c.toml"
    path.write_text(
        CONFIG.format(
            architecture=architecture, waiting=waiting, route=route, kind=kind, backend=backend, own=own
        )
    )
    return path


# -- which variants, in which order -------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", list(Architecture))
@pytest.mark.parametrize(
    "own", ["", 'waiting = "spin"\nsignal_route = "broker"'], ids=["machine's", "device's own"]
)
def test_every_variant_loads_as_what_it_is_called(
    tmp_path: Path, architecture: Architecture, own: str
) -> None:
    """Its overrides reach each device, also one with a setting of its own; one that has no such machine says why."""
    path = config_file(tmp_path, architecture, own=own)
    config = load(path)
    for variants in (matrix(config), matrix(config, everything=True)):
        assert variants[0] == Variant(architecture)
        assert len(set(variants)) == len(variants)
        assert {variant.architecture for variant in variants} == set(Architecture)
        for variant in variants:
            if not_applicable(variant, config) is not None:
                assert variant.architecture is Architecture.MICROKERNEL
                continue
            loaded = load(path, variant.overrides(config))
            device = loaded.partitions[0].devices[0]
            terms = terms_of(variant, config)
            assert loaded.machine.architecture == terms.architecture
            if variant.architecture is not Architecture.MICROKERNEL:
                assert loaded.signal_route_of(device) == terms.route
                assert loaded.waiting_of(device) == terms.waiting
        names = [terms_of(variant, config).name for variant in variants]
        assert len(set(names)) == len(names)


def test_a_full_matrix_has_every_combination_once(tmp_path: Path) -> None:
    config = load(config_file(tmp_path, waiting="spin"))
    found = {terms_of(variant, config) for variant in matrix(config, everything=True)}
    for architecture in set(Architecture) - {Architecture.MICROKERNEL}:
        pairs = {(one.route, one.waiting) for one in found if one.architecture == architecture}
        assert pairs == {(route, wait) for route in ("direct", "broker") for wait in ("spin", "block")}


def test_what_is_asked_for_is_compared_with_the_configs_own(tmp_path: Path) -> None:
    config = load(config_file(tmp_path, "disaggregated", "adaptive"))
    asked = matrix(config, [Architecture.HOSTED], [SignalRoute.BROKER], [WaitingKind.SPIN])
    assert asked == [
        Variant(Architecture.DISAGGREGATED),
        Variant(Architecture.HOSTED, SignalRoute.BROKER, WaitingKind.SPIN),
    ]


@pytest.mark.parametrize("kind", ["switch"])
def test_a_device_without_a_driver_is_nowhere_but_in_the_root(tmp_path: Path, kind: str) -> None:
    path = config_file(tmp_path, kind=kind)
    first, partition = path.read_text().split("[[partition]]", 1)
    path.write_text(
        f"{first}[[partition]]{partition}[[partition]]{partition.replace(chr(34) + 'g', chr(34) + 'h')}"
    )
    config = load(path)
    for variant in matrix(config):
        reason = not_applicable(variant, config)
        assert (reason is None) == (variant.architecture is Architecture.MICROKERNELIZED), variant
        assert reason is None or kind in reason


@given(st.integers(1, 40), st.integers(0, 1000), st.integers())
def test_each_round_takes_every_variant_once_and_a_seed_replays_it(
    count: int, number: int, seed: int
) -> None:
    order = order_of(count, number, seed)
    assert sorted(order) == list(range(count))
    assert order == order_of(count, number, seed)
    if count > 10:
        assert len({tuple(order_of(count, other, seed)) for other in range(10)}) > 1


# -- noise --------------------------------------------------------------------------------------------------

FIGURES = st.lists(st.floats(1e-3, 1e9), min_size=5, max_size=12)


@given(FIGURES, st.randoms(use_true_random=False))
def test_a_ratio_and_its_reverse_say_the_same(own: list[float], rng: random.Random) -> None:
    other = [value * rng.uniform(0.5, 3) for value in own]
    there, back = ratio_of_values(own, other), ratio_of_values(other, own)
    assert isinstance(there, Ratio)
    assert isinstance(back, Ratio)
    assert there.value * back.value == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)
    assert there.p_value == pytest.approx(back.p_value)
    assert there.low <= there.value <= there.high


@given(FIGURES, st.floats(1.1, 100))
def test_a_steady_factor_is_beyond_noise_however_much_rounds_differ(own: list[float], factor: float) -> None:
    """Rounds are pairs: a round that was slow for one was slow for the other."""
    (statement,) = answer_all([Question(1, "", "x", own, [value * factor for value in own])], 1)
    assert statement.verdict is Verdict.BEYOND
    assert statement.ratio is not None
    assert statement.ratio.value == pytest.approx(factor)


def test_noise_alone_is_seldom_called_a_difference() -> None:
    rng, wrong, tables = random.Random(3), 0, 100
    for seed in range(tables):
        questions = []
        for column in range(8):
            own, other = ([rng.lognormvariate(0, 0.2) for _ in range(6)] for _ in range(2))
            questions.append(Question(1, "", str(column), own, other))
        found = answer_all(questions, seed)
        wrong += any(each.verdict is Verdict.BEYOND for each in found)
    assert wrong < 0.1 * tables  # 5 % are to be expected


@pytest.mark.parametrize(
    ("own", "other", "why"),
    [
        ([1.0] * 4, [2.0] * 4, "rounds 4, 5 are needed"),
        ([0.0] * 5, [0.0] * 5, "both are 0"),
        ([1.0] * 5, [0.0, 1, 1, 1, 1], "one of them is 0"),
    ],
)
def test_where_nothing_can_be_said_it_says_why(own: list[float], other: list[float], why: str) -> None:
    (statement,) = answer_all([Question(1, "", "x", own, other)], 1)
    assert statement.verdict is Verdict.UNKNOWN
    assert why in statement.why
    assert why in statement.text


def test_percentiles_are_compared_in_pairs_and_equal_ones_are_not_told_apart() -> None:
    result = comparison(factors=(1.0, 3.0, 1.0), rounds=6)
    said = statements(result)
    slow = {each.column: each for each in said[1, LOADS[0]]}
    same = {each.column: each for each in said[2, LOADS[0]]}
    assert list(slow) == list(COLUMNS)
    for column in ("p50", "throughput", "CPU per request"):
        ratio = slow[column].ratio
        assert slow[column].verdict is Verdict.BEYOND
        assert ratio is not None
        assert ratio.value == pytest.approx(1 / 3 if column == "throughput" else 3, rel=0.1)
        assert ratio.low < ratio.value < ratio.high
        assert same[column].verdict is Verdict.WITHIN
    assert slow["p99.9"].verdict is Verdict.UNKNOWN  # 2,400 requests: two lie beyond it
    assert all(each.verdict is not Verdict.BEYOND for each in said[2, LOADS[1]])


def test_rounds_that_were_slow_for_both_do_not_hide_a_difference_of_percentiles() -> None:
    rng = random.Random(5)
    paces = [rng.uniform(0.3, 3) for _ in range(8)]
    own, other = ([latencies(rng, 10_000 * pace * factor) for pace in paces] for factor in (1.0, 1.3))
    (statement,) = answer_all([Question(1, "", "p50", own, other, 50.0)], 1)
    assert statement.verdict is Verdict.BEYOND


@given(st.floats(1e-9, 1e9))
def test_a_ratio_in_words_is_off_by_less_than_it_shows(value: float) -> None:
    assert float(times(value)) == pytest.approx(value, rel=0.06)


def test_a_statement_reads_like_a_sentence() -> None:
    text = Statement("p50", Verdict.BEYOND, Ratio(3.1, 2.9, 3.4, 0.001)).text
    assert text == "p50 3.10 x [2.90, 3.40], beyond noise"


# -- what is shown ------------------------------------------------------------------------------------------


def test_the_table_has_a_line_for_each_load_and_variant_and_misses_none() -> None:
    result = comparison(factors=(1.0, 3.0, 1.0))
    said = statements(result)
    rows = table_rows(result, said)
    assert [row["load"] for row in rows] == [load for load in LOADS for _ in range(3)]
    assert len({tuple(row) for row in rows}) == 1, "every line has every column"
    assert rows[0]["architecture"].endswith("*")
    assert float(rows[1]["p50"].split()[2]) == pytest.approx(3, rel=0.1)
    assert rows[2]["p50"].endswith("~")
    assert rows[0]["trusted"] == "1.18 MiB + 10.5 MiB"
    words = sentences(result, said)
    assert any(line.startswith("hosted, direct, block (4 KiB reads): p50 ") for line in words)
    gone = missing(result)
    assert len(rows) // 2 + len(gone) == len(result.entries)
    assert gone[0].startswith("microkernel, broker, block: not applicable: ")
    assert gone[1].startswith("microkernel: failed: ")


def test_what_this_user_may_not_see_is_not_counted_as_nothing() -> None:
    result = comparison(whole=False)
    row = table_rows(result, statements(result))[0]
    assert row["trusted"] == "?"
    assert row["sees data"].startswith(">=1")


def test_the_json_has_every_variant_and_its_figures_are_the_tables() -> None:
    result = comparison()
    said = statements(result)
    plain: dict[str, Any] = to_json(result, said)
    assert [each["status"] for each in plain["variants"]] == ["ok", "ok", "not applicable", "failed"]
    assert [each["own"] for each in plain["variants"]] == [True, False, False, False]
    for variant in plain["variants"][:2]:
        for figures in variant["loads"]:
            assert sum(figures["cpu_ns_by_process"].values()) == pytest.approx(
                figures["cpu_ns_per_request"], abs=1
            )
            assert figures["p50_ns"] <= figures["p99_ns"] <= figures["p99.9_ns"]
    assert {each["column"] for each in plain["variants"][1]["loads"][0]["statements"]} == set(COLUMNS)


def test_few_rounds_claim_nothing() -> None:
    result = comparison(rounds=2)
    said = statements(result)
    assert all(each.verdict is Verdict.UNKNOWN for found in said.values() for each in found)
    assert sentences(result, said) == [
        "nothing can be said of differences: rounds 2, 5 are needed (--rounds)"
    ]


@given(st.text(st.sampled_from("<>&\"'/=! scriptx\0"), max_size=20), st.booleans())
@settings(max_examples=4, deadline=None)
def test_the_page_needs_nothing_from_outside_and_text_stays_text(label: str, whole: bool) -> None:
    result = comparison(label=label, whole=whole)
    document = compare_page(result, statements(result))
    found = collected(document)
    plain = comparison(label="x" * len(label), whole=whole)
    assert found.tags == collected(compare_page(plain, statements(plain))).tags
    assert not [value for value in found.values if "://" in value or value.startswith("//")]
    assert not {"link", "img", "iframe", "object", "base"} & set(found.tags)
    for entry in result.entries:
        assert entry.terms.architecture in found.text
        assert entry.reason in found.text


def test_a_kept_comparison_is_what_was_measured() -> None:
    result = comparison()
    run = decode_run(encode_run(to_run(result)))
    assert run.id == result.id
    assert [row.status.value for row in run.rows] == ["ok"] * 4 + ["not possible", "failed"]
    for name in LOADS:
        rows = [row for row in run.rows if row.group == name]
        for row, entry in zip(rows, result.entries, strict=False):
            assert row.latency == entry.latency(name)
            assert sum(one.exchanges for one in row.rounds) == sum(
                one.operations for one in entry.figures(name)
            )
