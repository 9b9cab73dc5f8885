"""A guest that sends a device bytes and waits for its reply, for a while; each exchange is timed.

    args = { device = "upper", bytes = 64, batch = 1, seconds = 0.2 }

For devices of kind "custom" and "echo". With `echo = true` each reply has to be what was sent; otherwise only whoever
wrote the driver knows what it should be. With `batch` that many go at once, and a latency is that of a whole batch.
"""

from typing import Final

from bus.native import monotonic_ns
from bus.trace import Hop
from partitions.child import Partition
from partitions.measuring import stamps_of

BYTES: Final = 64
SECONDS: Final = 0.2


def main(partition: Partition) -> int:
    """args: device (text), bytes (of a request), batch (requests at once), seconds, echo (check the replies)."""
    args = partition.args
    size, batch = int(args.get("bytes", BYTES)), int(args.get("batch", 1))
    seconds, is_echo = float(args.get("seconds", SECONDS)), bool(args.get("echo"))
    if size < 8 or batch < 1:
        raise ValueError(f"bytes = {size}, batch = {batch}: at least 8 and 1 are wanted")
    name = f"{size}-byte exchanges" + (f", {batch} at a time" if batch > 1 else "")
    now, sent = monotonic_ns, 0
    with (
        partition.open_custom(str(args["device"])) as device,
        partition.measuring(name, transfer_bytes=size, depth=batch) as load,
    ):
        stamp = stamps_of(device)
        deadline = now() + int(seconds * 1e9)
        while True:
            # Big-endian: a request that begins with 0 is one that an echo returns as it is.
            requests = [(sent + number).to_bytes(size, "big") for number in range(batch)]
            begun = now()
            if stamp is not None:
                stamp(Hop.CALL)
            replies = device.exchange_batch(requests) if batch > 1 else [device.exchange(requests[0])]
            if stamp is not None:
                stamp(Hop.RETURN)
            ended = now()
            load.latency.record(ended - begun)
            load.mismatches += is_echo and replies != requests
            sent += batch
            if ended >= deadline:
                break
        load.operations = sent
    return 1 if load.mismatches else 0
