"""A guest that opens its disk, uses it a little, closes it, and does so again: a load on the control plane.

What it wrote in one opening it must find in the next. args: device, seconds, first_block (of BLOCKS that are its own).
"""

import signal
import time
from typing import Final

from partitions.child import Partition
from partitions.storage.disk import Disk

BLOCK_BYTES: Final = 4096
BLOCKS: Final = 4
DATA_BYTES: Final = 64 << 10
PATIENCE_S: Final = 40.0


def _content(turn: int) -> bytes:
    return b"".join(
        (turn * BLOCKS + index).to_bytes(8, "little") * (BLOCK_BYTES // 8) for index in range(BLOCKS)
    )


def _turn(disk: Disk, offset: int, turn: int) -> bool:
    """Whether the disk still has what the last turn wrote, and takes what this one does."""
    disk.timeout_s = PATIENCE_S
    length = BLOCKS * BLOCK_BYTES
    if turn and disk.read(offset, length) != _content(turn - 1):
        return False
    disk.write(offset, _content(turn))
    disk.flush()
    return disk.read(offset, length) == _content(turn)


def main(partition: Partition) -> int:
    """1: the disk held something else than was written. SIGTERM: enough."""
    enough = False

    def end_soon(*_: object) -> None:
        nonlocal enough
        enough = True

    signal.signal(signal.SIGTERM, end_soon)
    ends = time.monotonic() + float(partition.args["seconds"])
    offset = int(partition.args["first_block"]) * BLOCK_BYTES
    turn, agrees = 0, True
    while agrees and not enough and time.monotonic() < ends:
        with partition.open_disk(str(partition.args["device"]), DATA_BYTES) as disk:
            agrees = _turn(disk, offset, turn)
        turn += 1
    partition.report("reopened", turns=turn, agrees=agrees)
    return int(not agrees)
