"""Numbered messages on whole machines: sound ones pass under a death, a driver that cheats is found out."""

import tempfile
from pathlib import Path

import pytest

from runtime.chaos.experiment.checks.fifo import Fifo
from runtime.chaos.experiment.journal import Outcome
from runtime.chaos.experiment.loading import experiment_of
from runtime.chaos.experiment.schedule import draw
from runtime.chaos.experiment.trial import run_trial
from runtime.chaos.faults.catalogue import FAULTS
from runtime.config.architecture import Architecture

pytestmark = pytest.mark.machine

MACHINE = """
[machine]
name = "numbered"
memory = "128MiB"
on_root_failure = "standby"
hang_ms = 60000
stuck_ms = 60000
[[root.device]]
name = "echo0"
kind = "custom"
driver = "echoes:{driver}"
[[partition]]
name = "guest"
program = "partitions.guests.sequenced:main"
memory = "16MiB"
args = {{ device = "echo0", seconds = 30 }}
[[partition.device]]
name = "echo0"
[[partition.file]]
name = "sequence"
path = "sequence"
mode = "read-write"
"""
DRIVERS = """
from partitions.sdk import CustomDriver

class Honest(CustomDriver):
    def answer(self, request):
        return request

class Swapping(CustomDriver):
    def serve(self, requests):
        return requests[::-1]

class Forgetful(CustomDriver):
    last = b""
    def answer(self, request):
        self.last, before = request, self.last
        return before if len(request) % 64 == 0 else request
"""


@pytest.mark.parametrize(
    ("driver", "architecture", "outcome"),
    [
        pytest.param("Honest", "microkernelized", Outcome.PASSED, marks=pytest.mark.soak),
        ("Swapping", "disaggregated", Outcome.VIOLATED),
        pytest.param("Forgetful", "microkernel", Outcome.VIOLATED, marks=pytest.mark.soak),
    ],
)
def test_a_driver_that_cheats_is_found_out(
    driver: str, architecture: str, outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "echoes.py").write_text(DRIVERS)
    (tmp_path / "machine.toml").write_text(MACHINE.format(driver=driver))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    target = "root" if outcome is Outcome.PASSED else "guest"
    kind = "kill" if target == "root" else "signal-storm"
    tables = {
        "experiment": {"name": "numbered", "machine": "machine.toml", "seconds": 1, "settle_ms": 300},
        "steady": {"operations": 100},
        "fault": [{"kind": kind, "target": target, "at_ms": [0], "for_ms": 200}],
    }
    experiment = experiment_of(tables, tmp_path, "it")
    with tempfile.TemporaryDirectory(prefix="pv-") as folder:  # short, for the paths of sockets
        evidence, trouble = run_trial(
            experiment, draw(experiment, 1, FAULTS), Architecture(architecture), Path(folder)
        )
    assert trouble == ""
    finding = Fifo().judge(evidence, {})
    assert finding.outcome is outcome, finding
    assert finding.figures["answered"] > 100
