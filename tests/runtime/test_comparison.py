"""Comparisons and thresholds of whole runs: known effects, refusals, and what a CI job would see."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime.exits import CommandError, ExitCode
from runtime.measure.comparison import Comparison, ConditionsDiffer, Scale, Verdict, compare_runs
from runtime.measure.results import Row, Run, Status
from runtime.measure.thresholds import (
    FAILING,
    Finding,
    Outcome,
    Threshold,
    ThresholdsError,
    check,
    load_thresholds,
)
from tests.runtime.result_making import conditions, missing, rounds, row, run

ROUNDS = 8


def rows(seed: int, effect: float = 1.0, count: int = ROUNDS) -> list[Row]:
    """Six rows without an effect, and one with it."""
    rng = random.Random(seed)
    made = [row(f"t{number}", rounds=rounds(rng, 1000.0 * (number + 1), count)) for number in range(6)]
    return [*made, row("changed", rounds=rounds(rng, 1000.0 * effect, count))]


def verdicts(found: Comparison) -> dict[str, set[Verdict]]:
    names = {figure.row for figure in found.figures}
    return {name: {each.verdict for each in found.figures if each.row == name} for name in names}


@pytest.mark.parametrize(("effect", "verdict"), [(1.5, Verdict.SLOWER), (0.6, Verdict.FASTER)])
def test_only_the_row_that_changed_is_said_to(effect: float, verdict: Verdict) -> None:
    found = compare_runs(run(*rows(1)), run(*rows(2, effect), number=2), percents=(50.0, 90.0))
    by_row = verdicts(found)
    assert by_row.pop("changed/64/block/two-cpus") == {verdict}
    assert set().union(*by_row.values()) == {Verdict.NO_DIFFERENCE}
    again = compare_runs(run(*rows(1)), run(*rows(2, effect), number=2), percents=(50.0, 90.0))
    assert again.to_json() == found.to_json()


def test_few_rounds_or_few_values_give_no_verdict() -> None:
    few = compare_runs(run(*rows(1, count=4)), run(*rows(2, 3.0, count=9)))
    assert {figure.verdict for figure in few.figures} == {Verdict.TOO_LITTLE}
    rare = compare_runs(run(*rows(1)), run(*rows(2, 3.0)), percents=(99.9,))
    assert {figure.verdict for figure in rare.figures} == {Verdict.TOO_LITTLE}


def test_other_conditions_are_refused_by_name_unless_forced() -> None:
    first, second = run(*rows(1)), run(*rows(2), number=2, conditions=conditions(kernel="9.9"))
    with pytest.raises(ConditionsDiffer, match=r"kernel \(6\.1\.0 and 9\.9\).*--force"):
        compare_runs(first, second)
    assert compare_runs(first, second, force=True, percents=(50.0,)).differing == {"kernel": ("6.1.0", "9.9")}


def test_rows_of_one_run_alone_are_named_and_none_in_common_is_an_error() -> None:
    some = rows(1)
    found = compare_runs(run(*some[:2], missing("t3")), run(*some[1:4]), percents=(50.0,))
    assert found.only_first == ("t0/64/block/two-cpus",)
    assert found.only_second == ("t2/64/block/two-cpus", "t3/64/block/two-cpus")
    with pytest.raises(CommandError, match="no measured row in common"):
        compare_runs(run(*some[:1]), run(*some[1:2]))


def test_by_limit_a_machine_that_moved_shows_no_difference() -> None:
    """Everything 2.6 times slower, the limit too."""
    near = run(row("ring", rounds=rounds(random.Random(1), 240.0, ROUNDS)))
    far = run(row("ring", rounds=rounds(random.Random(2), 640.0, ROUNDS, limit_ns=lambda _: 320.0)), number=2)
    by_time = compare_runs(near, far, percents=(50.0,))
    assert by_time.limit_shifted
    assert by_time.figures[0].verdict is Verdict.SLOWER
    by_limit = compare_runs(near, far, percents=(50.0,), scale=Scale.LIMIT)
    assert by_limit.figures[0].verdict is Verdict.NO_DIFFERENCE


def test_rounds_taken_again_change_no_verdict() -> None:
    good = rows(1)
    spoiled = [
        msgspec.structs.replace(
            each,
            rounds=each.rounds
            + tuple(
                msgspec.structs.replace(one, changed=True) for one in rounds(random.Random(9), 90_000.0, 3)
            ),
        )
        for each in good
    ]
    second = run(*rows(3, 1.5))
    assert (
        compare_runs(run(*good), second, percents=(50.0,)).figures
        == compare_runs(run(*spoiled), second, percents=(50.0,)).figures
    )


# -- thresholds ---------------------------------------------------------------------------------------------


def outcome(run_: Run, other: Run | None = None, **changes: Any) -> Finding:
    fields: dict[str, Any] = {"rows": "ring/*", "against": "limit"}
    (found,) = check([msgspec.convert(fields | changes, Threshold)], run_, other)
    return found


@pytest.fixture(scope="module")
def ring() -> Run:
    """Twice the limit, half of the pipe."""
    rng = random.Random(1)
    return run(
        row("ring", rounds=rounds(rng, 240.0, ROUNDS, between=0.02)),
        row("pipe", rounds=rounds(rng, 480.0, ROUNDS, between=0.02)),
        missing("futex"),
        row("mq", status=Status.FAILED, reason="it fell over"),
    )


def test_a_limit_holds_is_broken_or_is_unclear(ring: Run) -> None:
    assert outcome(ring, at_most=2.5).outcome is Outcome.MET
    assert outcome(ring, at_least=1.5, at_most=2.5).outcome is Outcome.MET
    assert outcome(ring, at_most=1.5).outcome is Outcome.BROKEN
    assert outcome(ring, at_least=3).outcome is Outcome.BROKEN
    found = outcome(ring, at_most=1.5).difference
    assert found is not None
    within = (found.low + found.ratio) / 2  # beyond the limit, but the interval is not
    assert outcome(ring, at_most=within).outcome is Outcome.UNCLEAR
    assert outcome(ring, at_most=within, strict=True).outcome is Outcome.BROKEN
    assert Outcome.UNCLEAR not in FAILING


def test_rows_are_held_against_another_row_and_another_run(ring: Run) -> None:
    assert outcome(ring, against="row", baseline="pipe", at_most=0.6).outcome is Outcome.MET
    assert outcome(ring, against="row", baseline="pipe", at_most=0.4).outcome is Outcome.BROKEN
    slower = run(row("ring", rounds=rounds(random.Random(2), 360.0, ROUNDS)), number=2)
    assert outcome(slower, ring, against="run", at_most=1.7).outcome is Outcome.MET
    assert outcome(slower, ring, against="run", at_most=1.2).outcome is Outcome.BROKEN
    with pytest.raises(ThresholdsError, match="bench compare"):
        outcome(ring, against="run", at_most=1)


def test_what_cannot_be_judged_fails_but_for_what_is_not_installed_beside_others(ring: Run) -> None:
    assert outcome(ring, rows="nothing*", at_most=9).outcome is Outcome.MISSING
    assert outcome(ring, rows="futex/*", at_most=9).outcome is Outcome.MISSING
    assert outcome(ring, rows="mq/*", at_most=9).why == "it fell over"
    assert outcome(ring, rows="[fr]*", at_most=9).outcome is Outcome.MET
    assert outcome(ring, percentile=99.99, at_most=9).outcome is Outcome.TOO_LITTLE
    assert outcome(ring, against="row", baseline="none", at_most=9).outcome is Outcome.MISSING
    short = run(row("ring", rounds=rounds(random.Random(1), 240.0, 2)))
    assert outcome(short, at_most=9).outcome is Outcome.TOO_LITTLE
    assert {Outcome.MISSING, Outcome.TOO_LITTLE, Outcome.BROKEN} == FAILING


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "threshold"),
        ("[[threshold]\n", "TOML"),
        ("\xff", "TOML"),
        ("threshold = []", "length"),
        ('[[threshold]]\nrows = "*"\nagainst = "limit"\n', ":1: threshold.0.: at_most or at_least"),
        (
            '[[threshold]]\nrows = "*"\nagainst = "limit"\nat_most = "2"\n',
            ":4: threshold.0..at_most: .*float",
        ),
        ('[[threshold]]\nrows = "*"\nagainst = "limit"\nat_most = 0\n', ":4: .*at_most"),
        ('[[threshold]]\nrows = "*"\nagainst = "clock"\nat_most = 2\n', ":3: .*clock"),
        ('[[threshold]]\nrows = "*"\nagainst = "row"\nat_most = 2\n', "baseline"),
        ('[[threshold]]\nrows = "*"\nagainst = "run"\nbaseline = "pipe"\nat_most = 2\n', "baseline"),
        ('[[threshold]]\nrows = "*"\nagainst = "limit"\nat_most = 2\nscale = "limit"\n', "scale"),
        ('[[threshold]]\nrows = "*"\nagainst = "limit"\nat_most = 1\nat_least = 2\n', "below"),
        ('[[threshold]]\nrows = "*"\nagainst = "limit"\nat_most = 1\npercentile = 100\n', ":5: .*percentile"),
        ('[[threshold]]\nrows = "*"\nagainst = "limit"\nat_most = 1\ntypo = 1\n', "typo"),
        ("[[threshold]]\nat_most = 1\n", "rows|against"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "ci.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ThresholdsError, match=message) as caught:
        load_thresholds(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code is ExitCode.USAGE


def test_a_good_file_is_read_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "ci.toml"
    path.write_text(
        '[[threshold]]\nrows = "pipe/64/*"\nagainst = "row"\nbaseline = "eventfd"\nat_most = 1.5\n'
    )
    (found,) = load_thresholds(path)
    assert (found.rows, found.baseline, found.percentile, found.strict) == (
        "pipe/64/*",
        "eventfd",
        50.0,
        False,
    )
    with pytest.raises(ThresholdsError, match="No such file"):
        load_thresholds(tmp_path / "none.toml")
