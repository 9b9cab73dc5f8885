"""The decision about one block, against a search through every order there is."""

from dataclasses import dataclass

from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.chaos.blocks import ZEROS
from runtime.chaos.register_conflicts import Access, Reason
from runtime.chaos.registers import Register

LATEST = 12
OLD = 99  # a value that was there before


@dataclass(frozen=True)
class Step:
    verb: str  # read, write, discard
    value: int
    start: int
    end: int
    certain: bool = True


def explainable(steps: tuple[Step, ...], initial: int) -> bool:
    """Is there an order that respects the clock, in which each read returns the last value written?

    Tries all: any step may come next that no other certain step precedes; uncertain ones may be left out.
    """
    seen: set[tuple[frozenset[int], int]] = set()

    def search(left: frozenset[int], value: int) -> bool:
        if not any(steps[index].certain for index in left):
            return True
        if (left, value) in seen:
            return False
        seen.add((left, value))
        for index in left:
            step = steps[index]
            passed = {other for other in left if steps[other].end < step.start}
            if any(steps[other].certain for other in passed):
                continue
            if step.verb == "read" and step.value != value:
                continue
            if search(left - passed - {index}, step.value):
                return True
        return False

    return search(frozenset(range(len(steps))), initial)


def decide(steps: tuple[Step, ...], initial: int) -> bool:
    register = Register(initial)
    for step in steps:
        access = Access(step.start, step.end, step.verb, step.certain)
        match step.verb:
            case "write":
                register.write(step.value, access)
            case "discard":
                register.discard(access)
            case _:
                register.read(step.value, access)
    once = [conflict.reason for conflict in register.conflicts()]
    assert once == [conflict.reason for conflict in register.conflicts()], "asking changes nothing"
    return not once


@st.composite
def histories(draw: st.DrawFn) -> tuple[tuple[Step, ...], int]:
    """Reads mostly return what some order of the steps would give them, so that many histories are explainable."""
    initial = draw(st.sampled_from([ZEROS, ZEROS, OLD]))
    count = draw(st.integers(1, 9))
    verbs = draw(
        st.lists(st.sampled_from(["read", "read", "write", "discard"]), min_size=count, max_size=count)
    )
    spans = [sorted(draw(st.tuples(*[st.integers(0, LATEST)] * 3))) for _ in verbs]
    value, steps = initial, [Step("", 0, 0, 0)] * count
    for index in sorted(range(count), key=lambda index: spans[index][1]):
        start, _, end = spans[index]
        verb, certain = verbs[index], True
        if verb == "read":
            lies = draw(st.integers(0, 9)) == 0
            found = draw(st.sampled_from([ZEROS, OLD, *range(1, count + 1)])) if lies else value
        else:
            found = ZEROS if verb == "discard" else index + 1
            certain = draw(st.integers(0, 3)) > 0
            if certain or draw(st.booleans()):
                value = found  # what is not certain may not have happened
            if not certain and draw(st.booleans()):
                end = LATEST + 9  # no completion was seen
        steps[index] = Step(verb, found, start, end, certain)
    return tuple(steps), initial


@settings(max_examples=1500, deadline=None)
@given(histories())
@example(((Step("write", 1, 0, 1), Step("write", 2, 2, 3), Step("read", 1, 4, 5)), ZEROS))
@example(
    ((Step("write", 1, 0, 1), Step("discard", 0, 0, 5), Step("read", 0, 2, 3), Step("read", 1, 4, 5)), ZEROS)
)
@example(((Step("write", 1, 1, 1), Step("discard", 0, 1, 2), Step("read", 0, 2, 2)), OLD))
def test_the_decision_is_that_of_an_exhaustive_search(history: tuple[tuple[Step, ...], int]) -> None:
    steps, initial = history
    assert decide(steps, initial) == explainable(steps, initial)


def test_one_discard_cannot_serve_two_reads_with_a_write_between() -> None:
    """The discard may happen early or late; each read needs it at a different time."""
    steps = (
        Step("discard", ZEROS, 0, 9),
        Step("write", 1, 1, 2),
        Step("read", ZEROS, 3, 4),
        Step("write", 2, 5, 6),
        Step("read", ZEROS, 7, 8),
    )
    assert not decide(steps, OLD)
    assert decide((*steps, Step("discard", ZEROS, 0, 9)), OLD)


def test_a_conflict_names_what_does_not_go_together() -> None:
    register = Register(ZEROS)
    first, second, again = Access(0, 1, "first"), Access(2, 3, "second"), Access(4, 5, "again")
    register.write(1, first)
    register.write(2, second)
    register.read(1, again)
    (conflict,) = register.conflicts()
    assert conflict.reason is Reason.BETWEEN
    assert (conflict.value, conflict.since, conflict.until) == (1, first, again)
    assert (conflict.other_value, conflict.other) == (2, second)
