"""What a platform knows of its configured partitions, from events in any order."""

from runtime.abi import ExitStatus
from runtime.machine.roster import Roster

GOOD, BAD, KILLED = ExitStatus(0, None), ExitStatus(3, None), ExitStatus(None, 9)


def test_who_has_not_started_is_missing_and_below_means_the_whole_subtree() -> None:
    roster = Roster(["a", "a/b", "a/b/c", "ab"])
    assert roster.missing() == ["a", "a/b", "a/b/c", "ab"]
    roster.started("a", 10)
    roster.started("a/b/c", 11)
    assert roster.missing() == ["a/b", "ab"]
    assert roster.missing(below="a") == ["a/b"]  # "ab" begins alike and is no child of it
    assert roster.missing(below="ab") == []


def test_all_have_ended_once_each_configured_one_has_and_others_do_not_count() -> None:
    roster = Roster(["a", "a/b"])
    roster.started("a/unknown", 12)  # created by a program, not by the config
    roster.exited("a/b", KILLED)
    before = roster.have_all_ended
    roster.exited("a", BAD)
    assert (before, roster.have_all_ended) == (False, True)
    assert roster.failures == ["a: exit code 3", "a/b: signal 9"]
    roster.exited("a/unknown", BAD)
    assert roster.failures == ["a: exit code 3", "a/b: signal 9"]
    assert roster.exits == {"a": BAD, "a/b": KILLED, "a/unknown": BAD}


def test_a_machine_without_partitions_has_not_ended() -> None:
    assert not Roster([]).have_all_ended
    one = Roster(["a"])
    one.exited("a", GOOD)
    assert one.have_all_ended
    assert one.failures == []
