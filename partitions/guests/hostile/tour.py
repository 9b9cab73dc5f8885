"""A few attacks, one after the other, told as events: for a first look, and beside any machine of one's own.

args: device (text): a disk of its own to abuse; seed (number): the same seed attacks in the same way.
"""

import random
from typing import Final

from partitions.child import Partition
from partitions.guests.hostile.attacks import ATTACKS
from partitions.guests.hostile.scene import Scene
from partitions.guests.hostile.tally import Tally

RING_ATTACKS: Final = (
    "write-index-past-end",
    "packet-of-nonsense",
    "foreign-pages",
    "garbage-packets",
    "index-changed-while-read",
)
ROUNDS: Final = 2  # of these
CALLS: Final = ("forbidden-calls", "forged-ids", "parents-deposit")
REST: Final = (
    "doorbell-storm",
    "shrunk-memory",
    "memory-greed",
)
LAST: Final = ("garbage-messages", "garbage-calls")  # whoever makes these has no bus, and then no interrupts
SECONDS: Final = 0.08  # of each


def main(partition: Partition) -> None:
    seeds = random.Random(int(partition.args.get("seed", 0)))
    scene = Scene(partition, {**partition.args, "kind": "disk"})
    for name in (*CALLS, *RING_ATTACKS * ROUNDS, *REST, *LAST):
        if name in LAST:
            scene.doors.let_go()  # while it still can
        tally = Tally()
        scene.begin(seeds.getrandbits(32), SECONDS)
        ATTACKS[name](scene, tally)
        partition.report(
            "attacked",
            attack=name,
            made=tally.made,
            outcomes=dict(tally.outcomes),
            breaches=tally.breaches,
        )
