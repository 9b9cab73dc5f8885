"""Attacks by requests: ids that are used twice, pages of others, lengths that lie, answers that nobody reads."""

import contextlib
import errno
import fcntl
import os
import random
import struct
from collections.abc import Iterator
from typing import Final

from bus.byte_pipe import encode_piece
from bus.native import RingError, RingFull
from bus.packets import PacketType
from partitions.guests.hostile.doors import Door
from partitions.guests.hostile.scene import Scene
from partitions.guests.hostile.tally import Tally
from partitions.guests.neighbour import FORGED
from partitions.net.adapter import NetAdapter
from partitions.net.address import address_of
from partitions.storage.protocol import (
    COMPLETION_REQUESTED,
    Direction,
    MalformedPacket,
    Operation,
    Packet,
    ScsiRequest,
    SrbStatus,
)

_BATCH: Final = 16
_ANSWER_NS: Final = 50_000_000
_DRAIN_NS: Final = 5_000_000
_PAGE: Final = 4096
_NEVER_GIVEN: Final = (0, 1, 0xFFF, 0xFFFF, 0x10_0000, 0xE_E000, 2**31, 2**40, 2**52 - 1, 2**52, 2**64 - 1)
_EXECUTE_SRB: Final = 3
_READ_10, _WRITE_10 = 0x28, 0x2A
_RNDIS: Final = struct.Struct("<IIII")  # type, channel, section, bytes
_SEND_RNDIS_PACKET: Final = 107
_NO_SECTION: Final = 0xFFFF_FFFF
_FULL: Final = 2**64 - 2  # the most that an eventfd holds


def _scsi(cdb: bytes, direction: Direction, transfer_bytes: int, **more: int) -> bytes:
    body = ScsiRequest(
        cdb_length=len(cdb), cdb_or_sense=cdb, direction=direction, transfer_bytes=transfer_bytes, **more
    ).build()
    return Packet(Operation.EXECUTE_SRB, COMPLETION_REQUESTED, 0, body).build()


def harmless(door: Door, rng: random.Random) -> bytes:
    """A request as an honest guest's, which changes nothing that is anybody else's."""
    match door.kind:
        case "disk":
            return _scsi(bytes(6), Direction.NONE, 0)  # TEST UNIT READY
        case "net":
            return _RNDIS.pack(_SEND_RNDIS_PACKET, 1, 0, 16).ljust(40, b"\0")
        case "serial":
            return encode_piece(rng.randbytes(80))
        case _:
            return bytes(8) + rng.randbytes(56)


def _take_answers(scene: Scene, tally: Tally, door: Door, timeout_ns: int = _ANSWER_NS) -> int:
    """How many came. RingError: the channel is gone."""
    packets = door.channel.receive_batch(4 * _BATCH, timeout_ns)
    door.channel.release()
    return len(packets)


def ready_door(scene: Scene, tally: Tally) -> Door | None:
    door = scene.kept_door()
    if door is None:
        tally.came_of_it("not offered again")
    else:
        _drain(door)  # of what an attack before left unread
    return door


def duplicate_ids(scene: Scene, tally: Tally) -> None:
    if (door := ready_door(scene, tally)) is None:
        return
    identity = 7
    while scene.goes_on():
        sent = 0
        try:
            for _ in range(_BATCH):
                door.channel.send(harmless(door, scene.rng), identity, door.kind != "serial")
                sent += 1
        except RingFull:
            pass
        except RingError:
            tally.made += sent
            tally.came_of_it("channel taken away")
            return
        tally.made += sent
        if sent > 1:
            tally.evidence = f"{sent} packets with id {identity} in the ring at once"
        try:
            answered = _take_answers(scene, tally, door)
        except RingError:
            tally.came_of_it("channel taken away")
            return
        tally.came_of_it("answered" if answered else "no answer")


def foreign_pages(scene: Scene, tally: Tally) -> None:
    """What it reads there would be somebody's; what it wrote there would be, too."""
    if (door := ready_door(scene, tally)) is None:
        return
    own = range(door.opened.slot.gpfn, door.opened.slot.gpfn + door.opened.slot.pages)
    edge = (own.start - 1, own.stop, own.stop + 1, own.stop + 4096)
    while scene.goes_on():
        pfn = scene.rng.choice((*_NEVER_GIVEN, *edge))
        if pfn in own:
            continue
        number = door.take_id()
        try:
            door.channel.send_gpa_direct(
                _request_in_pages(door, scene.rng), 0, _PAGE, struct.pack("<Q", pfn), number
            )
            tally.made += 1
            packets = door.channel.receive_batch(4, _ANSWER_NS)
            door.channel.release()
        except RingFull:
            tally.came_of_it("no answer")
            _drain(door)
            continue
        except RingError:
            tally.came_of_it("channel taken away")
            return
        answers = [
            (flags, payload)
            for kind, flags, identity, _, payload in packets
            if kind == PacketType.COMPLETION and identity == number
        ]
        if not answers:
            tally.came_of_it("no answer")
        elif _succeeded(door, *answers[0]):
            tally.breach(f"a request in page {pfn:#x}, which is not its own, was carried out")
        else:
            tally.evidence = f"page {pfn:#x}: refused"
            tally.came_of_it("refused")


def _request_in_pages(door: Door, rng: random.Random) -> bytes:
    match door.kind:
        case "disk":
            write = (
                rng.random() < 0.5
            )  # to the neighbour's own blocks: a page that is not there must not get there
            cdb = struct.pack(">BBIBHB", _WRITE_10 if write else _READ_10, 0, rng.randrange(64) * 8, 0, 8, 0)
            return _scsi(cdb, Direction.WRITE if write else Direction.READ, _PAGE)
        case "net":
            return _RNDIS.pack(_SEND_RNDIS_PACKET, 0, _NO_SECTION, 0).ljust(40, b"\0")
        case _:
            return b""


def _succeeded(door: Door, flags: int, payload: bytes) -> bool:
    match door.kind:
        case "disk":
            try:
                packet = Packet.parse(payload)
                status = ScsiRequest.parse(packet.body).srb_status & 0x3F
            except MalformedPacket:
                return False
            return packet.status == 0 and status == SrbStatus.SUCCESS
        case "net":
            return payload[4:8] == b"\1\0\0\0"
        case _:
            return flags >> 11 == 0


def impossible_requests(scene: Scene, tally: Tally) -> None:
    if (door := ready_door(scene, tally)) is None:
        return
    pfns = struct.pack("<Q", door.opened.data_gpfn)
    rng = scene.rng
    while scene.goes_on():
        far = rng.choice((2**32 - 1, 2**31, 1 << 24))
        read = struct.pack(">BBIBHB", _READ_10, 0, far, 0, 8, 0)
        near = struct.pack(">BBIBHB", _READ_10, 0, 0, 0, 8, 0)
        payload, is_possible = rng.choice(
            (
                (_scsi(read, Direction.READ, _PAGE), False),
                (_scsi(struct.pack(">BBIBHB", _WRITE_10, 0, far, 0, 8, 0), Direction.WRITE, _PAGE), False),
                (_scsi(near, Direction.READ, 2**32 - 1), False),
                (_scsi(near, Direction.WRITE, _PAGE), False),
                (_scsi(near, Direction.READ, _PAGE, lun=7, target=3), False),
                (_scsi(bytes([rng.randrange(0xC0, 0x100)]) + bytes(9), Direction.NONE, 0), False),
                (_scsi(struct.pack(">BBIBHB", _READ_10, 0, 0, 0, 0xFFFF, 0), Direction.READ, _PAGE), False),
            )
        )
        number = door.take_id()
        try:
            door.channel.send_gpa_direct(payload, 0, _PAGE, pfns, number)
            tally.made += 1
            packets = door.channel.receive_batch(4, _ANSWER_NS)
            door.channel.release()
        except RingFull:
            _drain(door)
            continue
        except RingError:
            tally.came_of_it("channel taken away")
            return
        answers = [one for one in packets if one[2] == number]
        if not answers:
            tally.came_of_it("no answer")
        elif _succeeded(door, answers[0][1], answers[0][4]) and not is_possible:
            tally.breach(f"carried out: {payload[12:40].hex()}")
        else:
            tally.evidence = f"refused: {payload[36:46].hex()}"
            tally.came_of_it("refused")


def false_lengths(scene: Scene, tally: Tally) -> None:
    """RNDIS messages that are longer than their section, frames outside of their message, sections of nobody."""
    if (door := ready_door(scene, tally)) is None:
        return
    assert door.nic is not None
    rng, send = scene.rng, door.opened.data[len(door.opened.data) // 2 :]
    while scene.goes_on():
        message = struct.pack(
            "<IIII28x",
            1,
            rng.choice((0, 44, 0xFFFF_FFFF, 60)),
            rng.choice((36, 0xFFFF_FFF0, 1 << 20)),
            rng.choice((1, 13, 0xFFFF_FFFF, 70_000)),
        )
        send[: len(message)] = message
        section, size = rng.choice(((0, 44), (0, 0xFFFF_FFFF), (70_000, 44), (2**31, 64), (0, 3)))
        payload = _RNDIS.pack(_SEND_RNDIS_PACKET, rng.choice((0, 0, 1, 9)), section, size)
        if rng.random() < 0.2:  # another partition's buffer, or nobody's
            payload = struct.pack("<IIH", rng.choice((101, 104)), rng.randrange(1 << 20), 0xCAFE)
        number = door.take_id()
        try:
            door.channel.send(payload.ljust(40, b"\0"), number, True)
            tally.made += 1
            packets = door.channel.receive_batch(16, _ANSWER_NS)
            door.channel.release()
        except RingFull:
            _drain(door)
            continue
        except RingError:
            tally.came_of_it("channel taken away")
            return
        answers = [one for one in packets if one[2] == number and one[0] == PacketType.COMPLETION]
        if answers and payload[:4] == b"\x6b\0\0\0" and _succeeded(door, answers[0][1], answers[0][4]):
            # a control message is only said to have arrived, and a section may hold none at all
            if payload[4:8] == bytes(4):
                tally.breach(f"frames were taken from {payload.hex()}, {message[:16].hex()}")
                continue
            tally.came_of_it("refused")
        else:
            tally.evidence = f"refused: {payload[:16].hex()}"
            tally.came_of_it("refused" if answers else "no answer")


def frames_in_others_names(scene: Scene, tally: Tally) -> None:
    with adapter(scene, tally) as nic:
        if nic is None:
            return
        own, others = nic.mac, scene.args["neighbours"]
        while scene.goes_on():
            source = address_of(str(scene.args["device"]), scene.rng.choice(others))
            frames = [b"\xff" * 6 + source + b"\x88\xb5" + FORGED * 8] * _BATCH
            tally.met("taken", nic.send(frames, 0.05))
            tally.evidence = f"{_BATCH} frames from {source.hex(':')}, and it is {own.hex(':')}"
            nic.receive(64, 0)


@contextlib.contextmanager
def adapter(scene: Scene, tally: Tally) -> Iterator[NetAdapter | None]:
    """As an honest guest has it: behind rings, or behind a server that is called."""
    name = str(scene.args["device"])
    if scene.partition.devices[name].get("messages"):
        with scene.partition.open_net(name) as nic:
            scene.begin_now()
            yield nic
    else:
        door = ready_door(scene, tally)
        yield None if door is None else door.nic


def unread_answers(scene: Scene, tally: Tally) -> None:
    with scene.fresh_door() as door:
        if door is None:
            tally.came_of_it("not offered again")
            return
        try:
            while scene.goes_on():
                try:
                    door.channel.send(harmless(door, scene.rng), door.take_id(), door.kind != "serial")
                    tally.made += 1
                except RingFull:
                    tally.evidence = f"{tally.made} requests, no answer read: no room for more"
                    tally.came_of_it("full")
                    scene.sleep_out()
                    return
        except RingError:
            tally.came_of_it("channel taken away")
            return
        tally.came_of_it("no room is left")


def doorbell_storm(scene: Scene, tally: Tally) -> None:
    if (door := ready_door(scene, tally)) is None:
        return
    count = 0
    try:
        while scene.goes_on():
            for _ in range(256):
                door.channel.kick()
            count += 256
    except RingError:
        tally.came_of_it("channel taken away")
    tally.met("rung", count)
    tally.evidence = f"{count} rings in a window"


def stuffed_doorbell(scene: Scene, tally: Tally) -> None:
    """Who shares an eventfd shares its flags: a write to a full one, made to block, would sleep."""
    with scene.fresh_door() as door:
        if door is None:
            tally.came_of_it("not offered again")
            return
        inbound = door.opened.fds[0]
        flags = fcntl.fcntl(inbound, fcntl.F_GETFL)
        fcntl.fcntl(inbound, fcntl.F_SETFL, flags | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(inbound)
        os.eventfd_write(inbound, _FULL)
        try:
            os.eventfd_write(inbound, 1)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
            tally.made += 1
        fcntl.fcntl(inbound, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
        if not fcntl.fcntl(inbound, fcntl.F_GETFL) & os.O_NONBLOCK:
            tally.evidence = "the doorbell is full, and blocks whoever rings it"
        try:
            for _ in range(_BATCH):
                door.put(door.incoming + 8, 0)  # the mask: it wants to be rung
                door.channel.send(harmless(door, scene.rng), door.take_id(), door.kind != "serial")
            tally.came_of_it("filled")
        except RingError:
            tally.came_of_it("channel taken away")
        scene.sleep_out()


def garbage_packets(scene: Scene, tally: Tally) -> None:
    with scene.fresh_door() as door:
        if door is None:
            tally.came_of_it("not offered again")
            return
        rng = scene.rng
        while scene.goes_on():
            kind = rng.choice((0, 1, 2, 3, 4, 6, 6, 6, 7, 8, 9, 9, 11, 0xFFFF))
            extra = rng.randbytes(8 * rng.choice((0, 0, 1, 2, 5)))
            body = rng.randbytes(rng.choice((0, 8, 16, 48, 64, 200)))
            if door.kind == "disk" and body[:4] == struct.pack("<I", _EXECUTE_SRB):
                continue  # that one could be a write
            try:
                door.channel.send_raw(kind, rng.choice((0, 1, 0xFFFF)), extra, body, door.take_id())
                tally.made += 1
                tally.evidence = f"{tally.made} packets, the last one of type {kind}"
                if tally.made % _BATCH == 0:
                    answered = _take_answers(scene, tally, door, 1_000_000)
                    tally.came_of_it("answered" if answered else "no answer")
            except RingFull:
                _drain(door)
            except RingError:
                tally.came_of_it(door.fate(0))
                return
            except ValueError:  # it would not go into the ring
                continue


def _drain(door: Door) -> None:
    with contextlib.suppress(RingError):
        while door.channel.receive_batch(64, _DRAIN_NS):
            door.channel.release()
