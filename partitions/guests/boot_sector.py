"""A guest of machine code: loads a boot sector, as a PC's firmware does, and runs it until it halts.

Its file `boot` is the sector. args: ram (bytes, default 1 MiB). With integration = true it can be saved, and goes on.
"""

import os
import sys
from typing import Final

from partitions.child import Partition
from partitions.vp.machine_code import MachineCode, MachineCodeError

SECTOR_BYTES: Final = 512
LOAD_ADDRESS: Final = 0x7C00
_SIGNATURE: Final = b"\x55\xaa"
_RAM_BYTES: Final = 1 << 20


def main(partition: Partition) -> int:
    """The exit code is what the code left in AL."""
    try:
        return _boot(partition)
    except MachineCodeError as error:
        print(f"{partition.name}: {error}", file=sys.stderr)
        return 1


def _boot(partition: Partition) -> int:
    state = partition.restored_state  # of the processor; its memory comes by itself
    machine = MachineCode(partition, int(partition.args.get("ram", _RAM_BYTES)))
    if state is None:
        sector = os.pread(partition.files["boot"], SECTOR_BYTES, 0)
        if len(sector) != SECTOR_BYTES or not sector.endswith(_SIGNATURE):
            raise MachineCodeError("the file 'boot' is no boot sector: 512 bytes that end in 55 AA are one")
        machine.memory[LOAD_ADDRESS : LOAD_ADDRESS + SECTOR_BYTES] = sector
        start = LOAD_ADDRESS
    else:
        machine.restore(state)
        start = machine.next_address
    if partition.has_integration:
        machine.rest_at_quiet_times(partition.integration)
        partition.on_save(machine.save)
    machine.run(start)
    partition.report("halted", ax=machine.register("ax"), ip=machine.register("eip"))
    return machine.register("ax") & 0xFF
