"""`partvisor chaos run --simulated`, and what `replay` and `shrink` make of its journal."""

import json
from pathlib import Path

import pytest

from runtime.chaos.experiment.journal import read_journal
from runtime.cli import main

EXPERIMENT = """
[experiment]
name = "dying-roots"
[workload]
guests = 2
blocks = 64
[simulated]
seconds = 3
think_ms = 120
[[fault]]
kind = "kill-at-step"
target = "root"
at_ms = [0, 3000]
count = 3
parameters = { step = { any = ["take", "execute", "publish"] } }
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT)
    return path


def test_a_run_is_journalled_and_each_line_replays(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "journal.jsonl"
    command = ["chaos", "run", str(experiment), "--simulated", "--trials", "3", "--seed", "5", "--json"]
    assert main([*command, "--journal", str(journal)]) == 0
    printed = capsys.readouterr()
    assert "x real time" in printed.err
    assert "events/s" in printed.err
    summary = json.loads(printed.out)
    assert summary["trials"] == 3
    header, trials = read_journal(journal)
    speed = summary["speed"]
    assert speed["virtual_s"] == pytest.approx(sum(trial.seconds for trial in trials), abs=0.01)
    assert speed["factor"] == pytest.approx(speed["virtual_s"] / speed["wall_s"], rel=0.1)
    assert 0 < speed["busy_s"] < speed["virtual_s"]
    assert speed["factor_with_start"] <= speed["factor"]
    assert speed["events_per_request"] >= 2  # one is served, and somebody takes its answer in
    assert header.simulated
    assert main(["chaos", "replay", str(journal), "--trial", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trials"] == [trials[1].to_table()]


def test_a_planted_defect_is_shrunk_from_the_journal(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal, shrunk = tmp_path / "journal.jsonl", tmp_path / "shrunk.jsonl"
    command = ["chaos", "run", str(experiment), "--simulated", "--planted", "drops-replayed", "--trials", "3"]
    assert main([*command, "--journal", str(journal)]) == 1
    capsys.readouterr()
    assert main(["chaos", "shrink", str(journal), "--out", str(shrunk), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["faults"] <= 5
    header, (trial,) = read_journal(shrunk)
    assert header.planted == "drops-replayed"
    assert len(trial.schedule) <= 5
    assert main(["chaos", "replay", str(shrunk), "--trial", str(trial.number)]) == 1


def test_a_defect_that_does_not_exist_or_cannot_be_is_a_wrong_command(experiment: Path) -> None:
    assert main(["chaos", "run", str(experiment), "--simulated", "--planted", "gremlins"]) == 2
    assert main(["chaos", "run", str(experiment), "--planted", "drops-replayed"]) == 2


_NOT_SIMULATED = """
[[fault]]
kind = "signal-storm"
target = "root"
[[fault]]
kind = "busy-neighbours"
target = "root"
at_ms = [0, 500]
chance = 50
"""


def test_what_cannot_be_simulated_is_left_out_and_said_once(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other faults are drawn as without them, so the trials are the same."""
    plain, mixed = tmp_path / "plain.jsonl", tmp_path / "mixed.jsonl"
    more = tmp_path / "more.toml"
    more.write_text(experiment.read_text() + _NOT_SIMULATED)
    command = ["chaos", "run", "--simulated", "--trials", "3", "--json"]
    assert main([*command, str(experiment), "--journal", str(plain)]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == []
    page, xml = tmp_path / "page.html", tmp_path / "trials.xml"
    reports = ["--html", str(page), "--junit", str(xml)]
    assert main([*command, str(more), "--journal", str(mixed), *reports]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == ["busy-neighbours", "signal-storm"]
    header, trials = read_journal(mixed)
    assert header.left_out == ("busy-neighbours", "signal-storm")
    assert [trial.to_table() for trial in trials] == [trial.to_table() for trial in read_journal(plain)[1]]
    assert main(["chaos", "report", str(mixed)]) == 0
    for told in (capsys.readouterr().out, page.read_text(), xml.read_text()):
        assert told.count("busy-neighbours, signal-storm") == 1
    assert main(["chaos", "run", str(more), "--dry", "--trials", "1"]) == 0
    assert "signal-storm" in capsys.readouterr().out, "of real processes nothing is left out"
    assert main(["chaos", "run", str(more), "--dry", "--trials", "1", "--simulated"]) == 0
    assert capsys.readouterr().out.count("signal-storm") == 1


def test_an_experiment_of_nothing_that_can_be_simulated_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its trials would all pass, and show nothing."""
    path, journal = tmp_path / "none.toml", tmp_path / "none.jsonl"
    path.write_text('[experiment]\nname = "none"\n' + _NOT_SIMULATED)
    assert main(["chaos", "run", str(path), "--simulated", "--journal", str(journal)]) == 2
    assert "signal-storm" in capsys.readouterr().err
    assert not journal.exists()
