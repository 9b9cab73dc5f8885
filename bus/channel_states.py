"""The states of one offered channel, seen from the host, and the one table of its transitions.

The guest opens and closes; the device behind the channel takes time to do either, during which the guest may
reconnect (RESET) and the host may withdraw the offer (REVOKE). Hence a state for each thing to be done after
the device has answered. An event without a row here is illegal, and changes nothing.

    CLIENT_RELEASED -offer-> CLOSED -open-> OPENING -opened-> OPEN -close-> CLOSING -closed-> CLOSED
                                                                            CLOSING -open-> CLOSING_REOPEN
    any -revoke-> [*_REVOKE ->] REVOKING -withdrawn-> REVOKED -release-> GONE

Source: openvmm vm/devices/vmbus/vmbus_server/src/channels.rs.
"""

from collections.abc import Mapping
from enum import Enum, IntEnum, auto
from typing import Final


class ChannelState(IntEnum):
    """The numbers stand in saved state: add, never renumber."""

    CLIENT_RELEASED = 0  # the guest does not know the channel, or no longer
    CLOSED = 1  # offered
    OPENING = 2  # the device is being started
    OPEN = 3
    CLOSING = 4  # the device is being stopped
    CLOSING_REOPEN = 5  # as CLOSING, and the guest has asked to open again
    OPENING_RELEASE = 6  # being started, though the guest has forgotten the channel since
    CLOSING_RELEASE = 7
    OPENING_REVOKE = 8  # being started, though the offer has been withdrawn since
    CLOSING_REVOKE = 9
    REVOKING = 10  # stopped; memory is being unmapped; then the guest is told
    REVOKED = 11  # rescinded; the relid stays taken until the guest releases it
    REOFFERED = 12  # as REVOKED; the same device waits to be offered again under this relid
    GONE = 13  # passed through on the way out of the table


class ChannelEvent(Enum):
    OFFER = auto()  # host: send the offer now
    OPEN = auto()  # guest: OPENCHANNEL
    CLOSE = auto()  # guest: CLOSECHANNEL
    MODIFY = auto()  # guest: MODIFYCHANNEL
    RELEASE = auto()  # guest: RELID_RELEASED
    RESET = auto()  # guest: INITIATE_CONTACT or UNLOAD, or it died
    OPENED = auto()  # device
    OPEN_FAILED = auto()  # device
    CLOSED = auto()  # device
    REVOKE = auto()  # host: the device goes away
    WITHDRAWN = auto()  # nothing of the channel is in use any more, and the guest knows the channel
    VANISHED = auto()  # the same, but the guest does not know it
    REOFFER = auto()  # host: the device is back
    UNOFFER = auto()  # host: and gone again


class Step(Enum):
    """What the server does on a transition, beside changing the state."""

    NOTHING = auto()
    IGNORE = auto()  # the guest could not know better: accept, do nothing, answer nothing
    SEND_OFFER = auto()
    OPEN_DEVICE = auto()
    REMEMBER_OPEN = auto()
    REPLY_OPENED = auto()
    REPLY_OPEN_FAILED = auto()
    REOPEN_DEVICE = auto()
    CLOSE_DEVICE = auto()
    MOVE_INTERRUPT = auto()
    SEND_RESCIND = auto()
    REMOVE = auto()


_S, _E, _P = ChannelState, ChannelEvent, Step

_KNOWN: Final = {
    (_S.CLIENT_RELEASED, _E.OFFER): (_S.CLOSED, _P.SEND_OFFER),
    (_S.CLIENT_RELEASED, _E.RESET): (_S.CLIENT_RELEASED, _P.NOTHING),
    (_S.CLIENT_RELEASED, _E.REVOKE): (_S.REVOKING, _P.NOTHING),
    (_S.CLOSED, _E.OPEN): (_S.OPENING, _P.OPEN_DEVICE),
    (_S.CLOSED, _E.RELEASE): (_S.CLIENT_RELEASED, _P.NOTHING),
    (_S.CLOSED, _E.RESET): (_S.CLIENT_RELEASED, _P.NOTHING),
    (_S.CLOSED, _E.REVOKE): (_S.REVOKING, _P.NOTHING),
    (_S.OPENING, _E.OPENED): (_S.OPEN, _P.REPLY_OPENED),
    (_S.OPENING, _E.OPEN_FAILED): (_S.CLOSED, _P.REPLY_OPEN_FAILED),
    (_S.OPENING, _E.RESET): (_S.OPENING_RELEASE, _P.NOTHING),
    (_S.OPENING, _E.REVOKE): (_S.OPENING_REVOKE, _P.NOTHING),
    (_S.OPEN, _E.MODIFY): (_S.OPEN, _P.MOVE_INTERRUPT),
    (_S.OPEN, _E.CLOSE): (_S.CLOSING, _P.CLOSE_DEVICE),
    (_S.OPEN, _E.RESET): (_S.CLOSING_RELEASE, _P.CLOSE_DEVICE),
    (_S.OPEN, _E.REVOKE): (_S.CLOSING_REVOKE, _P.CLOSE_DEVICE),
    (_S.CLOSING, _E.OPEN): (_S.CLOSING_REOPEN, _P.REMEMBER_OPEN),
    (_S.CLOSING, _E.CLOSED): (_S.CLOSED, _P.NOTHING),
    (_S.CLOSING, _E.RELEASE): (_S.CLOSING_RELEASE, _P.NOTHING),
    (_S.CLOSING, _E.RESET): (_S.CLOSING_RELEASE, _P.NOTHING),
    (_S.CLOSING, _E.REVOKE): (_S.CLOSING_REVOKE, _P.NOTHING),
    (_S.CLOSING_REOPEN, _E.CLOSED): (_S.OPENING, _P.REOPEN_DEVICE),
    (_S.CLOSING_REOPEN, _E.RESET): (_S.CLOSING_RELEASE, _P.NOTHING),
    (_S.CLOSING_REOPEN, _E.REVOKE): (_S.CLOSING_REVOKE, _P.NOTHING),
    (_S.OPENING_RELEASE, _E.OPENED): (_S.CLOSING_RELEASE, _P.CLOSE_DEVICE),
    (_S.OPENING_RELEASE, _E.OPEN_FAILED): (_S.CLIENT_RELEASED, _P.NOTHING),
    (_S.OPENING_RELEASE, _E.RESET): (_S.OPENING_RELEASE, _P.NOTHING),
    (_S.OPENING_RELEASE, _E.REVOKE): (_S.OPENING_REVOKE, _P.NOTHING),
    (_S.CLOSING_RELEASE, _E.CLOSED): (_S.CLIENT_RELEASED, _P.NOTHING),
    (_S.CLOSING_RELEASE, _E.RESET): (_S.CLOSING_RELEASE, _P.NOTHING),
    (_S.CLOSING_RELEASE, _E.REVOKE): (_S.CLOSING_REVOKE, _P.NOTHING),
}

# From here on the offer is withdrawn. Until the guest has read the rescind it may still open, close and
# modify, unless it waits for an open; and it may let go, unasked, of a channel that it does not use.
_WITHDRAWN: Final = {
    (_S.OPENING_REVOKE, _E.OPENED): (_S.CLOSING_REVOKE, _P.CLOSE_DEVICE),
    (_S.OPENING_REVOKE, _E.OPEN_FAILED): (_S.REVOKING, _P.NOTHING),
    (_S.CLOSING_REVOKE, _E.CLOSED): (_S.REVOKING, _P.NOTHING),
    (_S.CLOSING_REVOKE, _E.RELEASE): (_S.CLOSING_REVOKE, _P.NOTHING),
    (_S.REVOKING, _E.RELEASE): (_S.REVOKING, _P.NOTHING),
    (_S.REVOKING, _E.WITHDRAWN): (_S.REVOKED, _P.SEND_RESCIND),
    (_S.REVOKING, _E.VANISHED): (_S.GONE, _P.REMOVE),
    (_S.REVOKED, _E.RELEASE): (_S.GONE, _P.REMOVE),
    (_S.REVOKED, _E.RESET): (_S.GONE, _P.REMOVE),
    (_S.REVOKED, _E.REOFFER): (_S.REOFFERED, _P.NOTHING),
    (_S.REOFFERED, _E.UNOFFER): (_S.REVOKED, _P.NOTHING),
    (_S.REOFFERED, _E.RELEASE): (_S.GONE, _P.REMOVE),
    (_S.REOFFERED, _E.RESET): (_S.GONE, _P.REMOVE),
}
WITHDRAWING_STATES: Final = frozenset({_S.OPENING_REVOKE, _S.CLOSING_REVOKE, _S.REVOKING})
WITHDRAWN_STATES: Final = WITHDRAWING_STATES | {_S.REVOKED, _S.REOFFERED}

TRANSITIONS: Final[Mapping[tuple[ChannelState, ChannelEvent], tuple[ChannelState, Step]]] = {
    **_KNOWN,
    **_WITHDRAWN,
    **{
        (state, event): (state, _P.IGNORE)
        for state in WITHDRAWN_STATES - {_S.OPENING_REVOKE}
        for event in (_E.OPEN, _E.CLOSE, _E.MODIFY)
    },
    **{(state, _E.RESET): (state, _P.NOTHING) for state in WITHDRAWING_STATES},
    **{
        (state, event): (state, _P.NOTHING)
        for state in WITHDRAWING_STATES
        for event in (_E.REOFFER, _E.UNOFFER)
    },
}

STARTING_STATES: Final = frozenset({_S.OPENING, _S.OPENING_RELEASE, _S.OPENING_REVOKE})
STOPPING_STATES: Final = frozenset({_S.CLOSING, _S.CLOSING_REOPEN, _S.CLOSING_RELEASE, _S.CLOSING_REVOKE})
# Here the device may still touch memory that is to be unmapped.
ENTANGLED_STATES: Final = STOPPING_STATES | {_S.OPENING_RELEASE, _S.OPENING_REVOKE}
# In these a live ring belongs to the guest's request to open.
RING_STATES: Final = frozenset({_S.OPENING, _S.OPEN, _S.CLOSING_REOPEN})
