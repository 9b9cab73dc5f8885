"""A hostile guest process on the real socket of a real broker: its memory, its descriptors, and everyone else."""

import random
from pathlib import Path
from typing import Any, Final

import pytest

from runtime.abi import ALL_PRIVILEGES, PortType
from tests.runtime.broker_process import SINT, BrokerProcess, broker_process, wait_until

HOSTILE: Final = "tests.runtime.standin_hostile"
CALLS: Final = 1_500
SOAK_RUNS: Final = 40
PAGES: Final = 400  # of a hostile guest
GROWTH_BYTES_MAX: Final = 1 << 20  # of the broker's own memory, from one hostile guest to the next


def _anonymous_bytes(broker: BrokerProcess) -> int:
    """The broker's own memory, without the pages of memfds that it has mapped."""
    for line in Path(f"/proc/{broker.process.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def _descriptors(broker: BrokerProcess) -> int:
    return sum(1 for _ in Path(f"/proc/{broker.process.pid}/fd").iterdir())


def _others(broker: BrokerProcess, beside: int) -> list[dict[str, Any]]:
    """What the platform sees of the root and of the guest beside."""
    return [broker.request("show", {"name": name}) for name in ("root", f"guest{beside}")]


def _attack(broker: BrokerProcess, seed: int) -> None:
    """One hostile guest from birth to deletion. It holds every privilege, so that little is refused at once."""
    port = broker.port
    child = port.create_partition()
    port.deposit(child, PAGES)
    port.set_privileges(child, ALL_PRIVILEGES)
    port.initialize(child)
    port.create_vp(0, child)
    port.set_program(child, HOSTILE, "hostile", {"seed": seed, "calls": CALLS})
    port.create_port(child, child, PortType.MESSAGE, SINT)
    port.connect_port(1, 1, child, partition=child)
    port.start_vp(child)
    while broker.message() != (child, b"done"):
        pass  # what it posted while it tried everything
    broker.event("partition.exited", id=child, code=0)
    assert port.balance(child).in_use_pages == 0
    port.delete(child)
    port.delete_port(child)


def _run(seeds: list[int]) -> None:
    with broker_process(memory_pages=8192) as broker:
        port = broker.port
        beside = broker.spawn("echo")
        assert broker.message() == (beside, b"ready")
        port.map_gpa_pages(0x100, 2, partition=beside)
        _attack(broker, seeds[0])  # the first one makes the broker import and allocate what it needs
        before = (_others(broker, beside), _descriptors(broker), _anonymous_bytes(broker))
        port.write_gpa(beside, 0x100 << 12, b"untouched")
        for seed in seeds[1:]:
            try:
                _attack(broker, seed)
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise
            assert _others(broker, beside) == before[0]
            wait_until(lambda: _descriptors(broker) <= before[1])
            grown = _anonymous_bytes(broker) - before[2]
            assert grown < GROWTH_BYTES_MAX, f"{grown} bytes after seed {seed}"
            broker.post(beside, b"still there")
            assert broker.message() == (beside, b"still there")
        assert port.read_gpa(beside, 0x100 << 12, 9)[1] == b"untouched"


def test_a_hostile_guest_costs_the_broker_nothing_and_the_others_neither() -> None:
    _run([1, 2, 3])


@pytest.mark.soak
def test_hostile_guests_for_minutes() -> None:
    first = random.randrange(2**32)
    print(f"seeds from {first}")
    _run(list(range(first, first + SOAK_RUNS)))
