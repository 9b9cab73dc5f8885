"""The client's side of a channel's set-up: what to ask, in which order, and what to make of the answers.

A generator without I/O: it yields what to send, is sent the reply, and returns the disk's description. The
order is Linux's: BEGIN, versions newest first, properties, END, then the disk itself.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

from partitions.storage.errors import DiskProtocolError, command_error
from partitions.storage.identity import (
    VPD_SERIAL,
    Capacity,
    parse_capacity_10,
    parse_capacity_16,
    parse_inquiry,
    parse_write_protected,
)
from partitions.storage.protocol import (
    COMPLETION_REQUESTED,
    ChannelProperties,
    Direction,
    MalformedPacket,
    NtStatus,
    Operation,
    Packet,
    ProtocolVersion,
    ScsiRequest,
    SrbFlags,
    build_command,
    build_version,
    parse_version,
)
from partitions.storage.scsi import Command, Inquiry, ModeSense, ReadCapacity, build_cdb

OFFERED_VERSIONS: Final = (ProtocolVersion.BLUE, ProtocolVersion.WIN8)
ANSWER_BYTES: Final = 192  # room for each answer of the set-up
_BLOCK_BYTES_KNOWN: Final = (512, 1024, 2048, 4096)
_FLAGS_OF: Final = {
    Direction.READ: SrbFlags.DATA_IN,
    Direction.WRITE: SrbFlags.DATA_OUT,
    Direction.NONE: SrbFlags.DISABLE_SYNCH_TRANSFER,
}


@dataclass(frozen=True, slots=True)
class Ask:
    """Send `packet`; where `data_bytes` is not 0, with pages for so much data."""

    packet: Packet
    data_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    packet: Packet
    data: bytes = b""  # a copy of the pages, all `data_bytes` of them


@dataclass(frozen=True, slots=True)
class DiskDescription:
    """What the set-up found out."""

    capacity: Capacity
    max_transfer_bytes: int
    read_only: bool
    serial: str
    version: int
    max_sub_channels: int = 0

    @property
    def can_discard(self) -> bool:
        return self.capacity.can_discard and not self.read_only

    def check_range(self, offset: int, length: int) -> None:
        """ValueError unless these are whole blocks inside the disk.

        There is no read-modify-write here: it would hide one slow operation that two clients could tear.
        """
        block, size = self.capacity.block_bytes, self.capacity.size_bytes
        if offset % block or length % block:
            raise ValueError(f"offset {offset}, length {length}: want multiples of the block, {block} bytes")
        if offset < 0 or length < 0 or offset + length > size:
            raise ValueError(f"offset {offset}, length {length}: the disk has {size} bytes")


Steps = Generator[Ask, Answer, DiskDescription]


def build_srb_packet(command: Command, direction: Direction, data_bytes: int) -> Packet:
    """EXECUTE_SRB of one command for the disk at LUN 0."""
    body = build_command(build_cdb(command), direction, data_bytes, _FLAGS_OF[direction])
    return Packet(Operation.EXECUTE_SRB, COMPLETION_REQUESTED, 0, body)


def set_up() -> Steps:
    """Raises DiskProtocolError where the server's answers are no disk, DiskCommandError where it refused."""
    yield from _expect_success(Operation.BEGIN_INITIALIZATION)
    version = yield from _agree_on_version()
    reply = yield from _expect_success(Operation.QUERY_PROPERTIES)
    properties = ChannelProperties.parse(reply.body)
    yield from _expect_success(Operation.END_INITIALIZATION)
    inquiry = parse_inquiry((yield from _query(Inquiry(ANSWER_BYTES))))
    if inquiry is None or not inquiry.present:
        raise DiskProtocolError("there is no disk at LUN 0")
    capacity = yield from _capacity()
    if properties.max_transfer_bytes < capacity.block_bytes:
        raise DiskProtocolError(f"transfers of at most {properties.max_transfer_bytes} bytes")
    protected = parse_write_protected((yield from _query(ModeSense(0x3F, ANSWER_BYTES))))
    serial = yield from _query(Inquiry(ANSWER_BYTES, VPD_SERIAL))
    return DiskDescription(
        capacity=capacity,
        max_transfer_bytes=properties.max_transfer_bytes // capacity.block_bytes * capacity.block_bytes,
        read_only=bool(protected),
        serial=serial[4 : 4 + serial[3]].decode("ascii", "replace"),
        version=version,
        max_sub_channels=properties.max_sub_channels if properties.multi_channel else 0,
    )


def _agree_on_version() -> Generator[Ask, Answer, int]:
    for version in OFFERED_VERSIONS:
        ask = Packet(Operation.QUERY_PROTOCOL_VERSION, COMPLETION_REQUESTED, 0, build_version(version))
        reply = (yield Ask(ask)).packet
        if reply.status == NtStatus.SUCCESS:
            if parse_version(reply.body) != version:
                raise DiskProtocolError(f"asked for version {version:#x}, got {parse_version(reply.body):#x}")
            return version
        if reply.status != NtStatus.REVISION_MISMATCH:
            raise DiskProtocolError(f"QUERY_PROTOCOL_VERSION: NTSTATUS {reply.status:#010x}")
    raise DiskProtocolError("no protocol version in common")


def _expect_success(operation: Operation) -> Generator[Ask, Answer, Packet]:
    reply = (yield Ask(Packet(operation, COMPLETION_REQUESTED))).packet
    if reply.status != NtStatus.SUCCESS:
        raise DiskProtocolError(f"{operation.name}: NTSTATUS {reply.status:#010x}")
    return reply


def _query(command: Command) -> Generator[Ask, Answer, bytes]:
    """Data of a command that describes the disk, as much as came, padded to ANSWER_BYTES with zeros."""
    answer = yield Ask(build_srb_packet(command, Direction.READ, ANSWER_BYTES), ANSWER_BYTES)
    try:
        srb = ScsiRequest.parse(answer.packet.body)
    except MalformedPacket as error:
        raise DiskProtocolError(str(error)) from error
    failure = command_error(answer.packet.status, srb)
    if failure is not None:
        raise failure
    return answer.data[: min(srb.transfer_bytes, ANSWER_BYTES)].ljust(ANSWER_BYTES, b"\0")


def _capacity() -> Generator[Ask, Answer, Capacity]:
    capacity = parse_capacity_16((yield from _query(ReadCapacity(ANSWER_BYTES, long=True))))
    if capacity is None or capacity.block_bytes not in _BLOCK_BYTES_KNOWN:
        capacity = parse_capacity_10((yield from _query(ReadCapacity())))
    if capacity is None or capacity.block_bytes not in _BLOCK_BYTES_KNOWN:
        raise DiskProtocolError(f"a capacity that is none: {capacity}")
    return capacity
