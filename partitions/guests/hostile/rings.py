"""Attacks on the indexes and descriptors of a ring. Each costs the channel; each is read back from the shared pages.

Offsets in a ring's header page: write index 0, read index 4, interrupt mask 8; the data follows at 4096.
"""

import contextlib
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from bus.memory import PAGE_BYTES
from bus.native import RingError
from partitions.guests.hostile.doors import Door
from partitions.guests.hostile.requests import harmless
from partitions.guests.hostile.scene import Scene
from partitions.guests.hostile.tally import Tally

_WRITE, _READ = 0, 4
_DESCRIPTOR: Final = struct.Struct("<HHHHQ")  # type, offset and length in 8 bytes, flags, id
_LENGTH_AT: Final = 4
_IN_BAND: Final = 6
_PACKET_BYTES: Final = 128  # a power of two: a ring has a whole number of them
_REPLAYED: Final = 8  # packets
_PAUSE_S: Final = 0.0005
_ANSWER_S: Final = 0.5
_NS_PER_S: Final = 1_000_000_000


@contextlib.contextmanager
def _door_for(scene: Scene, tally: Tally) -> Iterator[Door | None]:
    with scene.fresh_door() as door:
        if door is None:
            tally.came_of_it("not offered again")
        yield door


def write_index_past_end(scene: Scene, tally: Tally) -> None:
    with _door_for(scene, tally) as door:
        if door is None:
            return
        size = door.ring_bytes
        value = scene.rng.choice((size, size + 8, 2 * size, 0xFFFF_FFF8, 1 << 31, 1, 4, size - 4))
        if door.put(_WRITE, value) == value:
            tally.evidence = f"write index {value:#x} stands in a ring of {size:#x} bytes"
            tally.met(door.fate())


def read_index_past_end(scene: Scene, tally: Tally) -> None:
    """In the ring that the server fills: it has to look there for room."""
    with _door_for(scene, tally) as door:
        if door is None:
            return
        size = door.ring_bytes
        value = scene.rng.choice((size, size + 8, 0xFFFF_FFF8, 1 << 31, 1, 4))
        if door.put(door.incoming + _READ, value) == value:
            tally.evidence = f"read index {value:#x} stands in a ring of {size:#x} bytes"
            with contextlib.suppress(
                RingError
            ):  # the server looks again when it believes the ring to be full
                for _ in range(2 * size // _PACKET_BYTES):
                    door.channel.send(harmless(door, scene.rng), door.take_id(), True)
                    _wait_taken(door, _PAUSE_S * 4)
            tally.met(door.fate())


def index_changed_while_read(scene: Scene, tally: Tally) -> None:
    with _door_for(scene, tally) as door:
        if door is None:
            return
        size, memory = door.ring_bytes, door.memory
        values = [struct.pack("<I", value) for value in (0, size + 8, 0, 0xFFFF_FFF8, 8, 1)]
        seen: set[int] = set()

        def change(count: int) -> None:
            memory[_WRITE : _WRITE + 4] = values[count % len(values)]
            seen.add(door.get(_WRITE))

        changes = _while_changing(scene, door, change, lambda: None)
        if len(seen) > 1:
            tally.evidence = f"{changes} changes; write indexes {sorted(seen)} were seen in the page"
            tally.made += changes
        tally.came_of_it(door.fate())


def packet_of_nonsense(scene: Scene, tally: Tally) -> None:
    with _door_for(scene, tally) as door:
        if door is None:
            return
        rng = scene.rng
        nonsense = _DESCRIPTOR.pack(
            rng.choice((_IN_BAND, 9, 7, 0, 0xFFFF)),
            rng.choice((0, 1, 0xFFFF, 4096)),
            rng.choice((0, 1, 0xFFFF, 0x8000)),
            rng.randrange(1 << 16),
            rng.getrandbits(64),
        )
        at = door.get(_WRITE)
        if at + _PACKET_BYTES > door.ring_bytes:
            return
        where = PAGE_BYTES + at
        door.memory[where : where + _DESCRIPTOR.size] = nonsense
        if bytes(door.memory[where : where + _DESCRIPTOR.size]) == nonsense:
            door.put(_WRITE, (at + _PACKET_BYTES) % door.ring_bytes)
            tally.evidence = f"descriptor {nonsense.hex()} stands at {at:#x}"
            tally.met(door.fate())


def packet_changed_while_read(scene: Scene, tally: Tally) -> None:
    """The length in a descriptor is good, then not, then good: whoever looks twice sees two."""
    with _door_for(scene, tally) as door:
        if door is None:
            return
        memory, size = door.memory, door.ring_bytes
        _wait_taken(door)  # what set the channel up
        start = door.get(_WRITE)
        at = [start]
        lengths = [
            struct.pack("<H", value)
            for value in (
                _PACKET_BYTES // 8 - 1,
                0xFFFF,
                _PACKET_BYTES // 8 - 1,
                2,
                _PACKET_BYTES // 8 - 1,
                0,
            )
        ]
        body = harmless(door, scene.rng).ljust(_PACKET_BYTES - 24, b"\0")[: _PACKET_BYTES - 24]
        taken = 0

        def publish() -> None:
            nonlocal taken
            if door.get(_READ) != at[0]:
                return
            taken += at[0] != start
            if at[0] + 2 * _PACKET_BYTES > size:  # the lap's end: enough
                return
            where = PAGE_BYTES + at[0]
            descriptor = _DESCRIPTOR.pack(_IN_BAND, 2, _PACKET_BYTES // 8 - 1, 0, door.take_id())
            packet = descriptor + body + struct.pack("<II", 0, at[0])
            memory[where : where + _PACKET_BYTES] = packet
            at[0] += _PACKET_BYTES
            door.put(_WRITE, at[0])

        def change(count: int) -> None:
            where = PAGE_BYTES + max(at[0] - _PACKET_BYTES, 0) + _LENGTH_AT
            memory[where : where + 2] = lengths[count % len(lengths)]

        changes = _while_changing(scene, door, change, publish)
        if changes and at[0] != start:
            tally.made += changes
            tally.evidence = f"{changes} changes; the server took {taken} packets meanwhile"
        tally.came_of_it(door.fate(0.05))


def _while_changing(
    scene: Scene, door: Door, change: Callable[[int], None], meanwhile: Callable[[], None]
) -> int:
    """A second thread changes something until the window or the channel is over; how often it did."""
    over, count = threading.Event(), 0

    def run() -> None:
        nonlocal count
        while not over.is_set():
            for _ in range(64):
                change(count)
                count += 1

    meanwhile()  # once at least: under a cap the other thread may have all that we are given
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while scene.goes_on() and not door.is_lost:
            meanwhile()
            with contextlib.suppress(RingError, OSError):
                door.channel.kick()
            time.sleep(_PAUSE_S)
    finally:
        over.set()
        thread.join()
    return count


def replayed_packets(scene: Scene, tally: Tally) -> None:
    """Packets that are answered; then they stand behind themselves once more, and the index says that they are new."""
    with _door_for(scene, tally) as door:
        if door is None:
            return
        channel, memory = door.channel, door.memory
        body = harmless(door, scene.rng).ljust(_PACKET_BYTES - 24, b"\0")[: _PACKET_BYTES - 24]
        _wait_taken(door)  # what set the channel up
        before = door.get(_WRITE)
        sent: set[int] = set()
        try:
            for _ in range(_REPLAYED):
                number = door.take_id()
                channel.send(body, number, door.kind != "serial")
                sent.add(number)
                _wait_taken(door)
                _answers(door)
            _answers(door, _ANSWER_S / 5)
            mark = door.get(_WRITE)
            target = 2 * mark - before
            if mark <= before or target >= door.ring_bytes:
                return
            memory[PAGE_BYTES + mark : PAGE_BYTES + target] = memory[PAGE_BYTES + before : PAGE_BYTES + mark]
            if door.put(_WRITE, target) != target:
                return
            tally.made += _REPLAYED
            channel.kick()
            _wait_taken(door)
            repeated = _answers(door, _ANSWER_S) & sent
        except RingError:
            tally.came_of_it(door.fate())
            return
        if repeated:
            tally.evidence = f"{len(repeated)} old ids were completed again"
            tally.came_of_it("answered again")
        elif door.is_lost:
            tally.came_of_it("channel taken away")
        else:
            tally.evidence = (
                f"write index went on from {mark:#x} (from {before:#x}), read index {door.get(_READ):#x}"
            )
            tally.came_of_it("taken again" if door.get(_READ) == target else "channel left as it is")


def _wait_taken(door: Door, seconds: float = _ANSWER_S) -> None:
    ends = time.monotonic() + seconds
    while door.get(_READ) != door.get(_WRITE) and not door.is_lost and time.monotonic() < ends:
        time.sleep(_PAUSE_S / 5)


def _answers(door: Door, seconds: float = 0) -> set[int]:
    """Ids that are completed, within that time or until some are."""
    packets = door.channel.receive_batch(64, int(seconds * _NS_PER_S))
    door.channel.release()
    return {identity for _, _, identity, _, _ in packets}
