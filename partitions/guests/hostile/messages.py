"""Attacks on the VMBus server by channel messages: garbage, and good ones about what is others'."""

import struct
import time
from collections.abc import Iterator
from typing import Final

from bus import channel_messages as messages
from bus.channel_message_codec import ChannelMessage
from bus.synic import CHANNEL_MESSAGE, CONTACT_CONNECTION, MESSAGE_CONNECTION
from partitions.guests.hostile.scene import Scene
from partitions.guests.hostile.tally import Tally
from runtime.abi import HvStatus, HypercallError

_FULL: Final = (HvStatus.INSUFFICIENT_BUFFERS, HvStatus.INSUFFICIENT_MEMORY)
_PAUSE_S: Final = 0.001
_RELIDS: Final = 64
_GPADLS: Final = 64
_FIRST_GPADL: Final = 0xE_1E10  # where guests begin to count, more or less
_NO_VP: Final = 0xFFFF_FFFF


def _post(scene: Scene, tally: Tally, connection: int, payload: bytes) -> None:
    try:
        scene.partition.hypercalls.post_message(connection, CHANNEL_MESSAGE, payload)
    except HypercallError as error:
        tally.met(error.status.name)
        if error.status in _FULL:
            time.sleep(_PAUSE_S)
    else:
        tally.met("posted")


def garbage_messages(scene: Scene, tally: Tally) -> None:
    """Random, truncated, unknown, out of order."""
    rng = scene.rng
    while scene.goes_on():
        kind = rng.choice((0, rng.randrange(1, 31), 0xFFFF_FFFF))
        body = rng.randbytes(rng.choice((0, 4, 12, 40, 148, 232)))
        message = struct.pack("<II", kind, 0) + body
        short = rng.randbytes(rng.randrange(16))
        _post(scene, tally, CONTACT_CONNECTION, rng.choice((message, short)))
        tally.evidence = f"the last one: type {kind:#x}, {len(body)} bytes behind it"


def forged_messages(scene: Scene, tally: Tally) -> None:
    """Each is as good as one can be, but for whose channel, whose page list or whose opening it speaks of."""
    scene.partition.vmbus  # connected, as an honest guest is  # noqa: B018
    connections = (_message_connection(scene), CONTACT_CONNECTION, MESSAGE_CONNECTION)
    for message in _forgeries(scene):
        if not scene.goes_on():
            return
        _post(scene, tally, scene.rng.choice(connections), message.encode())
        tally.evidence = f"the last one: {type(message).__name__}"


def _message_connection(scene: Scene) -> int:
    """Where our bus posts to, which the server chose."""
    connection: int = scene.partition.vmbus._client._post_to
    return connection


def _forgeries(scene: Scene) -> Iterator[ChannelMessage]:
    rng = scene.rng
    own = {offer.relid for offer in scene.partition.vmbus._client.offers}
    others = [relid for relid in range(1, _RELIDS) if relid not in own] + [0, 2047, 2048, 2**32 - 1]
    while True:
        relid = rng.choice(others)
        gpadl = rng.choice((rng.randrange(1, _GPADLS), _FIRST_GPADL + rng.randrange(_GPADLS), 0, 2**32 - 1))
        pages = struct.pack("<IIQQ", 8192, 0, rng.randrange(1 << 24), 2**63)
        yield rng.choice(
            (
                messages.OpenChannel(relid, relid, gpadl, 0, 1),
                messages.OpenChannel(relid, 0, gpadl, _NO_VP, 2**32 - 1),
                messages.CloseChannel(relid),
                messages.GpadlHeader(relid, gpadl, len(pages), 1, pages),
                messages.GpadlHeader(relid, gpadl, 0xFFFF, 1, pages),  # a list whose rest never comes
                messages.GpadlHeader(rng.choice(sorted(own) or [1]), gpadl, 0xFFF8, 0xFFFF, pages),
                messages.GpadlBody(rng.randrange(8), gpadl, pages),
                messages.GpadlTeardown(relid, gpadl),
                messages.RelidReleased(relid),
                messages.ModifyChannel(relid, rng.choice((0, 1, _NO_VP))),
                messages.RequestOffers(),
                messages.CloseReservedChannel(relid, 0, 2),
                messages.OpenReservedChannel(relid, 0, 2, gpadl, 1),
            )
        )
