"""The fast path in C and the slow path in Python decide alike: same answers, same pages, same disk, to the byte."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.memory import PAGE_BYTES
from partitions.storage.backends import MemoryBackend
from partitions.storage.disk import Disk
from partitions.storage.protocol import Direction, Operation, Packet, ScsiRequest
from tests.partitions.storage_guest import gpa_range
from tests.partitions.storage_pair import FIRST_GPFN, Pair, connected

BLOCKS = 256
TRANSFER_MAX = 64 * 1024
DATA_PAGES = 32
DATA_GPFN = FIRST_GPFN + 10  # behind rings of 4 pages each: nobody here reads into his own rings
READ_ONLY_GPFN = 0x9000  # one page that the server may read and not write
ANSWER_NS = 20_000_000_000


@dataclass(frozen=True)
class Ask:
    """One READ or WRITE, field by field, so that a single one can be wrong."""

    opcode: int
    lba: int = 3
    blocks: int = 4
    flags: int = 0
    control: int = 0
    cdb_length: int | None = None
    direction: int | None = None
    transfer: int | None = None
    covered: int | None = None
    offset: int = 0
    gpfn: int = DATA_GPFN
    lun: int = 0
    target: int = 0
    path: int = 0
    sense_length: int = 20
    operation: int = Operation.EXECUTE_SRB
    rest: int = 0  # what the server has to echo

    @property
    def reading(self) -> bool:
        return self.opcode in (0x28, 0x88)

    def cdb(self) -> bytes:
        if self.opcode in (0x28, 0x2A):
            lba, blocks = self.lba & 0xFFFFFFFF, self.blocks & 0xFFFF
            head = (
                bytes([self.opcode, self.flags]) + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big")
            )
            return head + bytes([self.control])
        head = bytes([self.opcode, self.flags]) + self.lba.to_bytes(8, "big") + self.blocks.to_bytes(4, "big")
        return head + b"\0" + bytes([self.control])

    def packet(self) -> tuple[bytes, bytes]:
        """(extra header, payload)."""
        cdb = self.cdb()
        honest = min(self.blocks * 512, 24 * PAGE_BYTES) or 512
        covered = honest if self.covered is None else self.covered
        direction = Direction.READ if self.reading else Direction.WRITE
        request = ScsiRequest(
            path=self.path,
            target=self.target,
            lun=self.lun,
            cdb_length=len(cdb) if self.cdb_length is None else self.cdb_length,
            sense_length=self.sense_length,
            direction=direction if self.direction is None else self.direction,
            transfer_bytes=covered if self.transfer is None else self.transfer,
            cdb_or_sense=cdb,
            queue_tag=self.rest & 0xFF,
            srb_flags=self.rest,
            timeout_s=self.rest,
        )
        pages = -(-(self.offset + covered) // PAGE_BYTES)
        extra = gpa_range(self.offset, covered, list(range(self.gpfn, self.gpfn + pages)))
        return extra, Packet(self.operation, 1, self.rest & 1, request.build()).build()


class Twins:
    """One server in C and one in Python, each with a disk and pages of its own, that get the same packets."""

    def __init__(self, stack: ExitStack) -> None:
        self.disks = [stack.enter_context(MemoryBackend(BLOCKS * 512)) for _ in range(2)]
        more = {READ_ONLY_GPFN: bytes(PAGE_BYTES)}
        shape: dict[str, Any] = {"data_pages": DATA_PAGES, "max_transfer_bytes": TRANSFER_MAX, "more": more}
        self.pairs = [
            self.first(stack, **shape),
            stack.enter_context(connected(self.disks[1], fast=False, **shape)),
        ]
        for pair, disk in zip(self.pairs, self.disks, strict=True):
            assert pair.data_gpfn == DATA_GPFN
            Disk(pair.guest, pair.data, pair.data_gpfn, timeout_s=20)
            disk.writev([memoryview(random.Random(3).randbytes(BLOCKS * 512))], 0)

    def first(self, stack: ExitStack, **shape: Any) -> Pair:
        """The one in C, on the first disk."""
        return stack.enter_context(connected(self.disks[0], **shape))

    def ask(self, ask: Ask) -> list[tuple[bytes, bytes, bytes]]:
        """Each twin's (answer, pages afterwards, disk afterwards)."""
        extra, payload = ask.packet()
        results = []
        for pair, disk in zip(self.pairs, self.disks, strict=True):
            pair.data[:] = random.Random(7).randbytes(len(pair.data))
            pair.guest.send_raw(9, 1, extra, payload, 5)
            packets = pair.guest.receive_batch(1, ANSWER_NS)
            pair.guest.release()
            assert packets, f"no answer: {pair.failure}"
            ((_, _, transaction_id, _, answer),) = packets
            assert transaction_id == 5
            content = bytearray(disk.size_bytes)
            disk.readv([memoryview(content)], 0)
            results.append((answer, bytes(pair.data), bytes(content)))
        return results

    def through_c(self, ask: Ask) -> bool:
        """Who did it, at the first twin."""
        before = self.pairs[0].vsp._executor.counters.requests
        self.ask(ask)
        return self.pairs[0].vsp._executor.counters.requests == before


@pytest.fixture(scope="module")
def twins() -> Iterator[Twins]:
    with ExitStack() as stack:
        yield Twins(stack)


OPCODES = (0x28, 0x2A, 0x88, 0x8A)
EVERY_CHANGE: dict[str, Callable[[Ask], Ask]] = {
    "nothing": lambda ask: ask,
    "last block": lambda ask: replace(ask, lba=BLOCKS - 4),
    "past the end": lambda ask: replace(ask, lba=BLOCKS - 3),
    "starts at the end": lambda ask: replace(ask, lba=BLOCKS, blocks=1),
    "far past the end": lambda ask: replace(ask, lba=2**32 - 1),
    "no blocks": lambda ask: replace(ask, blocks=0),
    "the most at once": lambda ask: replace(ask, blocks=128),
    "more than that": lambda ask: replace(ask, blocks=129),
    "force unit access": lambda ask: replace(ask, flags=0x08),
    "protection": lambda ask: replace(ask, flags=0x20),
    "caching hint": lambda ask: replace(ask, flags=0x10),
    "NACA": lambda ask: replace(ask, control=0x04),
    "other control bits": lambda ask: replace(ask, control=0xC0),
    "short CDB": lambda ask: replace(ask, cdb_length=9),
    "CDB of 15": lambda ask: replace(ask, cdb_length=15),
    "long CDB": lambda ask: replace(ask, cdb_length=17),
    "no CDB": lambda ask: replace(ask, cdb_length=0),
    "wrong direction": lambda ask: replace(ask, direction=0 if ask.reading else 1),
    "no direction": lambda ask: replace(ask, direction=2),
    "no such direction": lambda ask: replace(ask, direction=77),
    "half the transfer": lambda ask: replace(ask, transfer=1024),
    "one byte too few": lambda ask: replace(ask, transfer=2047),
    "more than the pages": lambda ask: replace(ask, transfer=4096),
    "half the pages": lambda ask: replace(ask, covered=1024),
    "twice the pages": lambda ask: replace(ask, covered=4096),
    "offset": lambda ask: replace(ask, offset=100),
    "last byte of a page": lambda ask: replace(ask, offset=4095),
    "unmapped": lambda ask: replace(ask, gpfn=DATA_GPFN + DATA_PAGES),
    "partly unmapped": lambda ask: replace(ask, gpfn=DATA_GPFN + DATA_PAGES - 1, offset=3000),
    "absurd page": lambda ask: replace(ask, gpfn=2**52),
    "read-only page": lambda ask: replace(ask, gpfn=READ_ONLY_GPFN),
    "lun": lambda ask: replace(ask, lun=1),
    "target": lambda ask: replace(ask, target=1),
    "path": lambda ask: replace(ask, path=1),
    "no room for sense": lambda ask: replace(ask, sense_length=0),
    "reset": lambda ask: replace(ask, operation=Operation.RESET_LUN),
    "begin": lambda ask: replace(ask, operation=Operation.BEGIN_INITIALIZATION),
    "no operation": lambda ask: replace(ask, operation=99),
    "all echoed bits": lambda ask: replace(ask, rest=2**32 - 1),
}


@pytest.mark.parametrize("opcode", OPCODES)
@pytest.mark.parametrize("change", EVERY_CHANGE)
def test_one_thing_out_of_the_ordinary_is_answered_alike(twins: Twins, opcode: int, change: str) -> None:
    fast, slow = twins.ask(EVERY_CHANGE[change](Ask(opcode)))
    assert fast == slow


@settings(max_examples=300, deadline=None)
@given(
    first=st.builds(
        Ask,
        st.sampled_from(OPCODES),
        lba=st.integers(0, BLOCKS - 40),
        blocks=st.integers(1, 40),
        offset=st.integers(0, 4095),
        rest=st.integers(0, 2**32 - 1),
    ),
    changes=st.lists(st.sampled_from(sorted(EVERY_CHANGE)), max_size=3),
)
def test_several_things_out_of_the_ordinary_are_answered_alike(
    twins: Twins, first: Ask, changes: list[str]
) -> None:
    for change in changes:
        first = EVERY_CHANGE[change](first)
    fast, slow = twins.ask(first)
    assert fast == slow


@pytest.mark.parametrize("opcode", OPCODES)
def test_the_ordinary_goes_through_c_and_the_rest_does_not(twins: Twins, opcode: int) -> None:
    for change in ("nothing", "last block", "offset", "the most at once", "twice the pages"):
        assert twins.through_c(EVERY_CHANGE[change](Ask(opcode))), change
    for change in ("force unit access", "past the end", "lun", "unmapped", "no blocks"):
        assert not twins.through_c(EVERY_CHANGE[change](Ask(opcode))), change
