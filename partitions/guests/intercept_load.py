"""Measures what an intercepted access costs: IN from the UART's scratch register, again and again.

args: count (accesses of each kind), machine_code (false: leave out the loop that unicorn runs). Reports each kind as
`guest.intercept_load`: python, machine code, a port that nobody intercepts, a bare hypercall, and a string access of a
page. Every value that is read is compared with what was written.
"""

import time
from collections.abc import Callable

from bus.native import Histogram
from partitions.child import Partition
from partitions.vp.machine_code import MachineCode
from partitions.vp.port_io import PortIo

_SCRATCH = 0x3FF
_NOWHERE = 0x2FF
_VALUE = 0x5A
_WARM_UP = 50
_STRING_BYTES = 4096
_LOAD_ADDRESS = 0x7C00
# mov dx, 3FF; again: in al, dx; cmp al, 5A; jne stop; dec ecx; jnz again; stop: hlt
_LOOP = bytes.fromhex("baff03 ec 3c5a 7504 6649 75f7 f4")


def main(partition: Partition) -> int:
    count = int(partition.args["count"])
    with PortIo(partition) as io:
        io.outb(_SCRATCH, _VALUE)
        wrong = _measure(partition, "python", count, lambda: io.inb(_SCRATCH) != _VALUE)
        wrong += _measure(partition, "not intercepted", count, lambda: io.inb(_NOWHERE) != 0xFF)
        hypercalls = partition.hypercalls
        wrong += _measure(
            partition, "hypercall", count, lambda: hypercalls.get_partition_id() != partition.id
        )
        expected = bytes([_VALUE]) * _STRING_BYTES
        strings = max(count // 20, 20)
        wrong += _measure(
            partition, "string of 4096", strings, lambda: io.insb(_SCRATCH, _STRING_BYTES) != expected
        )
    if partition.args.get("machine_code", True):
        wrong += _measure_machine_code(partition, count)
    return 1 if wrong else 0


def _measure(partition: Partition, name: str, count: int, is_wrong: Callable[[], bool]) -> int:
    """How many were wrong."""
    times, wrong = Histogram(), 0
    for _ in range(_WARM_UP):
        is_wrong()
    for _ in range(count):
        begun = time.monotonic_ns()
        wrong += is_wrong()
        times.record(time.monotonic_ns() - begun)
    _report(partition, name, times, wrong)
    return wrong


def _measure_machine_code(partition: Partition, count: int) -> int:
    """From one access to the next: with the instructions of the loop, which are few."""
    machine, times, last = MachineCode(partition, 1 << 20), Histogram(), 0

    def note() -> None:
        nonlocal last
        now = time.monotonic_ns()
        if last:
            times.record(now - last)
        last = now

    machine.memory[_LOAD_ADDRESS : _LOAD_ADDRESS + len(_LOOP)] = _LOOP
    machine.set_register("ecx", _WARM_UP)
    machine.run(_LOAD_ADDRESS)
    machine.on_access = note
    machine.set_register("ecx", count)
    machine.run(_LOAD_ADDRESS)
    left = machine.register("ecx")
    _report(partition, "machine code", times, left)
    return left


def _report(partition: Partition, name: str, times: Histogram, wrong: int) -> None:
    partition.report(
        "intercept_load",
        name=name,
        operations=times.count,
        wrong=wrong,
        p50_ns=times.percentile(50),
        p99_ns=times.percentile(99),
    )
