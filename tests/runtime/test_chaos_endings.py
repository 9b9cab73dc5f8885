"""The judge on requests that never end, or end too late: histories written by hand."""

from runtime.chaos.blocks import ZEROS
from runtime.chaos.checker import Cut, check
from runtime.chaos.history import Ending
from runtime.chaos.liveness import Gap, busy_ns, gaps_around
from runtime.chaos.register_conflicts import Kind
from tests.runtime.history_script import Script, judge, kinds

SECOND = 1_000_000_000


def test_what_never_completes_is_hung_unless_the_run_was_cut() -> None:
    script = Script()
    script.write(0, 10)
    script.read(20, 30, script.operations[0].version)
    script.write(40, None)
    assert kinds(check([script.history()])) == {Kind.HUNG}
    cut_off = [script.history(Ending.NONE)]
    assert kinds(check(cut_off)) == {Kind.HUNG}
    assert check(cut_off, killed={1}).passed
    assert check(cut_off, cuts=[Cut(100)]).passed
    assert kinds(check([script.history(last_ns=9 * SECOND)], killed={1}, bound_s=5)) == {Kind.HUNG}


def test_a_completion_beyond_the_bound_is_hung_too() -> None:
    script = Script()
    script.read(0, 3 * SECOND, ZEROS)
    assert judge(script, bound_s=3) == set()
    assert judge(script, bound_s=2.9) == {Kind.HUNG}


def test_a_guest_that_gave_up_is_never_green() -> None:
    """Its channel was closed: every request has an end, but the disk is gone."""
    script = Script()
    script.read(0, 10, ZEROS)
    assert kinds(check([script.history(Ending.GAVE_UP)])) == {Kind.HUNG}
    assert check([script.history(Ending.GAVE_UP)], cuts=[Cut(20)]).passed


def test_the_longest_gap_counts_only_while_something_is_in_flight() -> None:
    script = Script()
    script.read(0, 10, ZEROS)
    script.read(1000, 1020, ZEROS)
    script.read(1005, 1100, ZEROS)
    history = script.history()
    assert check([history]).longest_gap == Gap(80, 1020)
    assert busy_ns([history, history], 5000) == 10 + 100  # at once counts once
    found = gaps_around(history, [1050, 500, 1019, 1020, 1100, 0])
    assert found == [Gap(80, 1020), None, Gap(20, 1000), Gap(80, 1020), None, Gap(10, 0)]
