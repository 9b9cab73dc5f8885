"""A guest that does nothing until it is stopped, for trying things by hand."""

import time

from partitions.child import Partition


def main(partition: Partition) -> None:
    """args: seconds (number, optional): end by itself after so long."""
    seconds = partition.args.get("seconds")
    print(f"{partition.name} is up, devices: {', '.join(partition.devices) or 'none'}")
    end = None if seconds is None else time.monotonic() + float(seconds)
    while end is None or time.monotonic() < end:
        time.sleep(0.2 if end is None else min(0.2, max(0.0, end - time.monotonic())))
