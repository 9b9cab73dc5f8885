"""The host's end of a connection against guests that say anything."""

import random
from uuid import UUID

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import channel_actions as actions
from bus import channel_messages as messages
from bus.channel_actions import Action, OfferParameters
from bus.channel_lifecycle import ConnectionStage
from bus.channel_message_codec import (
    MAX_MESSAGE_BYTES,
    Side,
    Version,
    message_classes,
)
from bus.channel_messages import (
    STATUS_FAILURE,
    InitiateContact,
)
from bus.channel_server import ChannelServer
from bus.gpadl import gpadl_messages
from bus.guids import SCSI
from bus.memory import PAGE_BYTES
from bus.packets import GpaRange
from bus.protocol_errors import LocalProtocolError, RemoteProtocolError
from tests.bus.channel_host import opened
from tests.bus.channel_message_strategies import messages_of

# -- hostile guests


@given(st.lists(st.binary(max_size=MAX_MESSAGE_BYTES + 10), max_size=20))
def test_arbitrary_bytes_raise_the_typed_error_and_change_nothing(blobs: list[bytes]) -> None:
    host = opened()
    for blob in blobs:
        before = host.server.to_state()
        try:
            host.server.receive(blob)
        except RemoteProtocolError:
            assert host.server.to_state() == before


@pytest.mark.parametrize("seed", range(60))
def test_random_well_formed_and_mutated_messages_never_break_the_server(seed: int) -> None:
    """Small numbers, so that they meet; completions at random. Every action gets exactly one answer."""
    rng = random.Random(seed)
    server = ChannelServer(vp_count=2)
    instances = [UUID(int=number) for number in range(1, 4)]
    for instance in instances:
        server.offer(OfferParameters(interface=SCSI, instance=instance))
    waiting: list[Action] = []
    classes = [cls for cls in message_classes() if cls.sender is Side.GUEST]
    for _ in range(600):
        done: list[Action] = []
        before = server.to_state()
        try:
            match rng.random():
                case draw if draw < 0.60:
                    cls = rng.choice(classes)
                    body = b"".join(
                        rng.choice((0, 1, 1, 2, 3, 4, 16, 24)).to_bytes(4, "little") for _ in range(58)
                    )
                    data = cls.message_type.to_bytes(8, "little") + body
                    if cls is InitiateContact or cls is messages.Unload:
                        if rng.random() < 0.7:
                            continue
                        data = InitiateContact.create(rng.choice(list(Version)), 0).encode()
                    if cls is messages.GpadlHeader:
                        gpadl, pages = rng.randrange(4), rng.randrange(1, 9)
                        ranges = [GpaRange.contiguous(0, pages * PAGE_BYTES)]
                        data = gpadl_messages(rng.randrange(1, 4), gpadl, ranges)[0].encode()
                    if cls is messages.OpenChannel and rng.random() < 0.8:
                        relid, gpadl = rng.randrange(1, 4), rng.randrange(4)
                        data = messages.OpenChannel(relid, 1, gpadl, 0, rng.randrange(6)).encode()
                    if rng.random() < 0.1:
                        data = data[: rng.randrange(len(data))]
                    done = server.receive(data[:MAX_MESSAGE_BYTES])
                case draw if draw < 0.63:
                    done = server.revoke(rng.randrange(1, 5))
                case draw if draw < 0.66:
                    done = server.offer(OfferParameters(interface=SCSI, instance=rng.choice(instances)))[1]
                case draw if draw < 0.67:
                    server = ChannelServer.from_state(msgpack.unpackb(msgpack.packb(before)))
                    assert server.to_state() == before
                case _ if waiting:
                    action = waiting.pop(rng.randrange(len(waiting)))
                    done = server.completed(answer_to(action, waiting, rng))
        except (RemoteProtocolError, LocalProtocolError):
            assert server.to_state() == before
        waiting += [one for one in done if isinstance(one, ASYNCHRONOUS)]
        assert sorted(map(repr, waiting)) == sorted(map(repr, server.pending()))
    done = server.disconnect()
    while waiting := waiting + [one for one in done if isinstance(one, ASYNCHRONOUS)]:
        done = server.completed(answer_to(waiting.pop(0), waiting, rng))
    assert server.stage is ConnectionStage.DISCONNECTED
    assert server.pending() == server.standing() == []


ASYNCHRONOUS = (
    actions.MapGpadl,
    actions.UnmapGpadl,
    actions.OpenChannel,
    actions.CloseChannel,
    actions.ModifyChannel,
)


def answer_to(action: Action, waiting: list[Action], rng: random.Random) -> actions.Completion:
    """What reports the action; a stop is put off until the moves of its channel have been reported."""
    status = rng.choice((0, 0, STATUS_FAILURE))
    match action:
        case actions.MapGpadl(_, gpadl):
            return actions.GpadlMapped(gpadl, status)
        case actions.UnmapGpadl(_, gpadl):
            return actions.GpadlUnmapped(gpadl)
        case actions.OpenChannel(relid):
            return actions.ChannelOpened(relid, status)
        case actions.ModifyChannel(relid):
            return actions.ChannelModified(relid, status)
        case actions.CloseChannel(relid):
            for other in waiting:
                if isinstance(other, actions.ModifyChannel) and other.relid == relid:
                    waiting.remove(other)
                    waiting.append(action)
                    return actions.ChannelModified(relid, status)
            return actions.ChannelClosed(relid)
    raise AssertionError(action)


@given(data=st.data())
def test_any_guest_message_is_an_answer_or_the_typed_error(data: st.DataObject) -> None:
    host = opened()
    cls = data.draw(st.sampled_from([cls for cls in message_classes() if cls.sender is Side.GUEST]))
    before = host.server.to_state()
    try:
        host.server.receive(data.draw(messages_of(cls)).encode())
    except RemoteProtocolError:
        assert host.server.to_state() == before
