"""The driver that misbehaves: it serves well before and after, strikes once, says so where it survives, and is bounded.

What it does to a process is tried on a process of its own; what it puts on the wire is looked at from the other end.
"""

import contextlib
import faulthandler
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from partitions.faults import faulty_driver, harm
from partitions.faults.faulty_driver import FAULTS, RECORD_BYTES, SPOILT, FaultyDriver
from partitions.sdk.block import BlockDriver
from partitions.sdk.context import DriverContext
from partitions.storage.disk import Disk
from partitions.storage.handshake import build_srb_packet
from partitions.storage.message_wire import HEAD_BYTES, MESSAGE_BYTES_MAX, Kind, MessageHead
from partitions.storage.protocol import PACKET_BYTES, Direction, Operation, Packet
from partitions.storage.scsi import ReadBlocks
from runtime.blast import machine_files
from runtime.blast.faults import MEANING, Fault
from runtime.commands.blast import _FAULTS
from tests.partitions.message_world import GPFN, MessageServer, message_channel
from tests.partitions.storage_pair import connected

SIZE: Final = 1 << 20
BLOCK: Final = 4096
PATIENCE_S: Final = 20.0


def make(path: Path, fault: str, **args: Any) -> FaultyDriver:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(descriptor, SIZE + RECORD_BYTES)
    table = {"fault": fault, "record_at": SIZE, **args}
    return FaultyDriver(DriverContext("d", "disk", table, SIZE, 512, False, descriptor, None))


@contextlib.contextmanager
def driver(path: Path, fault: str, **args: Any) -> Iterator[FaultyDriver]:
    made = make(path, fault, **args)
    try:
        yield made
    finally:
        made.close()


def record(path: Path) -> dict[str, Any] | None:
    text = path.read_bytes()[SIZE:].strip(b"\0")
    found: dict[str, Any] | None = json.loads(text) if text else None
    return found


def test_it_serves_strikes_once_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its successor finds the record, and only serves."""
    struck: list[int] = []

    def strike(seed: int) -> dict[str, int]:
        struck.append(seed)
        return {"a": 1}

    monkeypatch.setattr(faulty_driver, "_HARMS", {**faulty_driver._HARMS, "crash": strike})
    path, data, back = tmp_path / "disk", bytes(range(256)) * 16, bytearray(BLOCK)
    for after in (3, 0):  # requests, until it may
        with driver(path, "crash", after=after, seed=7) as served:
            for number in range(6):
                served.writev([memoryview(data)], number * BLOCK)
                if after:
                    assert len(struck) == (number >= after), "neither before nor twice"
            served.readv([memoryview(back)], 5 * BLOCK)
            served.discard(0, BLOCK)
            served.flush()
    assert struck == [7]
    assert bytes(back) == data
    found = record(path)
    assert found is not None
    assert (found["fault"], found["requests"], found["did"]) == ("crash", 4, {"a": 1})


def test_it_may_have_to_wait_for_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    struck: list[int] = []

    def strike(seed: int) -> dict[str, int]:
        struck.append(seed)
        return {}

    monkeypatch.setattr(faulty_driver, "_HARMS", {**faulty_driver._HARMS, "crash": strike})
    with driver(tmp_path / "disk", "crash", after=2, waits=True) as served:
        for number in range(10):
            if number == 5:
                with (tmp_path / "disk").open("r+b") as image:
                    os.pwrite(image.fileno(), b"\1", SIZE + RECORD_BYTES)
            served.readv([memoryview(bytearray(512))], 0)
            assert len(struck) == (number >= 5 + 2)


def test_it_wraps_a_driver_and_tells_it_its_own_args(tmp_path: Path) -> None:
    spec = f"{__name__}:Upside"
    with driver(tmp_path / "disk", "crash", after=9, driver=spec, args={"x": 3}) as served:
        served.writev([memoryview(b"\x01" * 512)], 0)
        back = bytearray(512)
        served.readv([memoryview(back)], 0)
        assert set(back) == {0xFE ^ 3}


class Upside(BlockDriver):
    def writev(self, views: Any, offset: int) -> None:
        assert self.context.backing_fd is not None
        os.pwritev(self.context.backing_fd, views, offset)

    def readv(self, views: Any, offset: int) -> None:
        assert self.context.backing_fd is not None
        os.preadv(self.context.backing_fd, views, offset)
        for view in views:
            view[:] = bytes(byte ^ 0xFF ^ self.context.args["x"] for byte in view)


@pytest.mark.parametrize("args", [{"fault": "mischief"}, {}])
def test_args_that_make_no_sense_are_refused(tmp_path: Path, args: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError)):
        FaultyDriver(DriverContext("d", "disk", args, SIZE, 512, False, None, None))


# -- harm, in a process of its own

_ALONE: Final = """
import resource, sys
from partitions.faults import harm
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
harm.LIFE_S, harm.PROCESSES_MAX = 1, 5
exec(sys.argv[2])
print(dict(getattr(harm, sys.argv[1])(1)))
"""


def alone(what: str, prepare: str = "") -> tuple[int, str]:
    ended = subprocess.run(
        [sys.executable, "-c", _ALONE, what, prepare], capture_output=True, text=True, timeout=60, check=False
    )
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("what", "number"), [("crash", signal.SIGSEGV), ("hang", signal.SIGALRM), ("spin", signal.SIGALRM)]
)
def test_what_ends_a_process_ends_it_in_the_end(what: str, number: int) -> None:
    """Nobody need find out that it hangs: it does not outlive its bound."""
    assert alone(what)[0] == -number


def test_what_is_exhausted_is_limited_by_the_process_or_by_us() -> None:
    limited = "resource.setrlimit(resource.RLIMIT_{}, ({}, {}))"
    code, text = alone("exhaust_descriptors", limited.format("NOFILE", 64, 64))
    assert code == 0, text
    assert "Too many open files" in text
    code, text = alone("leak_memory", limited.format("DATA", 64 << 20, 64 << 20))
    assert code == 0, text
    assert "MemoryError" in text
    code, text = alone("leak_memory", "harm.LEAK_BYTES_MAX = 32 << 20")
    assert f"'bytes': {32 << 20}" in text, text
    assert harm.OURS in text


def test_a_bomb_is_of_few_processes_which_die_with_their_parent() -> None:
    code, text = alone("bomb", "import os; print(os.getpid(), flush=True)")
    assert code == 0, text
    assert "'processes': 5" in text
    parent = text.split()[0]
    children = subprocess.run(["pgrep", "-P", parent], capture_output=True, text=True, check=False)
    assert children.stdout == ""


def test_wild_writes_reach_shared_memory_first_and_all_of_it() -> None:
    pages = 16
    memory = mmap.mmap(-1, pages * mmap.PAGESIZE)  # shared
    pid = os.fork()
    if not pid:  # pragma: no cover - it dies of what it does
        faulthandler.disable()
        with contextlib.suppress(BaseException):
            harm.write_wildly(1)
        os._exit(0)
    os.waitpid(pid, 0)
    assert all(any(memory[page * mmap.PAGESIZE : (page + 1) * mmap.PAGESIZE]) for page in range(pages))


# -- what it puts on the wire

LIES: Final = pytest.mark.parametrize(
    ("fault", "packets"), [("double-replies", 2), ("no-replies", 0), ("garbage-replies", 1)]
)


@LIES
def test_lies_are_really_in_the_ring(tmp_path: Path, fault: str, packets: int) -> None:
    with driver(tmp_path / "disk", fault, after=1) as served, connected(served) as pair:
        disk = Disk(pair.guest, pair.data, pair.data_gpfn)
        assert disk.read(0, BLOCK) == bytes(BLOCK)  # before it strikes
        before = pair.guest.statistics()["packets_received"]
        disk.submit_read(0, disk.allocate(BLOCK), BLOCK)
        seen = list[tuple[int, int, int, bytes, bytes]]()
        while len(seen) < packets:
            seen += pair.guest.receive_batch(4, int(PATIENCE_S * 1e9))
            pair.guest.release()  # who sleeps behind what it has not released is not woken
        for _ in range(4):  # for one too many
            seen += pair.guest.receive_batch(4, 50_000_000)
        assert pair.guest.statistics()["packets_received"] - before == len(seen) == packets
        assert len(set(seen)) == min(packets, 1)
        if fault == "garbage-replies":
            assert Packet.parse(seen[0][4]).operation != Operation.COMPLETE_IO


@LIES
def test_lies_are_really_in_the_messages(tmp_path: Path, fault: str, packets: int) -> None:
    """A raw client counts what comes for one request."""
    with driver(tmp_path / "disk", fault, after=1) as served:
        backend: Any = served
        server = MessageServer(backend)
        server.start()
        try:
            with message_channel(server.connect) as (channel, area):
                assert Disk(channel, area, GPFN).read(0, BLOCK) == bytes(BLOCK)  # before it strikes
            with socket.socket(fileno=server.connect()) as raw:
                raw.settimeout(PATIENCE_S)
                head = MessageHead(1 << 20, BLOCK, 0, Kind.REQUEST, PACKET_BYTES)
                raw.send(head.encode() + build_srb_packet(ReadBlocks(0, 8), Direction.READ, BLOCK).build())
                seen: list[bytes] = []
                while len(seen) < packets:
                    seen.append(raw.recv(MESSAGE_BYTES_MAX))
                raw.settimeout(0.3)  # for one too many
                with contextlib.suppress(TimeoutError):
                    while reply := raw.recv(MESSAGE_BYTES_MAX):
                        seen.append(reply)
                assert len(seen) == packets
                assert len(set(seen)) == min(packets, 1)
                good = MessageHead(1 << 20, BLOCK, BLOCK, Kind.REPLY, PACKET_BYTES).encode()
                assert all((reply[:HEAD_BYTES] == good) == (fault == "double-replies") for reply in seen)
        finally:
            server.stop()


def test_it_keeps_to_the_rules_again(tmp_path: Path) -> None:
    """After SPOILT lies, of a kind that a guest can live with."""
    with driver(tmp_path / "disk", "double-replies", after=1) as served, connected(served) as pair:
        disk = Disk(pair.guest, pair.data, pair.data_gpfn)
        for number in range(SPOILT + 20):
            data = bytes([number]) * BLOCK
            disk.write(0, data)
            assert disk.read(0, BLOCK) == data
        counts = pair.guest.statistics()
        assert counts["packets_received"] == counts["packets_sent"] + SPOILT


def test_every_fault_has_the_name_that_the_command_knows() -> None:
    assert set(FAULTS) == {fault.value for fault in MEANING}
    assert set(_FAULTS) == set(FAULTS)
    assert str(SPOILT) in MEANING[Fault.DOUBLE_REPLIES]
    assert str(harm.PROCESSES_MAX) in MEANING[Fault.FORK_BOMB]
    assert str(harm.LEAK_BYTES_MAX >> 20) in MEANING[Fault.MEMORY_LEAK]
    assert RECORD_BYTES == machine_files.RECORD_BYTES
