"""The checks of the C core that are not Python: sanitizers, model checkers and the fuzzer, each for a short while.

The scripts run them for as long as one likes. Exit status 3 means that a tool is not installed.
"""

import subprocess
from pathlib import Path
from typing import Final

import pytest

PROJECT: Final = Path(__file__).parents[2]
TOOL_IS_MISSING: Final = 3
PATIENCE_S: Final = 600


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROJECT / "scripts" / name, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_sanitizers_find_nothing_and_the_stress_test_notices_missing_fences() -> None:
    done = script("sanitize", "--seconds", "1", "--seeds", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lost wake-up" in done.stdout  # from the variant without fences


def test_model_checkers_find_nothing_but_the_broken_variants() -> None:
    done = script("prove", "--iterations", "50000")
    if done.returncode == TOOL_IS_MISSING:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_fuzzer_finds_nothing_in_a_moment(tmp_path: Path) -> None:
    done = script("fuzz", "rings", "--seconds", "3", "--corpus", str(tmp_path / "corpus"))
    if done.returncode == TOOL_IS_MISSING:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["sanitize", "prove", "fuzz"])
def test_each_script_explains_itself_and_refuses_what_it_does_not_know(name: str) -> None:
    helped = script(name, "--help")
    assert helped.returncode == 0
    assert f"scripts/{name}" in helped.stdout
    refused = script(name, "--nonsense")
    assert refused.returncode == 2
    assert "--help" in refused.stderr
