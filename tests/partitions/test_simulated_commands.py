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
    assert json.loads(printed.out)["trials"] == 3
    header, trials = read_journal(journal)
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
