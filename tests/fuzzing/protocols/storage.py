"""storvsp and SCSI: packets, SRBs, CDBs, sense, the pages of requests."""

import struct
from contextlib import suppress
from typing import cast

from bus.native import Channel
from partitions.storage.disk import Disk
from partitions.storage.errors import DiskError
from partitions.storage.handshake import Answer, set_up
from partitions.storage.protocol import Direction, MalformedPacket, Operation, Packet, ScsiRequest
from partitions.storage.scsi import Command, Inquiry, ReadBlocks, ReadCapacity, WriteBlocks, build_cdb
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.targets import Side, target
from tests.partitions.storage_guest import FIRST_GPFN, SIZE, Guest, gpa_range
from tests.partitions.test_storage_client import COMPLETION, Loopback, fresh

_EXTRA_BYTES = struct.Struct("<H")


def _request(command: Command, direction: Direction, length: int) -> bytes:
    """A packet with its pages in front, as an input has it."""
    cdb = build_cdb(command)
    srb = ScsiRequest(cdb_length=len(cdb), direction=direction, transfer_bytes=length, cdb_or_sense=cdb)
    extra = gpa_range(0, length, [FIRST_GPFN, FIRST_GPFN + 1]) if length else b""
    return _EXTRA_BYTES.pack(len(extra)) + extra + Packet(Operation.EXECUTE_SRB, 1, 0, srb.build()).build()


def _guest_seeds() -> list[bytes]:
    bare = [
        _EXTRA_BYTES.pack(0) + Packet(operation, 1, 0, b"\x01\x02").build()
        for operation in (
            Operation.BEGIN_INITIALIZATION,
            Operation.QUERY_PROTOCOL_VERSION,
            Operation.QUERY_PROPERTIES,
            Operation.END_INITIALIZATION,
            Operation.RESET_LUN,
        )
    ]
    asked = [
        _request(Inquiry(96, 0x83), Direction.READ, 96),
        _request(ReadCapacity(32, long=True), Direction.READ, 32),
        _request(ReadBlocks(2, 8), Direction.READ, 4096),
        _request(WriteBlocks(2, 16), Direction.WRITE, 8192),
    ]
    return [join(asked), join(bare + asked)]


@target("storage", Side.HOST, _guest_seeds)
def host(data: bytes) -> None:
    """Whatever is asked: an answer of the request's form, and the disk is as large as it was."""
    guest = Guest()
    for piece in cut(data):
        if len(piece) < _EXTRA_BYTES.size:
            continue
        (size,) = _EXTRA_BYTES.unpack_from(piece)
        extra, payload = piece[_EXTRA_BYTES.size :][:size], piece[_EXTRA_BYTES.size + size :]
        try:
            asked = Packet.parse(payload)
        except MalformedPacket:
            with suppress(MalformedPacket):
                guest.executor.execute(extra, payload)
            continue
        answer = guest.executor.execute(extra, payload)
        assert len(answer) == asked.size_bytes
        assert Packet.parse(answer).operation == Operation.COMPLETE_IO
    assert guest.backend.size_bytes == SIZE


def _host_seeds() -> list[bytes]:
    guest = fresh(Guest())
    answers, steps = [], set_up()
    ask = next(steps)
    with suppress(StopIteration):
        while True:
            extra = gpa_range(0, ask.data_bytes, [FIRST_GPFN]) if ask.data_bytes else b""
            reply = guest.executor.execute(extra, ask.packet.build())
            data = bytes(guest.memory[: ask.data_bytes])
            answers.append(_EXTRA_BYTES.pack(len(data)) + data + reply)
            ask = steps.send(Answer(Packet.parse(reply), data))
    return [join(answers)]


@target("storage", Side.GUEST, _host_seeds)
def guest(data: bytes) -> None:
    """The set-up with every answer as it comes; then one read whose completions are the same bytes."""
    steps = set_up()
    ask = next(steps)
    pieces = list(cut(data))
    with suppress(DiskError, StopIteration):
        for piece in pieces:
            (size,) = _EXTRA_BYTES.unpack_from(piece.ljust(2, b"\0"))
            try:
                packet = Packet.parse(piece[2 + size :])
            except MalformedPacket:
                continue
            ask = steps.send(
                Answer(packet, piece[2 : 2 + size].ljust(ask.data_bytes, b"\0")[: ask.data_bytes])
            )
    loopback = Loopback(fresh(Guest()))
    disk = Disk(cast(Channel, loopback), memoryview(loopback.guest.memory), FIRST_GPFN)
    lies = [(COMPLETION, 0, int.from_bytes(piece[:1]), b"", piece[1:]) for piece in pieces]
    loopback.mangle = lambda completion: [*lies, completion]
    with suppress(DiskError):
        assert len(disk.read(0, 1024)) == 1024
    loopback.mangle = lambda completion: [completion]
    disk.write(0, b"z" * 512)
    assert disk.read(0, 512) == b"z" * 512
    assert disk.in_flight == 0
