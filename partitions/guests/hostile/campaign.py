"""The hostile guest as `partvisor attack` orders it: one attack, for so long, again and again."""

import time
from typing import Any

from partitions.child import Partition
from partitions.guests.hostile.attacks import ATTACKS
from partitions.guests.hostile.controls import CONTROLS
from partitions.guests.hostile.orders import Orders
from partitions.guests.hostile.scene import Scene
from partitions.guests.hostile.tally import Tally


def campaign(partition: Partition) -> None:
    """args: device, kind (of the device to abuse); pids, files, sockets: of others, to be tried.

    An order: attack, seconds, seed, and more for `args`. The answer: its window, and its tally.
    """
    orders, args = Orders(partition), dict(partition.args)
    scene = Scene(partition, args)
    orders.answer({"ready": partition.name})
    while (order := orders.next()) is not None:
        args |= order.get("args", {})
        orders.answer(perform(scene, order))
    scene.doors.let_go()


def perform(scene: Scene, order: dict[str, Any]) -> dict[str, Any]:
    """One window of an attack. An attack that fails by itself says so: then nothing is known of it."""
    tally, error = Tally(), ""
    scene.begin(int(order["seed"]), float(order["seconds"]))
    begun_ns = time.monotonic_ns()
    try:
        {**ATTACKS, **CONTROLS}[str(order["attack"])](scene, tally)
    except Exception as failure:  # whatever it is, the one who ordered it wants to know
        error = f"{type(failure).__name__}: {failure}"[:300]
    return {
        "attack": order["attack"],
        "begun_ns": begun_ns,
        "ended_ns": time.monotonic_ns(),
        "error": error,
        **tally.to_json(),
    }
