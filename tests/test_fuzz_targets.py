"""Every fuzz target for a moment, without a fuzzer: its seeds, and what comes of them when nobody is honest.

`scripts/fuzz protocols` runs the same targets under a coverage-guided fuzzer for as long as you like.
"""

import random

import pytest

from tests.fuzzing.pieces import cut, join, varied
from tests.fuzzing.targets import INPUT_BYTES_MAX, Target, all_targets, declared, sides_of

TARGETS = all_targets()
INPUTS = 60


PROTOCOLS = """
channel-messages custom device-state integration keyboard mouse nbd network network-calls network-capture
program-state rfb saved-partition saved-registers serial serial-calls storage streams stream-commands user-network video
"""


def test_every_side_of_every_protocol_can_be_fuzzed() -> None:
    """Both sides between partitions; of programs outside and of files, those that the protocol declares."""
    protocols = {each.protocol for each in TARGETS.values()}
    assert protocols == set(PROTOCOLS.split())
    assert declared() <= protocols
    assert set(TARGETS) == {f"{protocol}-{side}" for protocol in protocols for side in sides_of(protocol)}


@pytest.mark.parametrize("each", TARGETS.values(), ids=list(TARGETS))
def test_a_target_takes_its_seeds_and_what_is_made_of_them(each: Target) -> None:
    seeds = list(each.seeds())
    assert seeds
    for seed in seeds:
        assert len(seed) <= INPUT_BYTES_MAX
        each.run(seed)
    rng = random.Random(each.name)
    for number in range(INPUTS):
        data = varied(seeds, rng)
        try:
            each.run(data)
        except Exception as error:
            error.add_note(f"input {number} of {each.name}: {data.hex()}")
            raise


def test_what_was_joined_is_cut_again_and_any_bytes_can_be_cut() -> None:
    pieces = [b"", b"a", bytes(300)]
    assert list(cut(join(pieces))) == pieces
    assert list(cut(b"\x05\0abc")) == [b"abc"]
    assert list(cut(b"\x05")) == []
