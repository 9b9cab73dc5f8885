"""Faults of the root's control plane: channel messages, offers and rescinds, and what a hostile guest would send it.

The target is a partition, one of the root's own children.
"""

from typing import Final

from bus.channel_message_codec import ChannelMessageType
from runtime.chaos.faults.kinds import Carrier, FaultKind, Group, Parameter

DELAY_MS_MAX: Final = 60_000
FORGERY_RATE_MAX: Final = 500
CONSOLE_RATE_MAX: Final = 5_000
ANY_MESSAGE: Final = "any"
MESSAGES: Final = tuple(message.name for message in ChannelMessageType)

_DIRECTION: Final = Parameter("direction", "to", "to the guest, or from it", choices=("to", "from"))
_TYPE: Final = Parameter("message", ANY_MESSAGE, "which", choices=(ANY_MESSAGE, *MESSAGES))
_DELAY: Final = Parameter("delay_ms", 20, "how much later", "ms", 1, DELAY_MS_MAX)
_WITHIN: Final = Parameter("delay_ms", 50, "how long it waits to be overtaken", "ms", 1, DELAY_MS_MAX)
_DEVICE: Final = Parameter("device", "", "which of the target's; none: the first that is offered")
_FOR: Final = Parameter("for_ms", 200, "until it is offered again", "ms", 1, DELAY_MS_MAX)
_OFFER: Final = "each offer to the target"


def _stack(name: str, group: Group, summary: str, seam: str, *parameters: Parameter) -> FaultKind:
    return FaultKind(name, group, summary, seam, Carrier.STACK, parameters)


def _message(name: str, summary: str, *parameters: Parameter) -> FaultKind:
    return _stack(name, Group.MESSAGE, summary, "each channel message", _DIRECTION, _TYPE, *parameters)


def _forged(name: str, summary: str) -> FaultKind:
    seam = "each message that is taken for the target's, byte for byte"
    rate = Parameter("rate", 20, "", "messages/s", 1, FORGERY_RATE_MAX)
    return _stack(name, Group.AUTHORITY, summary, seam, rate)


STACK_KINDS: Final = (
    _message("channel-message-drop", "a control message is lost"),
    _message("channel-message-duplicate", "a control message comes twice"),
    _message("channel-message-delay", "a control message, and what is behind it, comes late", _DELAY),
    _message("channel-message-reorder", "a control message is overtaken by the next", _WITHIN),
    _message("channel-message-corrupt", "one bit of a control message is flipped"),
    FaultKind(
        "rescind", Group.MESSAGE, "a device is taken away from its guest, and offered again after a while",
        "the device as it is", Carrier.STACK, (_DEVICE, _FOR), strikes_once=True,
    ),
    _stack(
        "rescind-during-open", Group.MESSAGE, "a device is taken away after OPENCHANNEL and before its result",
        "each OPENCHANNEL of the target", _FOR,
    ),
    _stack("offer-late", Group.MESSAGE, "an offer comes late, and what is behind it does not wait", _OFFER, _DELAY),
    _stack("offer-twice", Group.MESSAGE, "an offer comes twice", _OFFER),
    _forged("forge-relid", "messages about channels that were never offered to the target"),
    _forged("forge-gpadl", "messages about memory that the target has not described"),
    _stack(
        "console-flood", Group.RESOURCE, "the root fills the machine's console; it is the target", "each line",
        Parameter("rate", 500, "", "lines/s", 1, CONSOLE_RATE_MAX),
    ),
)  # fmt: skip
