"""The campaigns of configs/chaos, run: nothing is wrong, and what was to fire has fired."""

import subprocess
import tempfile
from pathlib import Path
from typing import Final

import pytest

from runtime.chaos.experiment.journal import Outcome, read_journal
from tests.machine.conftest import PARTVISOR
from tests.test_docs import ROOT

pytestmark = pytest.mark.machine

PATIENCE_S: Final = 600.0
CAMPAIGNS: Final = sorted(path.stem for path in (ROOT / "configs/chaos").glob("*.toml"))
CHEAPEST: Final[tuple[str, ...]] = ()  # nine seconds each, and more: all of them only with --soak


@pytest.mark.parametrize(
    "name", [name if name in CHEAPEST else pytest.param(name, marks=pytest.mark.soak) for name in CAMPAIGNS]
)
def test_two_trials_of_a_campaign_are_green(name: str) -> None:
    path = ROOT / "configs/chaos" / f"{name}.toml"
    with tempfile.TemporaryDirectory(prefix="pv-") as folder:
        journal = Path(folder) / "journal"
        words = ["chaos", "run", str(path), "--trials", "2", "--jobs", "2", "--journal", str(journal)]
        done = subprocess.run(
            [*PARTVISOR, *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        header, trials = read_journal(journal)
    assert len(trials) == header.count
    assert {trial.outcome for trial in trials} == {Outcome.PASSED}
    assert all(fate.fired for trial in trials for fate in trial.fates)
