"""The ladder around its rows: samples taken again, rows that say why they are missing, goals that can be missed."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.exits import CommandError, ExitCode
from runtime.measure import bench_goals, bench_ladder, one_way, pace
from runtime.measure.bench_goals import GOALS, REFERENCES, rows_of
from runtime.measure.bench_ladder import LadderOptions, measure, row_names
from runtime.measure.figures import figures_of, table_row
from runtime.measure.goals import Goal
from runtime.measure.keep_awake import kept_awake
from runtime.measure.ladder_rows import LIMIT, c_row
from runtime.measure.process_usage import Usage
from runtime.measure.reference_programs import reference_programs
from runtime.measure.results import Placement, Status
from runtime.measure.sample import Order
from runtime.measure.sampling import LIMIT_CHANGE_MAX, Take, has_changed, take_sample
from runtime.measure.transport import Answer, NotInstalled, Transport
from runtime.measure.transports.sockets import PipeTransport
from tests.patience import until
from tests.runtime.test_cli import REAL, partvisor

ALLOWED = sorted(os.sched_getaffinity(0))
CPUS = (ALLOWED[0], ALLOWED[-1])
two_cpus_needed = pytest.mark.skipif(len(ALLOWED) < 2, reason="two CPUs are needed")

LIMITS = st.lists(st.floats(1, 1e6), min_size=2, max_size=12)


# -- taking again


@given(limits=LIMITS, retakes_max=st.integers(0, 4))
def test_a_sample_counts_only_between_two_limits_that_agree(limits: list[float], retakes_max: int) -> None:
    """Limits come as drawn, the last one for ever. Every sample has one before it and one behind it; where those two
    disagree, a second one behind it, which decides."""
    left, seen, samples = list(limits), list[list[float]]([[]]), 0

    def limit() -> float:
        seen[-1].append(left.pop(0) if len(left) > 1 else left[0])
        return seen[-1][-1]

    def sample() -> int:
        nonlocal samples
        samples += 1
        seen.append([])
        return samples

    def disagree(one: float, other: float) -> bool:
        return max(one, other) > LIMIT_CHANGE_MAX * min(one, other)

    takes = take_sample(limit, sample, retakes_max)
    assert [take.sample for take in takes] == list(range(1, samples + 1))
    assert [take.limit_ns for take in takes] == [each[-1] for each in seen[:-1]]
    for take, behind in zip(takes, seen[1:], strict=True):
        assert len(behind) == 1 + disagree(take.limit_ns, behind[0])
        assert take.changed == disagree(take.limit_ns, behind[-1])
    assert all(take.changed for take in takes[:-1])  # nothing is taken again without need
    assert len(takes) == retakes_max + 1 or not takes[-1].changed  # nor left when it may be taken again
    assert len(takes) <= retakes_max + 1


def test_a_change_counts_in_both_directions() -> None:
    assert has_changed(100, 151)
    assert has_changed(151, 100)
    assert not has_changed(100, 149)
    assert not has_changed(149, 100)


# -- rows


class Steady(PipeTransport):
    name = "steady"


class Missing(Transport):
    name = "missing"

    def open(self, payload_bytes: int) -> None:
        raise NotInstalled("pip install missing")

    def serve(self, answer: Answer) -> None: ...
    def exchange(self, request: bytes) -> bytes:
        return request


class Lies(PipeTransport):
    name = "lies"

    def exchange(self, request: bytes) -> bytes:
        return request


@two_cpus_needed
def test_every_row_that_was_asked_for_stands_in_the_result() -> None:
    """Measured, or with a reason: none is left out."""
    options = LadderOptions(
        cpus=CPUS,
        payloads=(64, 65_536),
        only=(LIMIT, "c-pipe", "posix-mqueue", "steady", "missing", "lies"),
        rounds=1,
        seconds=0.003,
        transports=(Steady, Missing, Lies),
    )
    told: list[str] = []
    run = measure(options, told.append)
    assert [row.name for row in run.rows] == row_names(options)
    told = [line for line in told if "busy" not in line]
    assert told[0].startswith(f"{len(run.rows)} rows, one round: about ")  # how long, before it begins
    assert told[-1].startswith(f"{len(run.rows)} rows in ")  # and how long it took
    by_name = {(row.transport, row.payload_bytes): row for row in run.rows}
    for payload in (64, 65_536):
        assert by_name["steady", payload].status in (Status.OK, Status.FAILED)
        assert by_name["missing", payload].status is Status.NOT_INSTALLED
        assert by_name["missing", payload].reason == "pip install missing"
        assert by_name["lies", payload].status is Status.FAILED
        assert "WrongReply" in (by_name["lies", payload].reason or "")
    assert by_name["posix-mqueue", 65_536].status is Status.NOT_POSSIBLE
    for row in run.rows:
        if row.status is Status.OK:
            assert len(row.counted) <= options.rounds
            assert all(one.limit_ns > 0 and one.exchanges >= 1 for one in row.rounds)


@two_cpus_needed
def test_a_sample_whose_limit_changed_is_taken_again_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """From limit to result: the machine's two CPUs part before the first round, and come together before the last."""
    left = [100.0, 400.0, 400.0, 400.0, 400.0, 400.0, 380.0, 100.0, 100.0, 100.0]
    monkeypatch.setattr(bench_ladder, "_limit_ns", lambda *_: left.pop(0))
    run = measure(LadderOptions(cpus=CPUS, payloads=(64,), only=("c-pipe",), rounds=3, seconds=0.002))
    (row,) = run.rows
    assert left == []
    assert [(one.limit_ns, one.changed) for one in row.rounds] == [
        (100.0, True),  # before 100, behind it 400 and 400
        (400.0, False),
        (400.0, False),
        (380.0, True),
        (100.0, False),
    ]
    figures = figures_of(row)
    assert (figures.rounds, figures.retaken) == (3, 2)
    assert table_row(run, row)["retaken"] == 2
    assert row.latency.count == sum(one.latency.count for one in row.rounds if not one.changed)


def test_every_name_is_one_that_can_be_measured() -> None:
    """Nothing stands in the ladder that this partvisor lacks."""
    names = row_names(LadderOptions(cpus=CPUS, payloads=(4096,)))
    for way in ("guest-to-guest-direct", "guest-to-guest-switch", "hosted", "microkernel"):
        assert any(name.startswith(f"{way}/") for name in names)


def test_names_that_fit_nothing_are_an_error() -> None:
    with pytest.raises(CommandError, match="no row has such a name"):
        row_names(LadderOptions(cpus=CPUS, only=("no-such-*",)))


def test_two_transports_of_one_name_are_an_error() -> None:
    class Twin(PipeTransport):
        name = "pipe"

    with pytest.raises(CommandError, match="two transports would be called pipe"):
        row_names(LadderOptions(cpus=CPUS, transports=(Twin,)))


def test_a_row_for_each_rate_placement_and_payload() -> None:
    options = LadderOptions(
        cpus=CPUS,
        payloads=(64, 4096),
        placements=tuple(Placement),
        rates_per_s=(1000.0, 2000.0),
        only=("pipe", "hypercall"),
    )
    names = row_names(options)
    assert len(names) == len(set(names)) == 2 * 3 * 2 + 3 * 2  # a hypercall has no payload
    assert "pipe/4096/block/same-cpu/2000-per-s" in names


def order(payload_bytes: int, rate: float | None = None) -> Order:
    return Order(
        payload_bytes=payload_bytes,
        seconds=0.005,
        placement=Placement.UNPINNED,
        client_cpus=frozenset(ALLOWED),
        server_cpus=frozenset(ALLOWED),
        rate_per_s=rate,
    )


def test_each_c_program_measures_in_both_modes() -> None:
    with reference_programs() as programs:
        for name in (LIMIT, "c-futex", "c-eventfd", "c-pipe", "c-unix-seqpacket"):
            sample = c_row(programs, name).measure(order(4096))
            assert sample.measured.latency.count == sample.measured.exchanges > 0
            assert sample.client is not None
            assert sample.server is not None
            sample = c_row(programs, name).measure(order(64, rate=2000))
            assert sample.measured.latency.count == 10  # of each that was due


@two_cpus_needed
@pytest.mark.parametrize("name", one_way.WAYS)
def test_one_way_peers_bring_their_messages(name: str) -> None:
    assert one_way.messages_per_s(name, 2_000, CPUS) > 0


def test_cpus_are_kept_awake_by_what_gives_way_to_everything() -> None:
    before = set(psutil.Process().children())
    with kept_awake(CPUS):
        spinners = set(psutil.Process().children()) - before
        assert len(spinners) == len(CPUS)
        until(lambda: all(os.sched_getscheduler(each.pid) == os.SCHED_IDLE for each in spinners))
    assert not spinners & set(psutil.Process().children())


def test_what_a_process_has_used_is_read_from_outside() -> None:
    before = Usage.of_process(os.getpid())
    sum(range(300_000))
    used = Usage.of_process(os.getpid()).since(before)
    assert used.cpu_ns > 0
    assert Usage.of_process(2**22 + 1) == Usage()  # above any pid


# -- how long it takes


def test_progress_is_told_every_two_seconds_and_ends_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that take twice as long as was expected: what is said to be left comes true all the same."""
    now, told = 100.0, list[str]()
    monkeypatch.setattr("runtime.measure.pace.time", SimpleNamespace(monotonic=lambda: now))
    found = pace.Pace(4, 10, 0.25, "rows", told.append)
    for number in range(4):
        for index in range(10):
            found.tell(number, index)
            now += 0.5
    assert told[0] == "10 rows, 4 rounds: about 10 s"
    assert len(told) == 1 + 9  # of twenty seconds, the last of which end with the run
    assert told[-1] == "round 4 of 4, 6 of 10 rows, about 2 s to go"
    assert all(" to go" in line for line in told[1:])


# -- goals


def steady_round(**changes: float) -> dict[str, float]:
    """Figures that meet every goal exactly halfway to its limit."""
    values = dict.fromkeys(REFERENCES, 100.0)
    for goal in GOALS:
        if goal.figure not in values:
            values[goal.figure] = 50.0 if goal.at_most is not None else 200.0
    return values | changes


def test_every_goal_has_a_reference_and_no_limit_in_time() -> None:
    for goal in GOALS:
        assert goal.reference in REFERENCES
        assert goal.value_at_least is None
        assert (goal.at_most is None) != (goal.at_least is None)
    assert all(row["met"] for row in rows_of([steady_round()]))


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.name)
def test_each_goal_can_be_missed(goal: Goal) -> None:
    miss = 100.0 * (goal.at_most * 1.01 if goal.at_most is not None else (goal.at_least or 0) * 0.99)
    rows = {row["name"]: row for row in rows_of([steady_round(**{goal.figure: miss})])}
    assert not rows[goal.name]["met"]


@pytest.mark.parametrize(("slow", "code"), [(50.0, ExitCode.DONE), (1e9, ExitCode.FAILED)])
def test_a_missed_goal_is_exit_code_1(
    slow: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A round whose limit changed does not count where there is another."""
    takes = [Take(1.0, steady_round(raw_spin=1e9), True), Take(1.0, steady_round(raw_spin=slow), False)]
    monkeypatch.setattr(bench_goals, "measure", lambda *_: (takes, {}))
    assert bench_goals.run(cpus=CPUS, as_json=True) == code
    report = json.loads(capsys.readouterr().out)
    assert (report["conditions"]["rounds"], report["conditions"]["retaken"]) == (1, 1)


def test_recording_is_measured() -> None:
    assert bench_goals.record_ns(1000) > 0


# -- the command


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rate", "x"], "--rate x: numbers are needed, such as 1,2"),
        (["--rate", "0"], "--rate 0: from 1 to 1e+07"),
        (["--payload", "33"], "--payload 33: a multiple of 8 is needed"),
        (["--cpus", "0"], "--cpus 0: two CPU numbers such as 0,1 are needed"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: list[str], says: str) -> None:
    done = partvisor("bench", "ladder", *arguments, command=REAL)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert done.stderr == f"partvisor: {says}; see: partvisor bench ladder --help\n"


@two_cpus_needed
def test_the_result_is_kept_and_shown_again(tmp_path: Path) -> None:
    store = str(tmp_path / "results.sqlite")
    options = ["--quick", "--payload", "64", "--only", "pipe", "--only", "c-pipe", "--rounds", "1"]
    done = partvisor(
        "bench", "ladder", *options, "--baseline", "pipe", "--store", store, "--json", command=REAL
    )
    assert done.returncode in (ExitCode.DONE, ExitCode.FAILED), done.stderr
    report = json.loads(done.stdout)
    assert [row["row"].partition("/")[0] for row in report["rows"]] == ["c-pipe", "pipe"]
    shown = partvisor("bench", "show", "latest", "--store", store, "--json", command=REAL)
    assert json.loads(shown.stdout)["run"] == report["run"]
