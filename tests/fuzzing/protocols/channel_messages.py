"""VMBus channel messages: contact, offers, GPADLs, opening, streams."""

from collections.abc import Sequence
from uuid import UUID

from bus import channel_actions as actions
from bus import channel_messages as messages
from bus.channel_actions import Action, OfferParameters
from bus.channel_client import ChannelClient
from bus.channel_events import SendMessage
from bus.channel_message_codec import Version
from bus.channel_server import ChannelServer
from bus.guids import SCSI
from bus.memory import PAGE_BYTES
from bus.packets import GpaRange
from bus.protocol_errors import RemoteProtocolError
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.targets import Side, target

_RINGS = [GpaRange.contiguous(0x100, 8 * PAGE_BYTES)]
_CHANNELS = 2


def _server() -> ChannelServer:
    server = ChannelServer()
    for number in range(_CHANNELS):
        server.offer(OfferParameters(interface=SCSI, instance=UUID(int=number + 1)))
    return server


def _carry_out(server: ChannelServer, done: list[Action]) -> list[bytes]:
    """As a stack would: everything works at once. What was said to the guest."""
    said: list[bytes] = []
    todo = list(done)
    while todo:
        action = todo.pop(0)
        match action:
            case actions.SendMessage(payload):
                said.append(payload)
            case actions.MapGpadl(_, gpadl):
                todo += server.completed(actions.GpadlMapped(gpadl))
            case actions.UnmapGpadl(_, gpadl):
                todo += server.completed(actions.GpadlUnmapped(gpadl))
            case actions.OpenChannel(relid):
                todo += server.completed(actions.ChannelOpened(relid))
            case actions.CloseChannel(relid):
                todo += server.completed(actions.ChannelClosed(relid))
            case actions.ModifyChannel(relid):
                todo += server.completed(actions.ChannelModified(relid))
    return said


def _conversation() -> tuple[list[bytes], list[bytes]]:
    """Of two honest ends: what the guest said, and what the host said."""
    server, client = _server(), ChannelClient(newest=Version.V5_3)
    guest: list[bytes] = []
    host: list[bytes] = []

    def pass_on(outputs: Sequence[object]) -> None:
        for output in outputs:
            if isinstance(output, SendMessage):
                guest.append(output.payload)
                for answer in _carry_out(server, server.receive(output.payload)):
                    host.append(answer)
                    pass_on(client.receive(answer))

    pass_on(client.start())
    pass_on(client.request_offers())
    relid = client.offers[0].relid
    gpadl, out = client.create_gpadl(relid, _RINGS)
    pass_on(out)
    pass_on(client.open(relid, gpadl, 4))
    pass_on(client.close(relid))
    pass_on(client.teardown_gpadl(gpadl))
    pass_on(client.connect_stream(UUID(int=5), UUID(int=6)))
    pass_on(client.unload())
    return guest, host


def _guest_seeds() -> list[bytes]:
    return [join(_conversation()[0])]


def _host_seeds() -> list[bytes]:
    host = _conversation()[1]
    rescinds = [messages.RescindChannelOffer(relid).encode() for relid in (1, 2)]
    return [join(host), join([*host[:4], *rescinds, *host[4:]])]


@target("channel-messages", Side.HOST, _guest_seeds)
def host(data: bytes) -> None:
    server = _server()
    for message in cut(data):
        before = server.to_state()
        try:
            done = server.receive(message)
        except RemoteProtocolError:
            assert server.to_state() == before, "a refused message changed something"
            continue
        _carry_out(server, done)


@target("channel-messages", Side.GUEST, _host_seeds)
def guest(data: bytes) -> None:
    client = ChannelClient(newest=Version.V5_3)
    client.start()
    asked = False
    for message in cut(data):
        try:
            client.receive(message)
        except RemoteProtocolError:
            continue
        if client.version is not None and not asked:
            asked = True
            client.request_offers()
        for offer in client.offers:
            client.channel_state(offer.relid)
