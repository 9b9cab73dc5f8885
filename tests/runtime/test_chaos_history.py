"""A history loses nothing to SIGKILL, and a damaged one is never taken for a whole one."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.chaos.history import (
    Ending,
    History,
    HistoryError,
    HistoryWriter,
    OperationKind,
    Outcome,
    read_history,
)

BLOCKS_MAX = 4
HEADER_BYTES = 64
RECORD_BYTES = 32 + 8 * BLOCKS_MAX
REPOSITORY = Path(__file__).parents[2]

Asked = tuple[OperationKind, tuple[int, ...], Outcome]


def writer(path: Path, operations_max: int = 100, flags: int = os.O_RDWR) -> HistoryWriter:
    descriptor = os.open(path, flags | os.O_CREAT, 0o600)
    try:
        return HistoryWriter(
            descriptor,
            seed=3,
            first_block=7,
            blocks=90,
            blocks_max=BLOCKS_MAX,
            operations_max=operations_max,
        )
    finally:
        os.close(descriptor)


def write_some(path: Path, operations: int = 5, *, end: bool = False) -> History:
    """Reads of which every second one completes."""
    with writer(path) as history:
        for index in range(operations):
            number = history.invoke(OperationKind.READ, index, BLOCKS_MAX)
            if index % 2:
                history.complete(number, Outcome.DONE, 0, tuple(range(index, index + BLOCKS_MAX)))
        if end:
            history.end()
    return read_history(path)


values = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=BLOCKS_MAX).map(tuple)
requests = st.tuples(st.sampled_from(OperationKind), st.integers(0, 2**63), values, st.sampled_from(Outcome))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(requests, max_size=30), st.data(), st.sampled_from([None, False, True]))
def test_what_was_noted_is_read(
    tmp_path: Path,
    asked: list[tuple[OperationKind, int, tuple[int, ...], Outcome]],
    data: st.DataObject,
    gave_up: bool | None,
) -> None:
    path = tmp_path / "history"
    path.unlink(missing_ok=True)
    in_flight: dict[int, Asked] = {}
    completed: dict[int, Asked] = {}
    with writer(path) as history:
        for kind, first, found, outcome in asked:
            number = history.invoke(kind, first, len(found))
            in_flight[number] = kind, found, outcome
            if data.draw(st.booleans()):
                ended = data.draw(st.sampled_from(sorted(in_flight)))
                completed[ended] = in_flight.pop(ended)
                kind, found, outcome = completed[ended]
                reads = kind == OperationKind.READ and outcome == Outcome.DONE
                history.complete(ended, outcome, errno.EIO, found if reads else ())
        if gave_up is not None:
            history.end(gave_up=gave_up)
    read = read_history(path)
    assert (read.seed, read.first_block, read.blocks, read.torn) == (3, 7, 90, False)
    assert read.ending == {None: Ending.NONE, False: Ending.FINISHED, True: Ending.GAVE_UP}[gave_up]
    assert [(op.kind, op.first_block, op.blocks) for op in read.operations] == [
        (kind, first, len(found)) for kind, first, found, _ in asked
    ]
    times = [op.invoked_ns for op in read.operations]
    assert times == sorted(times)
    for operation in read.operations:
        if operation.number in in_flight:
            assert operation.completed_ns is operation.outcome is None
        else:
            kind, found, outcome = completed[operation.number]
            assert operation.completed_ns is not None
            assert operation.invoked_ns <= operation.completed_ns <= read.last_ns
            assert (operation.outcome, operation.error) == (outcome, errno.EIO)
            reads = kind == OperationKind.READ and outcome == Outcome.DONE
            assert operation.values == (found if reads else ())


@pytest.mark.parametrize("kept", range(RECORD_BYTES))
def test_a_torn_last_record_is_left_out_and_costs_no_other(tmp_path: Path, kept: int) -> None:
    """The kernel keeps whatever was stored: a record of which only the first bytes are there."""
    whole = write_some(tmp_path / "history", 4)
    content = bytearray((tmp_path / "history").read_bytes())
    last = HEADER_BYTES + 5 * RECORD_BYTES
    cut = content[last + kept : last + RECORD_BYTES]
    content[last + kept : last + RECORD_BYTES] = bytes(len(cut))
    (tmp_path / "torn").write_bytes(content)
    torn = read_history(tmp_path / "torn")
    lost = any(cut)  # otherwise the record ends in zeros, and nothing was cut
    assert torn.torn == (lost and kept > 0)
    assert (torn.operations[3].completed_ns is None) == lost
    assert torn.operations[:3] == whole.operations[:3]


@given(st.integers(0, HEADER_BYTES + 5 * RECORD_BYTES - 1), st.integers(1, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_before_the_last_record_is_refused(tmp_path: Path, at: int, change: int) -> None:
    path = tmp_path / "history"
    path.unlink(missing_ok=True)
    write_some(path, 4)
    content = bytearray(path.read_bytes())
    content[at] ^= change
    path.write_bytes(content)
    with pytest.raises(HistoryError):
        read_history(path)


@pytest.mark.parametrize("content", [b"", bytes(63), bytes(64), b"x" * 10_000])
def test_what_is_no_history_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "history").write_bytes(content)
    with pytest.raises(HistoryError, match="no guest began a history there"):
        read_history(tmp_path / "history")


def test_records_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with writer(tmp_path / "twice") as history:
        number = history.invoke(OperationKind.WRITE, 0, 1)
        history.complete(number, Outcome.DONE)
        history.complete(number, Outcome.DONE)
    with pytest.raises(HistoryError, match="not in flight"):
        read_history(tmp_path / "twice")
    with writer(tmp_path / "after") as history:
        history.end()
        history.invoke(OperationKind.WRITE, 0, 1)
    with pytest.raises(HistoryError, match="too late"):
        read_history(tmp_path / "after")


def test_an_earlier_history_is_never_overwritten(tmp_path: Path) -> None:
    write_some(tmp_path / "history")
    before = (tmp_path / "history").read_bytes()
    with pytest.raises(HistoryError, match="not empty"):
        writer(tmp_path / "history")
    assert (tmp_path / "history").read_bytes() == before


def test_a_file_for_writing_only_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="read-write"):
        writer(tmp_path / "history", flags=os.O_WRONLY)


def test_a_full_history_refuses_before_the_request_could_be_sent(tmp_path: Path) -> None:
    with writer(tmp_path / "history", operations_max=2) as history:
        for _ in range(2):
            history.complete(history.invoke(OperationKind.WRITE, 0, 1), Outcome.DONE)
        assert history.room == 0
        with pytest.raises(HistoryError, match="full"):
            history.invoke(OperationKind.WRITE, 0, 1)
        history.end()
    assert len(read_history(tmp_path / "history").operations) == 2


_GUEST = """
import os, sys
from runtime.chaos.history import HistoryWriter, OperationKind, Outcome
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
history = HistoryWriter(descriptor, seed=1, first_block=0, blocks=9, blocks_max=4, operations_max=50_000)
while True:
    number = history.invoke(OperationKind.READ, 0, 4)
    os.write(1, b"i%d\\n" % number)
    history.complete(number, Outcome.DONE, 0, (number,) * 4)
    os.write(1, b"c%d\\n" % number)
"""


@pytest.mark.parametrize("announcements", [1, 10, 777, 4_001])
def test_sigkill_loses_no_record_that_was_written(tmp_path: Path, announcements: int) -> None:
    """The child says over a pipe what it has noted, and is killed at once; all of that must be there."""
    path = tmp_path / "history"
    guest = subprocess.Popen(
        [sys.executable, "-c", _GUEST, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    assert guest.stdout is not None
    said = [guest.stdout.readline() for _ in range(announcements)]
    guest.send_signal(signal.SIGKILL)
    said += guest.stdout.read().splitlines()
    guest.stdout.close()
    guest.wait()
    history = read_history(path)
    assert history.ending is Ending.NONE
    invoked = sum(line.startswith(b"i") for line in said)
    completed = sum(line.startswith(b"c") for line in said)
    assert invoked <= len(history.operations) <= invoked + 1
    there = [op for op in history.operations if op.completed_ns is not None]
    assert completed <= len(there) <= completed + 1
    assert all(op.values == (op.number,) * 4 for op in there)
