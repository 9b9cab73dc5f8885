"""Campaigns: their statistics, their reports, and how a failing schedule is made small."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.chaos.delta_debugging import Minimizer, OutOfTries
from runtime.chaos.experiment.campaign import Campaign, broken, run_campaign, statistics, verdict
from runtime.chaos.experiment.journal import Header, Outcome, read_journal
from runtime.chaos.experiment.loading import ExperimentError, experiment_of, load_experiment
from runtime.chaos.experiment.model import Statistic, Threshold
from runtime.chaos.experiment.performing import Task
from runtime.chaos.experiment.reports.junit import junit_xml
from runtime.chaos.experiment.reports.page import campaign_page
from runtime.chaos.experiment.schedule import Schedule
from runtime.chaos.experiment.shrinking import Shrinker
from runtime.chaos.experiment.tally import by_architecture, by_check, by_fault, complaints
from tests.runtime.chaos_making import fate, injection, trial

SCHEDULE = (injection(1), injection(2, "stop", "guest1"))
TRIALS = [
    trial(1, schedule=SCHEDULE),
    trial(2, Outcome.VIOLATED, SCHEDULE),
    trial(
        3, schedule=SCHEDULE, fates=(fate(1), fate(2, fired=0, fired_ms=None)), trouble="fault 2 did not fire"
    ),
    trial(4, schedule=SCHEDULE, fates=(fate(1, recovered_ms=None), fate(2, error="no such partition"))),
]
HEADER = Header({"experiment": {"name": "both <&>"}}, "both.toml", "/", 101, 4, {"partvisor": "0"})


def test_each_fault_is_counted_once_for_each_thing_that_became_of_it() -> None:
    kill, stop = by_fault(TRIALS)
    assert (kill.injected, kill.fired, kill.wrong, kill.not_recovered, kill.recovered) == (4, 4, 1, 1, 2)
    assert (stop.injected, stop.fired, stop.wrong, stop.recovered, stop.refused) == (3, 2, 1, 1, 1)
    for tally in (kill, stop):
        assert tally.fired == tally.wrong + tally.recovered + tally.not_recovered
    assert by_check(TRIALS) == [{"check": "history", "passed": 3, "violated": 1, "inconclusive": 0}]
    (row,) = by_architecture(TRIALS)
    assert (row["passed"], row["violated"], row["inconclusive"], row["deaths"]) == (2, 1, 1, 4)


def test_a_fault_that_did_not_fire_is_never_green() -> None:
    assert TRIALS[2].outcome is Outcome.INCONCLUSIVE
    assert complaints([TRIALS[2]], 9) == ["trial 3 (seed 103): inconclusive: fault 2 did not fire"]


def test_the_verdict_is_the_worst_and_thresholds_count() -> None:
    assert verdict(TRIALS, ()) is Outcome.VIOLATED
    assert verdict(TRIALS[:1], ()) is Outcome.PASSED
    assert verdict(TRIALS[2:3], ()) is Outcome.INCONCLUSIVE
    assert verdict([], ()) is Outcome.INCONCLUSIVE
    tight = (Threshold(of=Statistic.OUTAGE_MAX_MS, at_most=14),)
    assert verdict(TRIALS[:1], tight) is Outcome.VIOLATED
    assert broken(tight, statistics(TRIALS[:1])) == ["outage-max-ms: 15, at most 14 wanted"]
    assert broken((Threshold(of=Statistic.OUTAGE_P99_MS, at_most=15),), statistics(TRIALS[:1])) == []


def test_junit_says_what_failed_and_what_is_unknown() -> None:
    suite = ElementTree.fromstring(junit_xml(HEADER, TRIALS))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "1")
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    unknown = [case.get("name") for case in suite if case.find("error") is not None]
    assert (failed, unknown) == (["trial 2 seed 102"], ["trial 3 seed 103"])
    problem = suite[1].find("failure")
    assert problem is not None
    assert problem.get("message") == "history: block 2 is <lost> & \N{REPLACEMENT CHARACTER} gone"


def test_the_page_is_whole_and_needs_nothing_from_elsewhere() -> None:
    text = campaign_page(HEADER, TRIALS, TRIALS[1:2])
    assert "http://" not in text
    assert "https://" not in text
    assert "both &lt;&amp;&gt;" in text
    assert "block 2 is &lt;lost&gt;" in text
    for svg in text.split("<svg ")[1:]:
        ElementTree.fromstring("<svg " + svg.split("</svg>")[0] + "</svg>")


def test_a_page_of_nothing_is_a_page() -> None:
    empty = trial(1, schedule=SCHEDULE, completions=(), timeline=(), fates=(), outages_ms=())
    assert "No request completed" in campaign_page(HEADER, [empty])
    assert "inconclusive" in campaign_page(HEADER, [])


# -- loading and performing


EXPERIMENT = """
[experiment]
name = "two"
architectures = ["microkernelized", "disaggregated"]
[[fault]]
kind = "kill"
target = "root"
at_ms = [10, 90]
[[check]]
kind = "history"
"""


class InOrder:
    """Workers that make trials up."""

    def perform(self, tasks):  # type: ignore[no-untyped-def]
        for table in tasks:
            task = Task.from_table(table)
            yield trial(
                task.number, schedule=task.schedule, seed=task.seed, architecture=task.architecture
            ).to_table()


def test_a_campaign_does_each_seed_under_each_architecture_and_keeps_a_journal(tmp_path: Path) -> None:
    file = tmp_path / "two.toml"
    file.write_text(EXPERIMENT)
    experiment, tables = load_experiment(file)
    campaign = Campaign(experiment, tables, file, 3, 7)
    done = list(run_campaign(campaign, InOrder(), tmp_path / "two.jsonl"))
    assert [(one.seed, one.architecture) for one in done] == [
        (seed, architecture) for seed in (7, 8, 9) for architecture in ("microkernelized", "disaggregated")
    ]
    assert done[0].schedule == done[1].schedule != done[2].schedule
    assert len(done) == campaign.count
    header, read = read_journal(tmp_path / "two.jsonl")
    assert (header, read) == (campaign.header, done)
    assert experiment_of(header.experiment, Path(header.folder), "again") == experiment


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('name = "two"', "nome = 1", 3),
        ('kind = "kill"', 'kind = "kil"', 6),
        ("at_ms = [10, 90]", "at_ms = [10, 90, 95]", 8),
        ('kind = "history"', 'kind = "histories"', 10),
        ('kind = "history"', 'kind = "history"\nparameters = { bound_s = 0 }', 10),
        ("[experiment]", "[experiment", 2),
    ],
)
def test_every_mistake_has_its_line(tmp_path: Path, old: str, new: str, line: int) -> None:
    file = tmp_path / "two.toml"
    file.write_text(EXPERIMENT.replace(old, new))
    with pytest.raises(ExperimentError) as caught:
        load_experiment(file)
    assert f"two.toml:{line}:" in str(caught.value)


# -- shrinking


@given(st.sets(st.integers(0, 30), max_size=5), st.integers(31, 40))
def test_what_is_left_of_a_list_is_exactly_what_it_takes(needed: set[int], length: int) -> None:
    def fails(items: Sequence[int]) -> bool:
        return needed <= set(items)

    assert Minimizer(list(range(length)), fails).minimize() == sorted(needed)


def test_one_who_runs_out_of_tries_keeps_what_it_has() -> None:
    tries = iter([True, False])

    def fails(items: Sequence[int]) -> bool:
        try:
            return next(tries)
        except StopIteration:
            raise OutOfTries from None

    assert len(Minimizer(list(range(16)), fails).minimize()) == 8


def test_a_schedule_is_shrunk_to_the_faults_that_matter_and_each_is_made_plain() -> None:
    many = tuple(
        injection(number, "stop" if number == 5 else "kill", "root", 80, times=9, probability=40)
        for number in range(1, 13)
    )

    def fails(schedule: Schedule) -> bool:
        stops = [one for one in schedule if one.order.kind == "stop"]
        return any(one.moment.after_ms >= 20 and one.order.knobs.probability >= 40 for one in stops)

    shrunk = Shrinker(fails, tries=1).shrink(many)
    assert shrunk is not None
    (left,) = shrunk.schedule
    assert (left.order.number, left.order.kind, left.order.seed) == (1, "stop", 5)
    assert (left.order.knobs.times, left.order.knobs.probability, left.moment.after_ms) == (1, 100, 20)
    assert (shrunk.failed, shrunk.tried) == (1, 1)


def test_a_failure_that_comes_seldom_is_tried_often_enough() -> None:
    runs = 0

    def fails(schedule: Schedule) -> bool:
        nonlocal runs
        runs += 1
        return runs % 3 == 0

    shrunk = Shrinker(fails, tries=3).shrink((injection(1),))
    assert shrunk is not None
    assert Shrinker(lambda schedule: False, tries=3).shrink((injection(1),)) is None
