"""A guest without enlightenments: no VMBus, only a PC's ports. It says on the serial line what it finds and does.

args: lba (where it may write; default 1), sectors (how many; default 8), listen (read a line from the serial port, by
interrupt, and say it back; default false).
"""

import hashlib
import os

from partitions.child import Partition
from partitions.guests.pc_drivers import (
    COM1_VECTOR,
    SECTOR_BYTES,
    IdeDrive,
    SerialConsole,
    memory_kib,
    read_clock,
    test_keyboard_controller,
)
from partitions.vp.port_io import PortIo

_RECEIVED, _EMPTY = 0x01, 0x02  # of the UART's interrupt enable register


def main(partition: Partition) -> int:
    """1: a sector that was written did not come back."""
    lba, sectors = int(partition.args.get("lba", 1)), int(partition.args.get("sectors", 8))
    with PortIo(partition) as io:
        console = SerialConsole(io)
        console.write(f"{partition.name}: a PC, as far as its ports say\n")
        works = "passed" if test_keyboard_controller(io) else "failed"
        console.write(f"keyboard controller: self test {works}\n")
        now = read_clock(io)
        console.write(f"clock: {now:%Y-%m-%d %H:%M:%S} UTC; extended memory: {memory_kib(io)} KiB\n")
        drive = IdeDrive(io)
        console.write(f"disk: {drive.model}, serial {drive.serial}, {drive.sectors} sectors\n")
        written = os.urandom(sectors * SECTOR_BYTES)
        drive.write(lba, written)
        drive.flush()
        found = drive.read(lba, sectors)
        matches = found == written
        console.write(
            f"{sectors} sectors from {lba}: {'written and read back' if matches else 'DIFFERENT'}\n"
        )
        interrupts = _count_interrupts(io, console)
        console.write(f"interrupts of the empty transmitter: {interrupts}\n")
        typed = _listen(io, console) if partition.args.get("listen") else ""
        partition.report(
            "legacy",
            matches=matches,
            sha256=hashlib.sha256(found).hexdigest(),
            sectors=drive.sectors,
            clock=int(now.timestamp()),
            interrupts=interrupts,
            typed=typed,
        )
        return 0 if matches else 1


def _count_interrupts(io: PortIo, console: SerialConsole) -> int:
    """Each byte sent empties the transmitter; each time that interrupts."""
    count = 0
    io.wait_interrupt(0)  # from here on
    console.enable_interrupts(_EMPTY)
    for _ in range(4):
        if COM1_VECTOR in io.wait_interrupt(10.0):
            count += console.interrupt_causes().count(0x02)
        console.write(".")
    console.enable_interrupts(0)
    console.write("\n")
    return count


def _listen(io: PortIo, console: SerialConsole) -> str:
    """A line, taken when the receiver interrupts."""
    console.write("say something:\n")
    console.enable_interrupts(_RECEIVED)
    line = console.read()
    while b"\n" not in line:
        io.wait_interrupt()
        if console.interrupt_causes():
            line += console.read()
    console.enable_interrupts(0)
    text = line.decode("utf-8", "replace").strip()
    console.write(f"you said: {text}\n")
    return text
