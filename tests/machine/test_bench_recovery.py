"""`partvisor bench recovery` measures what it says. (How long anything takes is nobody's business here.)"""

from pathlib import Path

import pytest

from runtime.measure.bench_recovery import MODES, Mode, measure_mode, rows_of
from runtime.measure.outages import summarize

pytestmark = pytest.mark.machine
KILLS = 2
_LIKE_OTHERS = [mode for mode in MODES if mode.name == "SIGKILL, restart"]  # the standby's, but for the fork


@pytest.mark.parametrize(
    "mode",
    [pytest.param(mode, marks=[pytest.mark.soak] * (mode in _LIKE_OTHERS)) for mode in MODES],
    ids=lambda mode: mode.name.replace(" ", "-"),
)
def test_every_replacement_is_seen_from_the_kill_to_the_first_completion(
    mode: Mode, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARTVISOR_RUNTIME_DIR", str(runtime_dir))
    replacements = measure_mode(mode, KILLS)
    assert len(replacements) == KILLS
    for one in replacements:
        assert all(duration >= 0 for duration in one.phases_ns.values()), one
        # Not since it exited: what the old one had answered by then, the guest may take at any time.
        assert one.outage_ns >= one.completed_ns - one.restored_ns > 0, "somebody served the guest"
    if not mode.serves:
        away = [one.serving_ns - one.exited_ns for one in replacements]
        assert min(one.outage_ns for one in replacements) < max(away), "the guest was served all the time"
    goals = rows_of(mode, summarize(replacements))
    assert len(goals) == (mode.p50_ms_max is not None) + (mode.p99_ms_max is not None)
