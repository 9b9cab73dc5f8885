"""What notices that a root which is not dead does not work: its heartbeats, and the look at its channels."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

from partitions.stack.guest_bus import GuestBus
from runtime.hypercalls.caller import HypercallPort

HEARTBEATS_PER_PROMISE: Final = 4  # so that three may be late


async def send_heartbeats(hypercalls: HypercallPort, machine: Mapping[str, Any]) -> None:
    """As long as this task gets its turn, the control plane is alive; the hypervisor wants to hear so."""
    if machine["on_root_failure"] == "halt":
        hypercalls.heartbeat(0)  # up, but no promise: without a successor, a slow root is better than none
        return
    hang_ms = machine["hang_ms"]
    while True:
        hypercalls.heartbeat(hang_ms)
        await trio.sleep(hang_ms / 1000 / HEARTBEATS_PER_PROMISE)


async def watch_channels(
    guests: Mapping[int, GuestBus], machine: Mapping[str, Any], log: Callable[..., None]
) -> None:
    """Heartbeats say nothing of the channels' threads. One that does not move while it holds work ends us all."""
    stuck_ms = machine["stuck_ms"]
    pause_s = stuck_ms / 1000 / 4
    while True:
        began = time.monotonic()
        await trio.sleep(pause_s)
        if time.monotonic() - began > 2 * pause_s:
            continue  # we stood still ourselves, as when the machine is paused: the threads need time to go on, too
        for guest in guests.values():
            if (device := guest.find_stuck(stuck_ms)) is not None:
                log("root.stuck", guest=guest.name, device=device, stuck_ms=stuck_ms)
                os.kill(os.getpid(), signal.SIGKILL)  # our successor may be luckier
