"""The hostile guest against services of whole machines: attacks are made, refused, and felt by nobody else."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from runtime.attack.findings import Report
from runtime.attack.running import AttackOptions, attack
from runtime.attack.services import SERVICES
from runtime.config.architecture import Architecture

pytestmark = pytest.mark.machine
PACE_MIN: Final = (
    0.2  # robust on a host that is busy with other things; the promise itself is the command's to check
)
QUICK: Final = ("write-index-past-end", "foreign-pages", "stuffed-doorbell")
EVERYTHING: Final = [(service.name, each) for service in SERVICES for each in service.architectures]


def attacked(
    name: str, architecture: Architecture, folder: Path, seconds: float, only: frozenset[str] = frozenset()
) -> Report:
    service = next(each for each in SERVICES if each.name == name)
    options = AttackOptions(seconds=seconds, seed=1, only=only)
    return attack(service, architecture, options, folder)


def check(report: Report) -> None:
    """All but the pace, whose ratio is in the message of whatever fails."""
    told = json.dumps(report.to_json(), indent=1)
    assert report.breaches == (), told
    for finding in report.findings:
        assert finding.made > 0, told
        assert not finding.errors, told
        assert finding.breaches == [], told
        assert finding.unexpected == [], told


def pace(report: Report) -> float:
    assert report.ratio is not None
    return report.ratio.value


def test_attacks_of_a_process_on_others_are_made_and_refused(scratch: Path) -> None:
    """A few, in every run of the suite; the others with --soak. Each once even where there is no time for that."""
    only = frozenset({"signals-to-others", "files-of-others", "call-ptrace"})
    check(attacked("host", Architecture.MICROKERNELIZED, scratch / "m", 0.01, only))


def test_attacks_on_a_ring_are_made_and_contained_and_the_command_says_so_in_json(runtime_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runtime.cli", "attack", "--service", "disk", "--seconds", "0.5"]
        + ["--architecture", "microkernelized", "--json"]
        + [word for name in QUICK for word in ("--attack", name)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    (report,) = json.loads(done.stdout)["reports"]
    found: dict[str, dict[str, Any]] = {each["attack"]: each for each in report["attacks"]}
    assert set(found) == set(QUICK)
    assert all(each["made"] > 0 and not each["breaches"] for each in found.values()), done.stdout
    assert report["breaches"] == [], done.stdout
    assert done.returncode == (0 if report["contained"] else 1)
    assert not runtime_dir.exists()


@pytest.mark.soak
@pytest.mark.parametrize(("name", "architecture"), EVERYTHING)
def test_every_attack_on_every_service_is_made_and_contained(
    name: str, architecture: Architecture, scratch: Path
) -> None:
    report = attacked(name, architecture, scratch / "m", 8)
    check(report)
    assert pace(report) > PACE_MIN, json.dumps(report.to_json(), indent=1)
