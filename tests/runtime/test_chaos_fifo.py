"""FIFO and no invention: what a channel may do to its messages, and that each thing that it may not is seen."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.native import crc32c
from runtime.chaos.experiment.checks.fifo import Fifo
from runtime.chaos.experiment.evidence import Evidence
from runtime.chaos.experiment.journal import Outcome
from runtime.chaos.sequence import (
    Ending,
    Received,
    Sent,
    Sequence,
    SequenceError,
    SequenceWriter,
    read_sequence,
)
from tests.runtime.chaos_making import BEGAN_NS, MS, event, evidence

COUNT = 20


def payload(number: int) -> bytes:
    return bytes([number]) * (number + 1)


def sound() -> Sequence:
    """All sent, and each answered one millisecond later."""
    sent, received = [], []
    for number in range(1, COUNT + 1):
        bytes_, at = payload(number), BEGAN_NS + number * MS
        sent.append(Sent(number, len(bytes_), crc32c(bytes_), at))
        received.append(Received(number, len(bytes_), crc32c(bytes_), at + MS // 2))
    return Sequence(1, BEGAN_NS, sent, received, Ending.FINISHED)


def judged(sequence: Sequence, *deaths_ms: float) -> tuple[Outcome, tuple[str, ...]]:
    events = [event("root.exited", at) for at in deaths_ms]
    whole: Evidence = replace(evidence({}, events=events), sequences={"guest": sequence})
    finding = Fifo().judge(whole, {})
    return finding.outcome, finding.texts


def reordered(sequence: Sequence) -> None:
    received = sequence.received
    received[4], received[5] = received[5], received[4]


def invented(sequence: Sequence) -> None:
    sequence.received.insert(7, Received(COUNT + 9, 1, 1, sequence.received[7].at_ns))


def answered_before_it_was_sent(sequence: Sequence) -> None:
    sequence.received[3] = replace(sequence.received[3], at_ns=BEGAN_NS)


def twice(sequence: Sequence) -> None:
    sequence.received.insert(6, sequence.received[5])


def swapped(sequence: Sequence) -> None:
    first, second = sequence.received[8:10]
    sequence.received[8] = replace(first, length=second.length, digest=second.digest)


def flipped(sequence: Sequence) -> None:
    sequence.received[8] = replace(sequence.received[8], digest=sequence.received[8].digest ^ 1)


def lost(sequence: Sequence) -> None:
    del sequence.received[11]


@pytest.mark.parametrize(
    ("defect", "told"),
    [
        (reordered, "the answer to 5 came behind that to 6"),
        (invented, "an answer to 29, which was never sent"),
        (answered_before_it_was_sent, "an answer to 4, which was never sent"),
        (twice, "6 was answered twice, and no server had died in between"),
        (swapped, "the answer to 9 has other bytes: those of 10"),
        (flipped, "the answer to 9 has other bytes: 10 of them, where 10 were sent"),
        (lost, "1 of 20 were never answered"),
    ],
)
def test_each_defect_is_found(defect: Callable[[Sequence], None], told: str) -> None:
    sequence = sound()
    assert judged(sequence) == (Outcome.PASSED, ())
    defect(sequence)
    outcome, texts = judged(sequence)
    assert outcome is Outcome.VIOLATED
    assert f"guest: {told}" in texts


def test_only_what_was_under_way_when_a_server_died_may_be_answered_again() -> None:
    sequence = sound()
    sequence.received.insert(6, replace(sequence.received[5], at_ns=sequence.received[5].at_ns + MS // 4))
    assert judged(sequence, 6.6)[0] is Outcome.PASSED  # sent at 6 ms, answered at 6.5 and at 6.75
    assert judged(sequence, 5.9)[0] is Outcome.VIOLATED  # it was sent to the successor
    assert judged(sequence, 7.0)[0] is Outcome.VIOLATED  # it came again before anybody had died
    wrong = replace(sequence.received[6], digest=0)
    sequence.received[6] = wrong
    assert judged(sequence, 6.6)[0] is Outcome.VIOLATED  # again, and otherwise


def test_what_a_dead_guest_did_not_hear_is_no_finding_and_no_answer_at_all_shows_nothing() -> None:
    sequence = sound()
    del sequence.received[10:]
    for ending, outcome in {
        Ending.NONE: Outcome.PASSED,
        Ending.CLOSED: Outcome.PASSED,
        Ending.GAVE_UP: Outcome.VIOLATED,
        Ending.FINISHED: Outcome.VIOLATED,
    }.items():
        sequence.ending = ending
        assert judged(sequence)[0] is outcome, ending
    assert judged(Sequence(1, BEGAN_NS))[0] is Outcome.INCONCLUSIVE


@given(steps=st.lists(st.booleans(), min_size=1, max_size=40), kept=st.integers(0, 4000))
def test_a_file_that_is_cut_anywhere_has_what_was_noted_before(steps: list[bool], kept: int) -> None:
    """Everything behind a byte is zeros, as if the guest had been killed while it wrote there."""
    with tempfile.TemporaryFile() as file, tempfile.NamedTemporaryFile() as cut:
        writer = SequenceWriter(file.fileno(), seed=7, messages_max=64)
        wanted: list[tuple[str, int]] = []
        sent = 0
        for sends in steps:
            if sends or not sent:
                sent = writer.send(payload(sent % 50))
                wanted.append(("sent", sent))
            else:
                writer.receive(sent, payload(sent % 50))
                wanted.append(("received", sent))
        writer.end(Ending.FINISHED)
        file.seek(0)
        content = file.read()
        kept = min(64 + kept, len(content))
        cut.write(content[:kept] + bytes(len(content) - kept))
        cut.flush()
        read = read_sequence(Path(cut.name))
        after = Path(
            cut.name
        ).read_bytes()  # a record that ends in zeros anyway is whole before its last byte
        places = [slice(64 + 32 * index, 96 + 32 * index) for index in range(len(wanted))]
        whole = next((n for n, place in enumerate(places) if after[place] != content[place]), len(wanted))
        assert [one.number for one in read.sent] == [n for what, n in wanted[:whole] if what == "sent"]
        assert [one.number for one in read.received] == [
            n for what, n in wanted[:whole] if what == "received"
        ]
        assert (read.ending is Ending.FINISHED) == (content[:kept].rstrip(b"\0") == content.rstrip(b"\0"))


def test_what_is_damaged_in_the_middle_is_refused() -> None:
    with tempfile.NamedTemporaryFile() as file:
        writer = SequenceWriter(file.fileno(), seed=7, messages_max=8)
        for _ in range(3):
            writer.send(b"one")
        content = bytearray(Path(file.name).read_bytes())
        content[64 + 32 + 8] ^= 1
        Path(file.name).write_bytes(content)
        with pytest.raises(SequenceError, match="damaged at byte 96"):
            read_sequence(Path(file.name))
        with pytest.raises(SequenceError, match="not empty"):
            SequenceWriter(file.fileno(), seed=7, messages_max=8)
