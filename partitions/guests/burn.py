"""A guest that takes all the processor time it can get, for seeing what the scheduler gives it."""

import time

from partitions.child import Partition

_LOOPS_PER_LOOK = 20_000


def main(partition: Partition) -> None:
    """args: run_ms and sleep_ms (numbers, optional): burn so long, sleep so long, and again. Default: never sleep."""
    run_ms, sleep_ms = float(partition.args.get("run_ms", 0)), float(partition.args.get("sleep_ms", 0))
    print(f"{partition.name} burns")
    while True:
        end = time.monotonic() + run_ms / 1000
        while not sleep_ms or time.monotonic() < end:
            for _ in range(_LOOPS_PER_LOOK):
                pass
        time.sleep(sleep_ms / 1000)
