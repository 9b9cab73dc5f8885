"""Ordinary programs in a guest with a TAP, one behind the other; what each wrote becomes console lines.

Args: commands, a list of argument lists; seconds, how long each may take; serve, one that runs beside them;
seconds_after, how long the guest stays there for others.
"""

import contextlib
import time

from partitions.child import Partition


def main(partition: Partition) -> int:
    args, worst = partition.args, 0
    limit_s = float(args.get("seconds", 60))
    with partition.open_tap() as tap, contextlib.ExitStack() as beside:
        partition.report("tap", mac=tap.nic.mac.hex(":"), mtu=tap.nic.mtu)
        if serve := args.get("serve"):
            beside.enter_context(tap.start([str(word) for word in serve]))
        for command in args.get("commands", ()):
            code, output = tap.run([str(word) for word in command], limit_s)
            print(output.decode("utf-8", "replace"), end="", flush=True)
            partition.report("program", argv=[str(word) for word in command], code=code)
            worst = worst or code
        time.sleep(float(args.get("seconds_after", 0)))
        partition.report("tap_counts", **tap.statistics(), **tap.nic.statistics())
    return 1 if worst else 0
