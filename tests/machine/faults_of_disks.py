"""What each fault of a medium does to a guest, its disk and its image, on a machine that runs."""

import errno

from runtime.chaos.faults.knobs import Knobs
from tests.machine.probed_machine import ONCE, ProbedMachine
from tests.machine.probing_guest import BLOCK, content

_DELAY_MS = 30


def error(machine: ProbedMachine) -> None:
    block = machine.filled()
    with machine.armed("storage-error", which="read", errno="EIO"):
        assert machine.ask("read", block=block)["errno"] == errno.EIO
        machine.put(block, 7)  # a write is none of its business
    assert machine.get(block) == content(7)


def full(machine: ProbedMachine) -> None:
    block = machine.filled()
    with machine.armed("storage-full"):
        assert machine.ask("write", block=block, tag=7)["errno"] == errno.ENOSPC
        assert machine.get(block) == content(block)
    machine.put(block, 7)


def slow(machine: ProbedMachine) -> None:
    block = machine.filled()
    with machine.armed("storage-slow", delay_ms=_DELAY_MS) as fault:
        began_ns = machine.ask("signals")["done_ns"]
        assert machine.ask("read", block=block)["done_ns"] - began_ns >= _DELAY_MS * 1_000_000
        fault.fires()


def stuck(machine: ProbedMachine) -> None:
    block = machine.filled()
    with machine.armed("storage-stuck", which="read") as fault:
        reading = machine.start("read", block=block)
        fault.fires()
        healed_ns = fault.heal()
        assert reading.answer()["done_ns"] > healed_ns
    assert machine.get(block) == content(block)


def lost_write(machine: ProbedMachine) -> None:
    block = machine.filled()
    with machine.armed("storage-lost-write"):
        machine.put(block, 7)
        assert machine.get(block) == content(block)
    assert machine.on_the_medium(block) == content(block)


def torn_write(machine: ProbedMachine) -> None:
    block = machine.filled()
    with machine.armed("storage-torn-write"):
        machine.put(block, 7)
    assert machine.on_the_medium(block) == content(7)[: BLOCK // 2] + content(block)[BLOCK // 2 :]


def misdirected_write(machine: ProbedMachine) -> None:
    block = machine.fresh(2)
    machine.put(block, block)
    with machine.armed("storage-misdirected-write", shift=BLOCK):
        machine.put(block, 7)
    assert machine.on_the_medium(block) == content(block)
    assert machine.on_the_medium(block + 1) == content(7)


def misdirected_read(machine: ProbedMachine) -> None:
    block = machine.filled()
    other = machine.filled()
    with machine.armed("storage-misdirected-read", shift=(other - block) * BLOCK):
        assert machine.get(block) == content(other)
    assert machine.get(block) == content(block)


def _bits_apart(one: bytes, other: bytes) -> int:
    return sum((left ^ right).bit_count() for left, right in zip(one, other, strict=True))


def corrupt_read(machine: ProbedMachine) -> None:
    block = machine.filled()
    with machine.armed("storage-corrupt-read"):
        assert _bits_apart(machine.get(block), content(block)) == 1
    assert machine.get(block) == content(block)


def corrupt_write(machine: ProbedMachine) -> None:
    block = machine.filled()
    with machine.armed("storage-corrupt-write"):
        machine.put(block, block)
    assert _bits_apart(machine.on_the_medium(block), content(block)) == 1
    assert _bits_apart(machine.get(block), content(block)) == 1


def stale_read(machine: ProbedMachine) -> None:
    block = machine.filled()
    with machine.armed("storage-stale-read", knobs=ONCE):
        assert machine.get(block) == bytes(BLOCK)
        assert machine.get(block) == content(block)  # once was enough


def flush_error(machine: ProbedMachine) -> None:
    block = machine.filled()
    with machine.armed("storage-flush-error"):
        assert machine.ask("flush")["errno"] == errno.EIO
        assert machine.get(block) == content(block)


def memory_revoked(machine: ProbedMachine) -> None:
    block = machine.filled()
    with machine.armed("memory-revoked", knobs=Knobs(times=2)):
        for _ in range(2):
            assert machine.ask("read", block=block)["error"] == "DiskCommandError"
        assert machine.get(block) == content(block)


def memory_slow(machine: ProbedMachine) -> None:
    block = machine.filled()
    with machine.armed("memory-slow", delay_ms=_DELAY_MS):
        began_ns = machine.ask("signals")["done_ns"]
        assert machine.ask("read", block=block)["done_ns"] - began_ns >= _DELAY_MS * 1_000_000


def memory_stall(machine: ProbedMachine) -> None:
    block = machine.filled()
    with machine.armed("memory-stall", delay_ms=_DELAY_MS, knobs=ONCE):
        began_ns = machine.ask("signals")["done_ns"]
        assert machine.ask("read", block=block)["done_ns"] - began_ns >= _DELAY_MS * 1_000_000 // 2
    assert machine.get(block) == content(block)
