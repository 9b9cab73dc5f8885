"""A guest that breaks rules all the time does not fill the machine's log, and nothing that it did goes uncounted."""

from hypothesis import given
from hypothesis import strategies as st

from partitions.stack.complaints import COMPLAINTS_PER_SECOND, Complaints

SECOND_NS = 1_000_000_000


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 400_000_000)), max_size=400))
def test_each_is_told_or_counted_and_no_second_has_more_than_the_limit(steps: list[tuple[str, int]]) -> None:
    complaints, now = Complaints(), 0
    told: dict[str, list[int]] = {"a": [], "b": []}
    counted, caused = {"a": 0, "b": 0}, {"a": 0, "b": 0}
    for guest, pause_ns in steps:
        now += pause_ns // 40
        caused[guest] += 1
        left_out = complaints.admit("broken", guest, now)
        if left_out is not None:
            told[guest].append(now)
            counted[guest] += left_out + 1
    for guest, times in told.items():
        assert counted[guest] <= caused[guest]
        assert not caused[guest] or times  # the first one is told
        for start in times:  # a limit for each second that begins with one: any other has twice that at most
            inside = [each for each in times if start <= each < start + SECOND_NS]
            assert len(inside) <= 2 * COMPLAINTS_PER_SECOND
    later = now + SECOND_NS
    for guest, count in caused.items():
        if count:
            left_out = complaints.admit("broken", guest, later)
            assert left_out is not None
            assert counted[guest] + left_out == count


def test_one_guest_s_complaints_leave_out_none_of_another_s() -> None:
    complaints = Complaints()
    assert [complaints.admit("broken", "a", 5) for _ in range(COMPLAINTS_PER_SECOND + 2)].count(None) == 2
    assert complaints.admit("broken", "b", 5) == 0
    assert complaints.admit("refused", "a", 5) == 0
