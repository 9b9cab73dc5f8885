"""What an honest guest does that has the same device and the same cap: it works without pause, and waits for answers.

Beside it, one sees what of an attack's price is the price of any busy guest.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from bus.native import RingError, RingFull
from partitions.guests.hostile.requests import adapter, harmless, ready_door
from partitions.guests.hostile.scene import Scene
from partitions.guests.hostile.tally import Tally

_AT_ONCE: Final = 8
_ANSWER_NS: Final = 50_000_000
_ANSWER_S: Final = 0.5
_BLOCK_BYTES: Final = 4096
_PIECE_BYTES: Final = 80
_REQUEST_BYTES: Final = 256
_ETHERTYPE: Final = b"\x88\xb5"
_SCRATCH: Final = 0x3FF  # a UART's register that only keeps what it was told


def honest(scene: Scene, tally: Tally) -> None:
    kind = str(scene.args.get("kind", "disk"))
    if kind == "none":
        _access_ports(scene, tally)
    elif kind == "net":
        _send_frames(scene, tally)
    elif scene.partition.devices[str(scene.args["device"])].get("messages"):
        with _called(scene, kind) as exchange:
            scene.begin_now()
            while scene.goes_on():
                exchange()
                tally.met("answered")
    else:
        _fill_a_ring(scene, tally)


def _access_ports(scene: Scene, tally: Tally) -> None:
    accesses = scene.partition.accesses
    while scene.goes_on():
        accesses.access_port(0, _SCRATCH, 1, write=True, value=0x5A)
        accesses.access_port(0, _SCRATCH, 1)
        tally.met("answered", 2)


def _send_frames(scene: Scene, tally: Tally) -> None:
    """To ourselves: nobody else is to be kept busy."""
    with adapter(scene, tally) as nic:
        if nic is None:
            return
        frames = [nic.mac + nic.mac + _ETHERTYPE + bytes(_REQUEST_BYTES)] * _AT_ONCE
        while scene.goes_on():
            tally.met("taken", nic.send(frames, _ANSWER_S))
            nic.receive(_AT_ONCE, 0)


@contextmanager
def _called(scene: Scene, kind: str) -> Iterator[Callable[[], object]]:
    """By messages."""
    name, partition = str(scene.args["device"]), scene.partition
    match kind:
        case "disk":
            with partition.open_disk(name) as disk:
                yield lambda: disk.read(0, _BLOCK_BYTES)
        case "serial":
            with partition.open_serial(name) as line:

                def there_and_back() -> None:
                    line.write(bytes(_PIECE_BYTES), _ANSWER_S)
                    line.read(_PIECE_BYTES, _ANSWER_S)

                yield there_and_back
        case _:
            with partition.open_custom(name) as device:
                yield lambda: device.exchange(bytes(_REQUEST_BYTES))


def _fill_a_ring(scene: Scene, tally: Tally) -> None:
    """Some requests at once, then their answers."""
    if (door := ready_door(scene, tally)) is None:
        return
    try:
        while scene.goes_on():
            sent = 0
            try:
                for _ in range(_AT_ONCE):
                    door.channel.send(harmless(door, scene.rng), door.take_id(), door.kind != "serial")
                    sent += 1
            except RingFull:
                pass
            tally.made += sent
            answered = 0
            while answered < sent and (packets := door.channel.receive_batch(_AT_ONCE, _ANSWER_NS)):
                answered += len(packets)
                door.channel.release()
            tally.came_of_it("answered" if answered else "no answer")
    except RingError:
        tally.came_of_it("channel taken away")
