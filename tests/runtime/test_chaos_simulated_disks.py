"""The judge over thousands of simulated runs: never a false alarm, and every kind of defect is found."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.chaos.register_conflicts import Kind
from runtime.chaos.verdict import summary
from tests.runtime.simulated_disk import DEFECTS, SimulatedDisk

EXPECTED = {  # what a defect may be called; a lost value may show as an older one that came back
    "lost write": {Kind.LOST, Kind.NOT_DURABLE},
    "ignored discard": {Kind.LOST, Kind.NOT_DURABLE},
    "doubled stale write": {Kind.LOST, Kind.NOT_DURABLE},
    "stale read": {Kind.LOST},
    "torn write": {Kind.TORN, Kind.LOST, Kind.NOT_DURABLE},
    "invented data": {Kind.INVENTED, Kind.LOST, Kind.NOT_DURABLE},
    "misdirected write": {Kind.MISDIRECTED, Kind.LOST, Kind.NOT_DURABLE},
    "lost completion": {Kind.HUNG},
    "lying flush": {Kind.NOT_DURABLE},
    "ignored FUA": {Kind.NOT_DURABLE},
}
MIX = {"lying flush": "rrrrwwwddf", "ignored FUA": "rrrrwwWWdd"}  # one of them would make up for the other
ALWAYS_SEEN = {  # whatever else happens: they leave their mark on the data, or on the history
    "torn write": Kind.TORN,
    "invented data": Kind.INVENTED,
    "misdirected write": Kind.MISDIRECTED,
    "lost completion": Kind.HUNG,
}


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.integers(1, 3), st.integers(1, 3))
def test_an_honest_disk_is_never_accused(seed: int, power: bool, boots: int, guests: int) -> None:
    verdict = SimulatedDisk(seed, power=power, boots=boots, guests=guests).run()
    assert not any(verdict.counts.values()), summary(verdict)


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found_and_called_by_its_name(defect: str) -> None:
    """Not in every run: what was lost may be overwritten before anyone looks."""
    power, mix = defect in MIX, MIX.get(defect, SimulatedDisk.mix)
    struck = found = named = 0
    for seed in range(60):
        disk = SimulatedDisk(seed, defect, power=power, mix=mix)
        verdict = disk.run()
        kinds = {kind for kind, count in verdict.counts.items() if count}
        assert kinds <= EXPECTED[defect], summary(verdict)
        assert disk.hits or not kinds
        struck += disk.hits > 0
        found += bool(kinds)
        named += ALWAYS_SEEN.get(defect, Kind.LOST) in kinds
    assert struck > 50
    assert found > struck / 4
    if defect in ALWAYS_SEEN:
        assert named > struck / 2
