"""What is said of attacks: names that agree, verdicts, paces, configs. Without a machine."""

import itertools
import json
import random
import signal
import struct
from collections import Counter
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.guests.hostile.attacks import ATTACKS as FUNCTIONS
from partitions.guests.hostile.controls import CONTROLS as CONTROL_FUNCTIONS
from partitions.guests.hostile.last_call import CALLS
from partitions.sandbox import rules
from runtime.attack.catalogue import ATTACKS, DEADLY_CALLS, Keeping, against
from runtime.attack.findings import WITHIN, Control, Finding, Report, Verdict, Window, is_slowed, pace_word
from runtime.attack.pace import HistoryPace, SampledPace
from runtime.attack.running import AttackOptions, attack
from runtime.attack.services import SERVICES, Service, guests_for, machine_text
from runtime.attack.turns import BREAKS_PER_GUEST, CONTROLS, TURN_S, lead_of, turns_of
from runtime.cli import main
from runtime.config.architecture import Architecture
from runtime.config.loading import load
from tests.test_docs import table_rows

BY_NAME = {each.name: each for each in ATTACKS}


def finding(name: str = "forged-ids", **answer: object) -> Finding:
    made = Finding(BY_NAME[name])
    plain = {"made": 1, "outcomes": {}, "breaches": [], "evidence": "", "error": ""}
    made.take({**plain, **answer})
    return made


def test_the_catalogue_and_the_guest_have_the_same_attacks() -> None:
    assert set(FUNCTIONS) == {each.name for each in ATTACKS if each.keeping is not Keeping.LAST}
    assert set(CONTROL_FUNCTIONS) == set(CONTROLS)
    assert set(DEADLY_CALLS) == CALLS <= set(rules.hostile())
    assert len(BY_NAME) == len(ATTACKS)


def test_every_attack_is_made_on_some_service_and_every_service_is_attacked() -> None:
    made = {
        each.name
        for service in SERVICES
        for architecture in service.architectures
        for each in service.attacks(architecture)
    }
    assert made == set(BY_NAME)
    for service in SERVICES:
        assert all(service.attacks(architecture) for architecture in service.architectures)


def test_the_page_has_every_attack_as_the_catalogue_has_it() -> None:
    rows = {row[0]: row[1:] for row in table_rows("hostile.md") if row[0] in BY_NAME}
    assert list(rows) == list(BY_NAME)
    for name, one in BY_NAME.items():
        services, refused = ", ".join(sorted(one.services)), ", ".join(one.refused)
        assert rows[name] == [services, one.tries, refused, one.proof]


def test_the_page_has_every_service_and_its_architectures() -> None:
    rows: dict[str, str] = {}
    for row in table_rows("hostile.md"):
        rows.setdefault(row[0], row[1])  # the first table that names it; figures follow below
    for service in SERVICES:
        words = "all five" if len(service.architectures) == 5 else ", ".join(map(str, service.architectures))
        assert rows[service.name] == words


def test_an_attack_that_was_allowed_or_met_what_nobody_foresaw_is_a_breach() -> None:
    assert finding(outcomes={"ACCESS_DENIED": 3}).verdict is Verdict.CONTAINED
    assert finding(breaches=["it was let in"]).verdict is Verdict.BREACH
    assert finding(outcomes={"BREACH": 1}).verdict is Verdict.BREACH
    assert finding("shrunk-memory", outcomes={"EPERM": 5, "ENOSPC": 1}).verdict is Verdict.BREACH
    assert finding("write-index-past-end", outcomes={"server died": 1}).verdict is Verdict.BREACH


def test_an_attack_that_was_not_made_is_not_contained() -> None:
    one = finding(made=0)
    assert one.verdict is Verdict.NOT_MADE
    assert not Report("disk", "hosted", 1, 1.0, (one,), (), "").is_contained


def test_slowed_is_only_what_is_certain() -> None:
    slow, fast = [Window(50, 100)] * 6, [Window(99, 100)] * 6
    one = finding()
    one.windows = slow[:5]  # five pairs say nothing of where the median is
    assert not is_slowed(one.ratio)
    one.windows = slow
    assert is_slowed(one.ratio)
    assert one.verdict is Verdict.SLOWED
    assert pace_word(one.ratio) == "SLOWED"
    assert not Report("disk", "hosted", 1, 1.0, (one,), (), "").is_contained
    one.windows = fast
    assert pace_word(one.ratio) == "held"
    assert Report("disk", "hosted", 1, 1.0, (one,), (), "").is_contained
    assert not Report("disk", "hosted", 1, 1.0, (one,), ("the root died",), "").is_contained
    one.windows = [*fast[:3], *slow[:3]]
    assert pace_word(one.ratio) == "undecided"
    assert WITHIN == 0.9


instants = st.lists(st.integers(0, 10**12), min_size=1, max_size=60, unique=True).map(sorted)


@given(instants, st.integers(0, 10**12), st.integers(1, 10**12))
def test_a_history_pace_counts_what_completed_in_the_window(
    times: list[int], begin: int, length: int
) -> None:
    wanted = sum(begin <= each < begin + length for each in times)
    assert HistoryPace(times).per_second(begin, begin + length) == pytest.approx(wanted * 1e9 / length)


@given(instants, st.integers(0, 10**12), st.integers(1, 10**12), st.integers(1, 10**12))
def test_a_sampled_pace_loses_and_invents_nothing(
    times: list[int], begin: int, first: int, second: int
) -> None:
    """Two windows beside each other have together what the window of both has."""
    pace = SampledPace(times, list(itertools.accumulate(range(len(times)))))
    middle, end = begin + first, begin + first + second
    both = pace.per_second(begin, middle) * first + pace.per_second(middle, end) * second
    assert both == pytest.approx(pace.per_second(begin, end) * (first + second), abs=1e-3)


def test_a_sample_that_was_cut_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "samples"
    path.write_bytes(struct.pack("<QQQQ", 10, 0, 20, 5) + b"cut")
    assert SampledPace.of(path) == SampledPace([10, 20], [0, 5])


@given(st.sampled_from(SERVICES), st.integers(1, 100))
def test_no_guest_breaks_more_channels_than_it_gets(service: Service, windows: int) -> None:
    attacks = against(service.name)
    guests = guests_for(attacks, windows)
    assert Counter(each for guest in guests for each in guest.attacks) == Counter(attacks)
    for guest in guests:
        breaking = [each for each in guest.attacks if each.keeping is Keeping.BREAKS]
        assert len(breaking) * windows <= BREAKS_PER_GUEST or len(breaking) <= 1
        if guest.attacks[0].keeping in (Keeping.ALONE, Keeping.LAST):
            assert len(guest.attacks) == 1


def test_every_machine_is_one_that_can_be_run(tmp_path: Path) -> None:
    (tmp_path / "history").touch()
    (tmp_path / "samples").touch()
    for service in SERVICES:
        for architecture in service.architectures:
            guests = guests_for(service.attacks(architecture), 2)
            for guest in guests:
                for file in ("orders", "answers"):
                    (tmp_path / f"{guest.name}.{file}").touch()
            config = tmp_path / "machine.toml"
            config.write_text(machine_text(service, architecture, guests, tmp_path, 1, {}))
            assert load(config).partitions


@given(st.sampled_from(SERVICES), st.floats(0.5, 120), st.integers(0, 2**32))
def test_turns_fill_the_time_and_no_guest_loses_more_channels_than_it_gets(
    service: Service, seconds: float, seed: int
) -> None:
    attacks = against(service.name)
    turns = turns_of(attacks, seconds, random.Random(seed))
    assert turns == turns_of(attacks, seconds, random.Random(seed))
    made = Counter(turns)
    repeated = {each.name: each for each in attacks if each.keeping is not Keeping.LAST}
    assert set(repeated) <= set(made) <= set(repeated) | set(CONTROLS)
    for name, one in repeated.items():
        if one.keeping is Keeping.BREAKS:
            assert made[name] <= BREAKS_PER_GUEST
            assert lead_of(one) == 0  # all of it is in the window
        else:
            assert lead_of(one) > 0
    assert made["idle"] == made["share"] <= made["honest"]
    assert len(set(turns[: len(made)])) == len(made)  # each once before any comes again
    assert len(turns) * TURN_S <= seconds + (len(repeated) + len(CONTROLS)) * TURN_S  # each at least once


def test_a_control_is_told_and_changes_no_verdict() -> None:
    slow = Control("share", [Window(10, 100)] * 8)
    one = finding()
    one.windows = [Window(99, 100)] * 8
    report = Report("disk", "hosted", 1, 1.0, (one,), (), "", (slow, Control("idle")))
    assert report.is_contained
    told = report.to_json()
    assert told["controls"]["share"]["value"] == 0.1
    assert told["controls"]["idle"] is None
    assert told["ratio_beside_honest"] is None
    assert told["pairs"] == 8


def test_what_an_attack_costs_beside_an_honest_guest_is_told_and_excuses_nothing() -> None:
    """Neighbours that lose as much to an honest one are slowed all the same."""
    one = finding()
    one.windows = [Window(80, 100)] * 8
    honest = Control("honest", [Window(80, 100)] * 8)
    report = Report("disk", "hosted", 1, 1.0, (one,), (), "", (honest,))
    assert report.to_json()["ratio_beside_honest"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert not report.is_contained
    assert report.to_json()["pace"] == "SLOWED"
    honest.windows = honest.windows[:3]  # of so few nothing is known
    assert report.to_json()["ratio_beside_honest"] is None


STAGES: Final = ("__init__", "wait_until_ready", "carry_out", "judge")


class NoMachine:
    """In the place of a machine under attack: every attack is made once, unless this pair is one that fails."""

    fails_in: str = ""  # of STAGES
    fails_as: BaseException = ProcessLookupError(3, "No such process")
    failing: tuple[str, str] = ("serial", "monolithic")

    def __init__(self, service: Service, architecture: Architecture, *more: object) -> None:
        self._fails = (service.name, str(architecture)) == self.failing
        self._enter("__init__")

    def _enter(self, stage: str) -> None:
        if self._fails and stage == self.fails_in:
            raise self.fails_as

    def wait_until_ready(self, progress: object) -> None:
        self._enter("wait_until_ready")

    def carry_out(self, findings: list[Finding], *more: object) -> None:
        for one in findings:
            one.made += 1
        self._enter("carry_out")

    def judge(self, findings: list[Finding]) -> tuple[list[str], str]:
        self._enter("judge")
        return [], "7 exchanges, 0 wrong"


@pytest.fixture
def no_machine(monkeypatch: pytest.MonkeyPatch) -> type[NoMachine]:
    monkeypatch.setattr(
        signal, "signal", lambda *_: None
    )  # the command would have this process end otherwise
    one = type("OneMachine", (NoMachine,), {})
    monkeypatch.setattr("runtime.attack.running._Run", one)
    return one


PAIRS: Final = ["attack", "--service", "custom", "--service", "serial", "--architecture", "monolithic"]
PAIRS_AROUND: Final = [*PAIRS, "--architecture", "hosted"]  # custom, custom, serial (fails), serial


@pytest.mark.parametrize("stage", STAGES)
def test_a_pair_that_raises_is_shown_as_failed_and_keeps_what_it_had(
    stage: str, no_machine: type[NoMachine], tmp_path: Path
) -> None:
    no_machine.fails_in = stage
    service = next(each for each in SERVICES if each.name == "serial")
    report = attack(service, Architecture.MONOLITHIC, AttackOptions(seconds=1, seed=1), tmp_path)
    assert report.failed.startswith("ProcessLookupError: [Errno 3] No such process (test_attack.py:")
    assert not report.is_contained
    made = sum(each.made for each in report.findings)
    assert made == (len(report.findings) if stage in ("carry_out", "judge") else 0)
    assert report.to_json()["failed"] == report.failed
    assert not report.to_json()["contained"]


@pytest.mark.parametrize("as_json", [False, True])
def test_the_other_pairs_results_are_told_and_the_command_fails(
    as_json: bool, no_machine: type[NoMachine], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    no_machine.fails_in = "judge"
    kept = tmp_path / "kept.jsonl"
    assert main([*PAIRS_AROUND, "--out", str(kept), *(["--json"] if as_json else [])]) == 1
    told = capsys.readouterr()
    pairs = [("custom", "monolithic"), ("custom", "hosted"), ("serial", "monolithic"), ("serial", "hosted")]
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [(each["service"], each["architecture"]) for each in lines] == pairs
    assert [bool(each["failed"]) for each in lines] == [False, False, True, False]
    if as_json:
        printed = json.loads(told.out)
        assert printed["reports"] == lines
        assert not printed["interrupted"]
    else:
        assert told.out.count("7 exchanges, 0 wrong") == 3
        assert told.out.count("FAILED: ProcessLookupError: [Errno 3] No such process") == 1
    assert main([*PAIRS, "--service", "custom"]) == 1
    no_machine.failing = ("serial", "nowhere")
    assert main(PAIRS) == 0


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_loses_no_pair_that_was_over(
    as_json: bool, no_machine: type[NoMachine], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    no_machine.fails_in, no_machine.fails_as = "carry_out", KeyboardInterrupt()
    kept = tmp_path / "kept.jsonl"
    assert main([*PAIRS_AROUND, "--out", str(kept), *(["--json"] if as_json else [])]) == 130
    told = capsys.readouterr()
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [each["architecture"] for each in lines] == ["monolithic", "hosted"]
    if as_json:
        printed = json.loads(told.out)
        assert printed["reports"] == lines
        assert printed["interrupted"]
    else:
        assert told.out.count("7 exchanges, 0 wrong") == 2


def test_where_results_go_is_looked_at_before_anything_is_attacked(
    no_machine: type[NoMachine], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    no_machine.fails_in = "__init__"
    assert main([*PAIRS, "--out", str(tmp_path / "nowhere" / "kept")]) == 1
    told = capsys.readouterr()
    assert "No such file or directory; name another file" in told.err
    assert told.out == ""
