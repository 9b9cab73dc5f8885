"""What a hostile guest does that is no attack, for comparison: nothing, and what anybody may."""

import time
from collections.abc import Mapping
from typing import Final

from partitions.guests.hostile.honest import honest
from partitions.guests.hostile.scene import AttackFunction, Scene
from partitions.guests.hostile.tally import Tally


def idle(scene: Scene, tally: Tally) -> None:
    tally.met("stood still")
    scene.sleep_out()


def share(scene: Scene, tally: Tally) -> None:
    """Its own processor time, as much as it gets."""
    begun_ns = time.process_time_ns()
    while scene.goes_on():
        tally.made += 1
    tally.came_of_it("burned")
    tally.evidence = f"{(time.process_time_ns() - begun_ns) / 1e6:.1f} ms"


CONTROLS: Final[Mapping[str, AttackFunction]] = {"idle": idle, "share": share, "honest": honest}
