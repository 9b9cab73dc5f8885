"""Any hypercall with any arguments from any partition: nothing raises, grows, or changes anybody else's state."""

import random
import time

import pytest

from runtime.abi import HypercallCode
from tests.runtime.hypercall_fuzz import Hostility

SOAK_S = 180
SEEDS = 2
CALLS = 1_000


def _run(seed: int, steps: int) -> Hostility:
    hostility = Hostility(seed)
    for step in range(steps):
        try:
            hostility.step()
        except BaseException as error:
            error.add_note(f"seed {seed}, step {step}")
            raise
    return hostility


def test_hostile_calls_neither_raise_nor_grow_nor_reach_others() -> None:
    """And they get many calls through: what is always refused is not tried."""
    succeeded: set[HypercallCode] = set()
    for seed in range(SEEDS):
        succeeded |= set(_run(seed, CALLS).succeeded)
    missing = sorted(code.name for code in set(HypercallCode) - succeeded)
    assert len(missing) < len(HypercallCode) // 2, missing


@pytest.mark.soak
def test_hostility_for_minutes() -> None:
    deadline = time.monotonic() + SOAK_S
    first = random.randrange(2**32)
    print(f"seeds from {first}")
    seed, calls, succeeded = first, 0, set[HypercallCode]()
    while time.monotonic() < deadline:
        hostility = _run(seed, CALLS)
        calls += sum(hostility.statuses.values())
        succeeded |= set(hostility.succeeded)
        seed += 1
    missing = sorted(code.name for code in set(HypercallCode) - succeeded)
    print(f"{calls} calls, {seed - first} machines, all in order; never succeeded: {missing}")
    assert len(missing) < len(HypercallCode) // 5, missing
