"""The verified load on several queues of one disk at once, each with a thread, a seed and a history of its own.

All of them work on the same blocks: the checker takes the histories together, as it does those of several guests.

    [[partition]]
    program = "partitions.guests.verified_queues:main"
    args = { device = "disk0", queues = 2, seed = 1, blocks = 1024, depth = 32, seconds = 10 }
    [[partition.file]]
    name = "history1"          # of the queue with seed 1; and "history2"
    mode = "read-write"

args: as partitions.guests.verified has them, and queues; each queue's seed is one more than the last one's.
"""

import contextlib
import signal
import threading
from dataclasses import asdict, replace

from partitions.child import Partition
from partitions.guests.verified import Plan, Result, VerifiedLoad
from partitions.storage.disk import Disk
from runtime.chaos.blocks import BLOCK_BYTES
from runtime.chaos.history import HistoryWriter


def main(partition: Partition) -> int:
    """As that of partitions.guests.verified."""
    plan, queues = Plan.from_args(partition.args), int(partition.args["queues"])
    data_bytes = plan.depth * plan.blocks_max * BLOCK_BYTES
    results: list[Result | None] = [None] * queues
    with (
        contextlib.ExitStack() as histories,
        partition.open_disk(str(partition.args["device"]), data_bytes, queues) as disk,
    ):
        loads = [
            _load(partition, queue, replace(plan, seed=plan.seed + number), histories)
            for number, queue in enumerate(disk.queues)
        ]

        def end_soon(*_: object) -> None:
            for load in loads:
                load.end_soon()

        signal.signal(signal.SIGTERM, end_soon)

        def run(number: int) -> None:
            results[number] = loads[number].run()

        others = [threading.Thread(target=run, args=(number,)) for number in range(1, queues)]
        for thread in others:
            thread.start()
        run(0)
        for thread in others:
            while thread.is_alive():
                thread.join(0.1)  # signals are taken in between
    ended = [result for result in results if result is not None]
    for number, result in enumerate(ended):
        partition.report("queue_verified", queue=number, **asdict(result))
    total = sum(result.operations for result in ended)
    suspects, failed = sum(one.suspects for one in ended), sum(one.failed for one in ended)
    gave_up = len(ended) < queues or any(one.gave_up for one in ended)
    partition.report("verified", operations=total, suspects=suspects, failed=failed, gave_up=gave_up)
    return int(suspects > 0 or failed > 0 or gave_up)


def _load(partition: Partition, disk: Disk, plan: Plan, histories: contextlib.ExitStack) -> VerifiedLoad:
    writer = HistoryWriter(
        partition.files[f"history{plan.seed}"],
        seed=plan.seed,
        first_block=plan.first_block,
        blocks=plan.blocks,
        blocks_max=plan.blocks_max,
        operations_max=plan.operations,
    )
    return VerifiedLoad(disk, histories.enter_context(writer), plan, partition.report)
