"""The judge on histories written by hand: each rule from both of its sides."""

import json

import pytest

from runtime.chaos.blocks import FOREIGN, MISDIRECTED, TORN, UNFILLED, ZEROS
from runtime.chaos.checker import CheckError, Cut, check
from runtime.chaos.history import Ending, Outcome
from runtime.chaos.register_conflicts import Kind
from runtime.chaos.verdict import EXPLAINED_MAX, Judgement, summary
from tests.runtime.history_script import Script, judge, kinds


def test_what_was_written_is_read_block_by_block() -> None:
    script = Script()
    first = script.write(0, 10, block=4, blocks=3)
    second = script.write(20, 30, block=5)
    script.read(40, 50, first, second, first, block=4)
    script.discard(60, 70, block=4, blocks=2)
    script.read(80, 90, ZEROS, ZEROS, first, ZEROS, block=4)
    verdict = check([script.history()], image={4: ZEROS, 6: first})
    assert verdict.passed
    assert (verdict.values, verdict.blocks, verdict.operations) == (9, 4, 5)


def test_an_older_value_must_not_come_back_over_an_acknowledged_one() -> None:
    script = Script()
    old = script.write(0, 10)
    new = script.write(20, 30)
    script.read(40, 50, new)
    script.read(60, 70, old)
    verdict = check([script.history()])
    assert kinds(verdict) == {Kind.LOST}
    (violation,) = verdict.violations
    assert violation.block == 0
    for part in ("block 0", "write 1:1", "version 1:1", "read 1:4", "version 1:2"):
        assert part in violation.text


def test_an_acknowledged_write_that_nobody_sees_is_lost() -> None:
    script = Script()
    script.write(0, 10)
    script.read(20, 30, ZEROS)
    assert judge(script) == {Kind.LOST}


def test_concurrent_writes_may_take_effect_in_any_order_but_in_one() -> None:
    script = Script()
    one, two = script.write(0, 10), script.write(5, 15)
    script.read(20, 30, one)
    assert judge(script) == set()
    script.read(40, 50, two)
    assert judge(script) == {Kind.LOST}


@pytest.mark.parametrize("outcome", [None, Outcome.UNKNOWN])
def test_a_write_without_an_answer_may_take_effect_late_or_never(outcome: Outcome | None) -> None:
    """A successor may find it in the ring, long after."""
    script = Script()
    kept = script.write(0, 10)
    late = script.write(20, 25 if outcome else None, outcome=outcome or Outcome.DONE)
    script.read(30, 40, kept)
    assert kinds(check([script.history()], killed={1})) == set()
    script.read(50, 60, late)
    assert kinds(check([script.history()], killed={1})) == set()
    script.read(70, 80, kept)
    assert kinds(check([script.history()], killed={1})) == {Kind.LOST}


def test_a_failed_write_happened_before_its_failure_or_not_at_all() -> None:
    script = Script()
    kept = script.write(0, 10)
    failed = script.write(20, 30, outcome=Outcome.FAILED)
    script.read(40, 50, kept)
    assert judge(script) == set()
    script.read(60, 70, failed)
    assert judge(script) == {Kind.LOST}


def test_a_failed_write_may_leave_a_torn_block_until_the_next_one() -> None:
    script = Script()
    script.write(0, 10, outcome=Outcome.FAILED)
    script.read(20, 30, TORN)
    assert judge(script) == set()
    script.write(40, 50)
    script.read(60, 70, TORN)
    assert judge(script) == {Kind.TORN}


def test_a_discard_is_a_write_of_zeros() -> None:
    script = Script()
    version = script.write(0, 10)
    script.discard(20, 30)
    script.read(40, 50, ZEROS)
    assert judge(script) == set()
    script.read(60, 70, version)
    assert judge(script) == {Kind.LOST}


def test_zeros_need_a_discard() -> None:
    script = Script()
    script.write(0, 10)
    script.read(20, 30, ZEROS)
    script.discard(40, 50)
    assert judge(script) == {Kind.LOST}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (TORN, Kind.TORN),
        (FOREIGN, Kind.INVENTED),
        (UNFILLED, Kind.INVENTED),
        (MISDIRECTED, Kind.MISDIRECTED),
        (12345, Kind.INVENTED),
    ],
)
def test_what_nobody_wrote_is_named(value: int, kind: Kind) -> None:
    script = Script()
    script.write(0, 10)
    script.read(20, 30, value)
    assert judge(script) == {kind}


def test_a_value_of_another_block_is_not_of_this_one() -> None:
    script = Script()
    version = script.write(0, 10, block=1)
    script.read(20, 30, version, block=2)
    assert judge(script) == {Kind.INVENTED}


def test_nothing_is_read_before_it_is_written() -> None:
    script = Script()
    script.read(0, 10, 1 << 40 | 2)
    script.write(20, 30)
    assert judge(script) == {Kind.INVENTED}


def test_a_tear_beside_another_guest_is_excused_only_where_the_rules_say_so() -> None:
    reader, writer = Script(1), Script(2)
    writer.write(10, 30)
    reader.read(0, 20, TORN)
    histories = [reader.history(), writer.history()]
    assert kinds(check(histories, tearing=True)) == set()
    assert kinds(check(histories)) == {Kind.TORN}
    reader.read(40, 50, TORN)
    assert kinds(check(histories, tearing=True)) == {Kind.TORN}


def test_guests_share_one_disk() -> None:
    one, two = Script(1), Script(2)
    old = one.write(0, 10)
    new = two.write(20, 30)
    one.read(40, 50, new)
    two.read(60, 70, new)
    assert check([one.history(), two.history()]).passed
    two.read(80, 90, old)
    assert kinds(check([one.history(), two.history()])) == {Kind.LOST}


def test_the_disk_begins_as_it_was_found() -> None:
    script = Script()
    script.read(0, 10, 77, ZEROS)
    assert judge(script, initial={0: 77}) == set()
    script.read(20, 30, ZEROS)
    assert judge(script, initial={0: 77}) == {Kind.LOST}


# -- the power goes


def two_boots(flushed: bool) -> tuple[Script, Script, int, int]:
    """Boot 1 writes twice, perhaps flushed between or after; boot 2 is empty yet."""
    before, after = Script(1), Script(2)
    old = before.write(0, 10)
    new = before.write(20, 30)
    if flushed:
        before.flush(40, 50)
    return before, after, old, new


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("power", [False, True])
def test_after_a_power_cut_only_what_was_flushed_must_be_there(flushed: bool, power: bool) -> None:
    cut = [Cut(100, power=power)]
    for which in ("new", "old", "zeros"):
        before, after, old, new = two_boots(flushed)
        value = {"new": new, "old": old, "zeros": ZEROS}[which]
        after.read(200, 210, value)
        found = kinds(check([before.history(), after.history()], cuts=cut))
        if which == "new" or (power and not flushed):
            assert found == set()
        else:
            assert found == {Kind.NOT_DURABLE if power else Kind.LOST}


def test_a_flush_covers_what_had_completed_when_it_began() -> None:
    before, after = Script(1), Script(2)
    old = before.write(0, 10)
    before.write(20, 45)
    before.flush(40, 50)
    after.read(200, 210, old)
    assert kinds(check([before.history(), after.history()], cuts=[Cut(100, power=True)])) == set()


@pytest.mark.parametrize("which", ["new", "old", "zeros", "newer", "beside"])
def test_a_durable_write_survives_the_power_cut_or_what_came_after_it(which: str) -> None:
    """An older value must not come back; what was written later, or beside it, may be gone and may be there."""
    before, beside, after = Script(1), Script(3), Script(2)
    values = {"zeros": ZEROS, "old": before.write(0, 10), "beside": beside.write(15, 25)}
    values |= {"new": before.write(20, 30, durable=True), "newer": before.write(40, 50)}
    after.read(200, 210, values[which])
    histories = [script.history() for script in (before, beside, after)]
    found = check(histories, cuts=[Cut(100, power=True)])
    assert kinds(found) == (set() if which in ("new", "newer", "beside") else {Kind.NOT_DURABLE})
    if which in ("old", "zeros"):
        assert "write durable 1:2 [0.000000, 0.000000] was to survive" in found.violations[0].text


def test_a_durable_write_holds_its_own_blocks_alone_and_only_once_it_completed() -> None:
    for outcome, end in (
        (Outcome.DONE, 30),
        (Outcome.FAILED, 30),
        (Outcome.UNKNOWN, 30),
        (Outcome.DONE, None),
    ):
        before, after = Script(1), Script(2)
        old = before.write(0, 10, blocks=2)
        before.write(20, end, block=0, outcome=outcome, durable=True)
        after.read(200, 210, old, old)
        found = kinds(check([before.history(Ending.NONE), after.history()], cuts=[Cut(100, power=True)]))
        assert found == ({Kind.NOT_DURABLE} if outcome is Outcome.DONE and end else set())


def test_a_discard_that_may_have_come_after_a_durable_write_explains_zeros() -> None:
    for discarded, allowed in (((0, 15), False), ((0, 25), True), ((40, 50), True), ((40, None), True)):
        before, after = Script(1), Script(2)
        before.discard(*discarded)
        before.write(20, 30, durable=True)
        after.read(200, 210, ZEROS)
        found = kinds(check([before.history(Ending.NONE), after.history()], cuts=[Cut(100, power=True)]))
        assert found == (set() if allowed else {Kind.NOT_DURABLE}), discarded


def test_of_two_values_beside_each_other_what_was_read_says_which_came_first() -> None:
    """The durable one was read after the other had been: then a power cut cannot leave the other one."""
    for swapped in (False, True):
        before, beside, after = Script(1), Script(3), Script(2)
        durable, other = before.write(0, 50, durable=True), beside.write(0, 50)
        early, late = (durable, other) if swapped else (other, durable)
        beside.read(10, 20, early)
        beside.read(30, 40, late)
        after.read(200, 210, other)
        histories = [script.history() for script in (before, beside, after)]
        found = kinds(check(histories, cuts=[Cut(100, power=True)]))
        assert found == (set() if swapped else {Kind.NOT_DURABLE})


@pytest.mark.parametrize("value", ["old", "zeros", "own"])
def test_the_image_is_judged_like_a_read(value: str) -> None:
    before, after, old, _ = two_boots(flushed=True)
    own = after.write(200, 210)
    image = {"old": old, "zeros": ZEROS, "own": own}[value]
    found = kinds(check([before.history(), after.history()], cuts=[Cut(100, power=True)], image={0: image}))
    assert found == (set() if value == "own" else {Kind.LOST, Kind.NOT_DURABLE} & found)
    assert bool(found) == (value != "own")


def test_a_power_cut_leaves_one_value() -> None:
    before, after = Script(1), Script(2)
    old, new = before.write(0, 10), before.write(20, 30)
    after.read(200, 210, old)
    after.read(220, 230, new)
    verdict = check([before.history(), after.history()], cuts=[Cut(100, power=True)])
    assert kinds(verdict) == {Kind.LOST}


def test_a_value_survives_several_power_cuts_or_none_of_them() -> None:
    scripts = [Script(seed) for seed in (1, 2, 3)]
    old = scripts[0].write(0, 10)
    scripts[0].flush(20, 30)
    new = scripts[1].write(200, 210)
    scripts[2].read(400, 410, old)
    cuts = [Cut(100, power=True), Cut(300, power=True)]
    histories = [script.history() for script in scripts]
    assert kinds(check(histories, cuts=cuts)) == set()
    scripts[1].read(220, 230, new)
    assert kinds(check(histories, cuts=cuts)) == set()
    scripts[1].flush(240, 250)
    histories = [script.history() for script in scripts]
    assert kinds(check(histories, cuts=cuts)) == {Kind.NOT_DURABLE}


def test_zeros_after_a_power_cut_may_be_those_of_a_later_discard() -> None:
    before, after, _, _ = two_boots(flushed=True)
    after.discard(200, 210)
    after.read(220, 230, ZEROS)
    assert kinds(check([before.history(), after.history()], cuts=[Cut(100, power=True)])) == set()


def test_zeros_after_a_power_cut_are_those_that_it_left_where_the_discards_do_not_suffice() -> None:
    """One discard for two reads with a write between them: one of them saw what the cut had left."""
    before, after = Script(1), Script(2)
    before.write(0, 10)
    after.discard(200, 290)
    after.read(205, 210, ZEROS)
    after.write(220, 230)
    after.read(240, 250, ZEROS)
    cuts = [Cut(100, power=True)]
    assert kinds(check([before.history(), after.history()], cuts=cuts)) == set()
    before.flush(20, 30)
    assert kinds(check([before.history(), after.history()], cuts=cuts)) == {Kind.NOT_DURABLE}


# -- the verdict itself


def test_where_nothing_was_read_nothing_was_shown() -> None:
    script = Script()
    script.write(0, 10)
    assert check([script.history()]).judgement is Judgement.INCONCLUSIVE
    assert check([]).judgement is Judgement.INCONCLUSIVE
    assert not check([]).passed


def test_the_first_violations_are_explained_and_all_are_counted() -> None:
    script = Script()
    for turn in reversed(range(2 * EXPLAINED_MAX)):
        script.read(10 * turn, 10 * turn + 5, TORN, block=turn)
    verdict = check([script.history()])
    assert verdict.counts[Kind.TORN] == 2 * EXPLAINED_MAX
    assert [violation.block for violation in verdict.violations] == list(range(EXPLAINED_MAX))
    told = summary(verdict)
    assert json.loads(json.dumps(told)) == told
    assert told["judgement"] == "failed"
    assert told["violations"]["torn"] == 2 * EXPLAINED_MAX
    assert all("\n" not in line for line in told["explanations"])


def test_histories_that_cannot_belong_together_are_refused() -> None:
    script = Script()
    script.read(0, 10, ZEROS)
    with pytest.raises(CheckError, match="seed 1"):
        check([script.history(), script.history()])
    with pytest.raises(CheckError, match="after the machine was cut"):
        check([script.history()], cuts=[Cut(5)])
    with pytest.raises(CheckError, match="held versions of seed 1"):
        check([script.history()], initial={7: 1 << 40 | 3})
