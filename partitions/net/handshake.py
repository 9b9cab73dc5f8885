"""The client's side of a network channel's set-up: what to say, in which order, and what to make of the answers.

A generator without I/O: it yields what to send, is sent the answer's bytes, and returns the adapter's description. The
order is Linux's: INIT, newest version first; NDIS_CONFIG, NDIS_VERSION; the buffers; then RNDIS inside of them.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Final, TypeVar

from partitions.net import nvsp, rndis
from partitions.net.errors import NetProtocolError
from partitions.net.frames import ADDRESS_BYTES, ETHERNET_HEADER_BYTES, MTU_MAX
from partitions.net.nvsp import Version
from partitions.net.rndis import ALIGN_BYTES, PACKET_HEADER_BYTES, Oid, PacketFilter

OFFERED_VERSIONS: Final = (Version.V61, Version.V6, Version.V5, Version.V4, Version.V2, Version.V1)
PIECE_BYTES_MIN: Final = 68  # as Linux: of the receive buffer
_NEW_NDIS: Final = (6, 30)
_OLD_NDIS: Final = (6, 1)
USUAL_FILTER: Final = PacketFilter.DIRECTED | PacketFilter.ALL_MULTICAST | PacketFilter.BROADCAST
PACKETS_MAX: Final = 256  # in one section, whatever the server allows

MessageT = TypeVar("MessageT", nvsp.InitComplete, nvsp.ReceiveBufferComplete, nvsp.SendBufferComplete)
ControlT = TypeVar("ControlT", rndis.InitializeComplete, rndis.QueryComplete, rndis.SetComplete)


@dataclass(frozen=True, slots=True)
class Lent:
    """A buffer of ours, handed over."""

    gpadl: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Say:
    """An NVSP message, as long as its version has them; where it is `answered`, the answer's payload comes back."""

    payload: bytes
    answered: bool


@dataclass(frozen=True, slots=True)
class Begin:
    """From here on the receive buffer may be used, and the send buffer is cut so."""

    message_bytes: int
    section_bytes: int
    sections: int


@dataclass(frozen=True, slots=True)
class Control:
    """An RNDIS message; what comes back is the answer with its request id, whole."""

    data: bytes
    request_id: int


@dataclass(frozen=True, slots=True)
class AdapterDescription:
    """What the set-up found out."""

    version: Version
    mac: bytes
    mtu: int
    link_up: bool
    section_bytes: int
    sections: int
    packets_max: int  # of one section
    frame_bytes_max: int


Ask = Say | Begin | Control
Steps = Generator[Ask, bytes, AdapterDescription]


def set_up(receive: Lent, send: Lent, mtu: int = MTU_MAX, *, promiscuous: bool = False) -> Steps:
    """Raises NetProtocolError, whatever the answers are. `mtu`: the most that is wanted."""
    version = yield from _agree_on_version()
    size = version.message_bytes
    if version >= Version.V2:
        yield Say(nvsp.NdisConfig(mtu + ETHERNET_HEADER_BYTES, nvsp.Capability.VLAN).encode(size), False)
    ndis = _OLD_NDIS if version <= Version.V4 else _NEW_NDIS
    yield Say(nvsp.NdisVersion(*ndis).encode(size), False)
    lend = nvsp.SendReceiveBuffer(receive.gpadl, nvsp.RECEIVE_BUFFER_ID).encode(size)
    _check_pieces(_message(nvsp.ReceiveBufferComplete, (yield Say(lend, True))), receive)
    lend = nvsp.SendSendBuffer(send.gpadl, nvsp.SEND_BUFFER_ID).encode(size)
    sections = _message(nvsp.SendBufferComplete, (yield Say(lend, True)))
    section_bytes = sections.section_bytes // ALIGN_BYTES * ALIGN_BYTES
    least = PACKET_HEADER_BYTES + ETHERNET_HEADER_BYTES
    if sections.status != nvsp.Status.SUCCESS or not least <= section_bytes <= send.size_bytes:
        raise NetProtocolError(
            f"the send buffer: status {sections.status}, sections of {section_bytes} bytes"
        )
    count = send.size_bytes // sections.section_bytes
    yield Begin(size, sections.section_bytes, count)

    initialized = _control(rndis.InitializeComplete, (yield Control(rndis.Initialize(1).encode(), 1)))
    if initialized.status != rndis.Status.SUCCESS:
        raise NetProtocolError(f"RNDIS was not initialized: status {initialized.status:#x}")
    mac = yield from _query(2, Oid.PERMANENT_ADDRESS, ADDRESS_BYTES)
    found_mtu = int.from_bytes((yield from _query(3, Oid.MAXIMUM_FRAME_SIZE, 4)), "little")
    link = int.from_bytes((yield from _query(4, Oid.MEDIA_CONNECT_STATUS, 4)), "little")
    wanted = PacketFilter.PROMISCUOUS if promiscuous else USUAL_FILTER
    setting = rndis.Set(5, Oid.CURRENT_PACKET_FILTER, int(wanted).to_bytes(4, "little"))
    done = _control(rndis.SetComplete, (yield Control(setting.encode(), 5)))
    if done.status != rndis.Status.SUCCESS:
        raise NetProtocolError(f"the packet filter was refused: status {done.status:#x}")
    room = section_bytes - PACKET_HEADER_BYTES
    return AdapterDescription(
        version=version,
        mac=mac,
        mtu=min(found_mtu, room - ETHERNET_HEADER_BYTES),
        link_up=link == 0,
        section_bytes=section_bytes,
        sections=count,
        packets_max=max(min(initialized.packets_max, PACKETS_MAX), 1),
        frame_bytes_max=min(found_mtu + ETHERNET_HEADER_BYTES, room),
    )


def _agree_on_version() -> Generator[Ask, bytes, Version]:
    for version in OFFERED_VERSIONS:
        answer = yield Say(nvsp.Init(version, version).encode(version.message_bytes), True)
        if _message(nvsp.InitComplete, answer).status == nvsp.Status.SUCCESS:
            return version
    raise NetProtocolError(f"the server knows none of {[hex(version) for version in OFFERED_VERSIONS]}")


def _check_pieces(answer: nvsp.ReceiveBufferComplete, receive: Lent) -> None:
    """The server writes into them, and what it says of that later is held against the buffer alone."""
    end = answer.offset + answer.piece_bytes * answer.pieces
    if answer.status != nvsp.Status.SUCCESS or answer.sections != 1:
        raise NetProtocolError(f"the receive buffer: status {answer.status}, {answer.sections} sections")
    if answer.piece_bytes < PIECE_BYTES_MIN or not answer.pieces or end > receive.size_bytes:
        found = f"{answer.pieces} pieces of {answer.piece_bytes} bytes at {answer.offset}"
        raise NetProtocolError(f"the receive buffer of {receive.size_bytes} bytes is cut into {found}")


def _query(request_id: int, oid: Oid, size: int) -> Generator[Ask, bytes, bytes]:
    data = yield Control(rndis.Query(request_id, oid).encode(), request_id)
    answer = _control(rndis.QueryComplete, data)
    if answer.status != rndis.Status.SUCCESS or len(answer.info) != size:
        raise NetProtocolError(f"{oid.name}: status {answer.status:#x}, {len(answer.info)} bytes")
    return answer.info


def _message(kind: type[MessageT], payload: bytes) -> MessageT:
    try:
        message = nvsp.decode_message(payload, nvsp.SERVER_MESSAGES)
    except nvsp.MalformedNvsp as error:
        raise NetProtocolError(str(error)) from error
    if not isinstance(message, kind):
        raise NetProtocolError(f"{message.TYPE.name} where {kind.TYPE.name} was due")
    return message


def _control(kind: type[ControlT], data: bytes) -> ControlT:
    try:
        message = rndis.decode_message(data, rndis.SERVER_MESSAGES)
    except rndis.MalformedRndis as error:
        raise NetProtocolError(str(error)) from error
    if not isinstance(message, kind):
        raise NetProtocolError(f"{message.TYPE.name} where {kind.TYPE.name} was due")
    return message
