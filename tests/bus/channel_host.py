"""The host's end of a connection alone, with some offers: what it decides, and what was decided so far."""

from uuid import UUID

from bus import channel_actions as actions
from bus import channel_messages as messages
from bus.channel_actions import Action, OfferParameters, SendMessage
from bus.channel_message_codec import (
    ChannelMessage,
    FeatureFlags,
    Side,
    Version,
    decode_message,
)
from bus.channel_messages import (
    InitiateContact,
    VersionResponse,
)
from bus.channel_server import ChannelServer
from bus.gpadl import gpadl_messages
from bus.guids import NETWORK, SCSI
from bus.memory import PAGE_BYTES
from bus.packets import GpaRange
from bus.protocol_errors import RemoteProtocolError

DISK = OfferParameters(interface=SCSI, instance=UUID(int=1))
NIC = OfferParameters(interface=NETWORK, instance=UUID(int=2))
NIC_SUB = OfferParameters(interface=NETWORK, instance=UUID(int=2), sub_channel_index=1)
RINGS = (GpaRange.contiguous(0x100, 8 * PAGE_BYTES),)
RING = 0xE1E10


class Host:
    """A server and what it sent, decoded. Actions other than messages are returned as they are."""

    def __init__(self, version: Version = Version.V5_3, **settings: int) -> None:
        self.server = ChannelServer(vp_count=settings.get("vp_count", 2))
        self.version, self.features = version, FeatureFlags(settings.get("features", 0))

    def heard(self, done: list[Action]) -> list[Action | ChannelMessage]:
        return [
            decode_message(one.payload, Side.HOST, self.version, self.features)
            if isinstance(one, SendMessage)
            else one
            for one in done
        ]

    def receive(self, message: ChannelMessage) -> list[Action | ChannelMessage]:
        return self.heard(self.server.receive(message.encode()))

    def completed(self, completion: actions.Completion) -> list[Action | ChannelMessage]:
        return self.heard(self.server.completed(completion))

    def refuses(self, message: ChannelMessage) -> bool:
        """Whether the message is the guest's fault; then nothing may have changed."""
        before = self.server.to_state()
        try:
            self.server.receive(message.encode())
        except RemoteProtocolError:
            assert self.server.to_state() == before
            return True
        return False

    def connect(self) -> None:
        contact = InitiateContact.create(self.version, 1, self.features)
        *_, made, response = self.receive(contact)
        target_vp = 1 if self.version >= Version.V3_0 else 0
        assert made == actions.ConnectionMade(self.version, self.features, target_vp)
        assert isinstance(response, VersionResponse)
        assert response.supported
        self.receive(messages.RequestOffers())

    def offer(self, parameters: OfferParameters = DISK) -> int:
        return self.server.offer(parameters)[0]

    def map(self, relid: int, gpadl: int = RING, ranges: tuple[GpaRange, ...] = RINGS) -> None:
        for message in gpadl_messages(relid, gpadl, ranges):
            done = self.receive(message)
        assert done == [actions.MapGpadl(relid, gpadl, ranges)]
        assert self.completed(actions.GpadlMapped(gpadl)) == [messages.GpadlCreated(relid, gpadl, 0)]

    def open(self, relid: int, gpadl: int = RING) -> None:
        (request,) = self.receive(messages.OpenChannel(relid, 77, gpadl, 0, 4))
        assert isinstance(request, actions.OpenChannel)
        assert self.completed(actions.ChannelOpened(relid)) == [messages.OpenChannelResult(relid, 77, 0)]


def connected(*offers: OfferParameters, version: Version = Version.V5_3) -> Host:
    host = Host(version)
    for parameters in offers:
        host.offer(parameters)
    host.connect()
    return host


def opened() -> Host:
    host = connected(DISK)
    host.map(1)
    host.open(1)
    return host
