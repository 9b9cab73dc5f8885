"""How far a guest has come with its network channel, as the server sees it: messages in, answers out. No I/O.

    NEW --INIT--> AGREED --SEND_RECEIVE_BUFFER, SEND_SEND_BUFFER--> BUFFERED --RNDIS INITIALIZE--> READY
                    `<-- INIT again, REVOKE_... ----------------------'  `<-- HALT ------------------'

Frames go to a READY guest whose packet filter is not 0. Saying a thing twice is no mistake: a successor of the server
may have to hear again what was answered before. An illegal message raises, and changes nothing.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final, Self

from partitions.net import nvsp, offloads, rndis
from partitions.net.frames import ETHERNET_HEADER_BYTES, MTU_MAX, MTU_MIN, packet_bytes
from partitions.net.nvsp import MalformedNvsp, Version
from partitions.net.rndis import Oid

VLAN_TAG_BYTES: Final = 4
PIECE_OVERHEAD_BYTES: Final = 256 + 36  # of the receive buffer, beside the MTU; as Hyper-V has it
SECTION_BYTES_MIN: Final = 6144  # of the send buffer; as Hyper-V has it
DEFAULT_FRAME_BYTES_MAX: Final = 1514  # where a guest's NDIS_CONFIG makes no sense
PACKETS_MAX: Final = 64  # in one section
RESERVED_PIECES: Final = 2  # of the receive buffer: what a successor says first stands there
PIECES_MIN: Final = RESERVED_PIECES + 2
PIECES_MAX: Final = 65_536
LINK_SPEED_100BIT_S: Final = 100_000_000  # 10 Gbit/s: what is announced, not what is reached
ONES: Final = 0xFFFF_FFFF
_RECORD: Final = struct.Struct("<BBHIIHI")
RECORD_AT: Final = 40  # in a channel's record, behind what the ring and the opening have there
RECORD_BYTES: Final = _RECORD.size
_VERSIONS: Final = tuple(Version)

assert RECORD_AT + RECORD_BYTES <= 60


class Phase(IntEnum):
    """The numbers stand in records."""

    NEW = 0
    AGREED = 1
    READY = 2  # RNDIS is initialized; while it is not, AGREED


@dataclass(frozen=True, slots=True)
class Adapter:
    """What the guest is told of its adapter."""

    mac: bytes
    mtu: int  # the most that there can be; a guest may want less
    link_up: bool = True


@dataclass(frozen=True, slots=True)
class BufferShape:
    """A buffer that the guest lent, cut into pieces of one size."""

    gpadl: int
    piece_bytes: int
    pieces: int


BufferBytes = Callable[[int], int]  # of a GPADL, by its handle. LookupError: the guest has lent no such thing


@dataclass(slots=True)
class ServerSession:
    """One opening of one channel."""

    adapter: Adapter
    phase: Phase = Phase.NEW
    version: Version | None = None
    mtu: int = DEFAULT_FRAME_BYTES_MAX - ETHERNET_HEADER_BYTES
    receive: BufferShape | None = None
    send: BufferShape | None = None
    packet_filter: int = 0
    generation: int = 0  # of the ids of packets that carry frames to the guest

    @property
    def message_bytes(self) -> int:
        return nvsp.MESSAGE_BYTES if self.version is None else self.version.message_bytes

    @property
    def frame_bytes_max(self) -> int:
        return self.mtu + ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES

    @property
    def takes_frames(self) -> bool:
        return self.phase is Phase.READY and self.receive is not None and self.packet_filter != 0

    # -- NVSP

    def hear(self, message: nvsp.Message, buffer_bytes: BufferBytes) -> nvsp.Message | None:
        """The answer, where the message has one. MalformedNvsp: not now, or not so."""
        match message:
            case nvsp.Init():
                return self._init(message)
            case _ if self.version is None:
                raise MalformedNvsp(f"{message.TYPE.name} before INIT")
            case nvsp.NdisConfig(frame_bytes_max):
                self._configure(frame_bytes_max)
            case nvsp.NdisVersion():
                pass  # nothing of ours depends on it
            case nvsp.SendReceiveBuffer(gpadl, buffer_id):
                return self._lend_receive_buffer(gpadl, buffer_id, buffer_bytes)
            case nvsp.SendSendBuffer(gpadl, buffer_id):
                return self._lend_send_buffer(gpadl, buffer_id, buffer_bytes)
            case nvsp.RevokeReceiveBuffer(buffer_id):
                if buffer_id != nvsp.RECEIVE_BUFFER_ID:
                    raise MalformedNvsp(f"receive buffer {buffer_id:#x}")
                self.receive, self.phase, self.packet_filter = None, Phase.AGREED, 0
            case nvsp.RevokeSendBuffer(buffer_id):
                if buffer_id != nvsp.SEND_BUFFER_ID:
                    raise MalformedNvsp(f"send buffer {buffer_id:#x}")
                self.send = None
            case nvsp.SwitchDataPath(active):
                if active:
                    raise MalformedNvsp("there is no virtual function")
            case nvsp.Subchannel():
                return nvsp.Subchannel(nvsp.Status.FAILURE, 0)
            case _:
                raise MalformedNvsp(f"{message.TYPE.name} is not for here")
        return None

    def _init(self, message: nvsp.Init) -> nvsp.Message:
        known = [version for version in _VERSIONS if version == message.version == message.same_version]
        if not known:
            return nvsp.InitComplete(ONES, nvsp.MDL_CHAIN_MAX, nvsp.Status.NONE)
        self.phase, self.version = Phase.AGREED, known[0]
        self.receive = self.send = None
        self.packet_filter = 0
        self.mtu = min(self.adapter.mtu, DEFAULT_FRAME_BYTES_MAX - ETHERNET_HEADER_BYTES)
        deprecated = int(Version.V1) if known[0] is Version.V1 else ONES
        return nvsp.InitComplete(deprecated, nvsp.MDL_CHAIN_MAX, nvsp.Status.SUCCESS)

    def _configure(self, frame_bytes_max: int) -> None:
        assert self.version is not None
        if self.version < Version.V2:
            raise MalformedNvsp("NDIS_CONFIG before version 3.2")
        if not MTU_MIN + ETHERNET_HEADER_BYTES <= frame_bytes_max <= MTU_MAX + ETHERNET_HEADER_BYTES:
            frame_bytes_max = DEFAULT_FRAME_BYTES_MAX
        mtu = min(frame_bytes_max - ETHERNET_HEADER_BYTES, self.adapter.mtu)
        if (self.receive or self.send) and mtu != self.mtu:
            raise MalformedNvsp("another MTU, and the buffers are cut already")
        self.mtu = mtu

    def _lend_receive_buffer(self, gpadl: int, buffer_id: int, buffer_bytes: BufferBytes) -> nvsp.Message:
        shape = self._receive_shape(gpadl, buffer_bytes)
        if buffer_id != nvsp.RECEIVE_BUFFER_ID or shape is None or self.receive not in (None, shape):
            return nvsp.ReceiveBufferComplete(nvsp.Status.FAILURE, 0, 0, 0, 0, 0)
        if self.receive is None:
            self.receive = shape
            self.generation = (self.generation + 1) & 0xFFFF
        end = shape.piece_bytes * shape.pieces
        return nvsp.ReceiveBufferComplete(nvsp.Status.SUCCESS, 1, 0, shape.piece_bytes, shape.pieces, end)

    def _lend_send_buffer(self, gpadl: int, buffer_id: int, buffer_bytes: BufferBytes) -> nvsp.Message:
        shape = self._send_shape(gpadl, buffer_bytes)
        if buffer_id != nvsp.SEND_BUFFER_ID or shape is None or self.send not in (None, shape):
            return nvsp.SendBufferComplete(nvsp.Status.FAILURE, 0)
        self.send = shape
        return nvsp.SendBufferComplete(nvsp.Status.SUCCESS, shape.piece_bytes)

    def _receive_shape(self, gpadl: int, buffer_bytes: BufferBytes) -> BufferShape | None:
        piece_bytes = -(-(self.mtu + PIECE_OVERHEAD_BYTES) // 8) * 8
        try:
            pieces = min(buffer_bytes(gpadl) // piece_bytes, PIECES_MAX)
        except LookupError:
            return None
        return BufferShape(gpadl, piece_bytes, pieces) if pieces >= PIECES_MIN else None

    def _send_shape(self, gpadl: int, buffer_bytes: BufferBytes) -> BufferShape | None:
        section_bytes = max(SECTION_BYTES_MIN, packet_bytes(self.frame_bytes_max))
        try:
            sections = buffer_bytes(gpadl) // section_bytes
        except LookupError:
            return None
        return BufferShape(gpadl, section_bytes, sections) if sections else None

    # -- RNDIS

    def control(self, message: rndis.Message) -> rndis.Message | None:
        """The answer, where the message has one."""
        match message:
            case rndis.Initialize(request_id, major, minor):
                return self._initialize(request_id, major, minor)
            case rndis.Halt():
                if self.phase is Phase.READY:
                    self.phase, self.packet_filter = Phase.AGREED, 0
                return None
            case rndis.Query(request_id, oid):
                info = self._query(oid) if self.phase is Phase.READY else None
                status = rndis.Status.NOT_SUPPORTED if info is None else rndis.Status.SUCCESS
                return rndis.QueryComplete(request_id, status, info or b"")
            case rndis.Set(request_id, oid, info):
                return rndis.SetComplete(request_id, self._set(oid, info))
            case rndis.KeepAlive(request_id):
                return rndis.KeepAliveComplete(request_id, rndis.Status.SUCCESS)
        raise rndis.MalformedRndis(f"{message.TYPE.name} is not for here")

    def _initialize(self, request_id: int, major: int, minor: int) -> rndis.Message:
        fits = self.receive is not None and (major, minor) == (rndis.MAJOR, rndis.MINOR)
        if fits:
            self.phase = Phase.READY
        most = self.send.piece_bytes if self.send is not None else packet_bytes(self.frame_bytes_max)
        return rndis.InitializeComplete(
            request_id,
            rndis.Status.SUCCESS if fits else rndis.Status.FAILURE,
            rndis.MAJOR,
            rndis.MINOR,
            1,
            0,
            PACKETS_MAX,
            most,
            rndis.ALIGN_SHIFT,
        )

    def _query(self, oid: int) -> bytes | None:
        match oid:
            case Oid.MAXIMUM_FRAME_SIZE:
                return self.mtu.to_bytes(4, "little")
            case Oid.PERMANENT_ADDRESS | Oid.CURRENT_ADDRESS:
                return self.adapter.mac
            case Oid.MEDIA_CONNECT_STATUS:
                return (not self.adapter.link_up).to_bytes(4, "little")
            case Oid.LINK_SPEED:
                return LINK_SPEED_100BIT_S.to_bytes(4, "little")
            case Oid.CURRENT_PACKET_FILTER:
                return self.packet_filter.to_bytes(4, "little")
            case Oid.TCP_OFFLOAD_HARDWARE_CAPABILITIES:
                return offloads.CAPABILITIES
        return None

    def _set(self, oid: int, info: bytes) -> rndis.Status:
        if self.phase is not Phase.READY:
            return rndis.Status.FAILURE
        if oid == Oid.TCP_OFFLOAD_PARAMETERS:
            return offloads.switched(info)
        if oid != Oid.CURRENT_PACKET_FILTER:
            return rndis.Status.NOT_SUPPORTED
        if len(info) != 4:
            return rndis.Status.INVALID_LENGTH
        self.packet_filter = int.from_bytes(info, "little")
        return rndis.Status.SUCCESS

    def link(self, *, up: bool) -> rndis.IndicateStatus:
        """It has changed: what the guest is to be told."""
        self.adapter = replace(self.adapter, link_up=up)
        return self.link_status()

    def link_status(self) -> rndis.IndicateStatus:
        up = self.adapter.link_up
        return rndis.IndicateStatus(rndis.Status.MEDIA_CONNECT if up else rndis.Status.MEDIA_DISCONNECT)

    # -- for a successor

    def save(self, record: memoryview) -> None:
        """Before the answer is given."""
        version = 0 if self.version is None else 1 + _VERSIONS.index(self.version)
        receive = 0 if self.receive is None else self.receive.gpadl
        send = 0 if self.send is None else self.send.gpadl
        fields = (self.phase, version, self.generation, receive, send, self.mtu, self.packet_filter)
        record[RECORD_AT : RECORD_AT + RECORD_BYTES] = _RECORD.pack(*fields)

    @classmethod
    def load(cls, adapter: Adapter, record: memoryview, buffer_bytes: BufferBytes) -> Self:
        """As a predecessor saved it; of what is nonsense, or of buffers that are gone, nothing is left."""
        fields = _RECORD.unpack_from(record, RECORD_AT)
        phase, version, generation, receive, send, mtu, packet_filter = fields
        session = cls(adapter, generation=generation)
        if not 0 < version <= len(_VERSIONS) or not 0 < phase <= max(Phase) or mtu > MTU_MAX:
            return session
        session.phase, session.version = Phase(phase), _VERSIONS[version - 1]
        session.mtu, session.packet_filter = mtu, packet_filter
        session.receive = session._receive_shape(receive, buffer_bytes) if receive else None
        session.send = session._send_shape(send, buffer_bytes) if send else None
        if session.receive is None:
            session.phase, session.packet_filter = min(session.phase, Phase.AGREED), 0
        return session
