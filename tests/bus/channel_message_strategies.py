"""Hypothesis strategies for channel messages, read off the annotations that are their wire layout."""

from typing import Any

from hypothesis import strategies as st

from bus.channel_message_codec import MAX_MESSAGE_BYTES, ChannelMessage, FeatureFlags, Version
from bus.channel_messages import InitiateContact

_BITS = {"B": 8, "H": 16, "I": 32, "Q": 64}


def _field(code: str, is_guid: bool) -> st.SearchStrategy[Any]:
    if is_guid:
        return st.uuids()
    letter = code.replace("16x", "").replace("4x", "").replace("2x", "")
    if letter.endswith("s"):
        size = int(letter[:-1])
        return st.binary(min_size=size, max_size=size)
    return st.integers(0, (1 << _BITS[letter]) - 1)


@st.composite
def messages_of(draw: st.DrawFn, cls: type[ChannelMessage]) -> ChannelMessage:
    """Any value of the class, in any of its forms."""
    layout = cls._layout
    size = draw(st.sampled_from(cls.sizes))
    count = sum(end <= size for end in layout.ends)
    values = [
        draw(_field(code, is_guid))
        for code, is_guid in zip(layout.codes[:count], layout.is_guid[:count], strict=True)
    ]
    if layout.has_rest:
        values.append(draw(st.binary(max_size=MAX_MESSAGE_BYTES - size)))
    message = cls(*values)
    if isinstance(message, InitiateContact) and len(cls.sizes) == 2:
        # Whether the client id follows, the message itself says.
        asks = message.version >= Version.V6_0 and FeatureFlags.CLIENT_ID in message.features
        if asks != (message.client_id is not None):
            version = Version.V6_0 if message.client_id else Version.V5_3
            target = message.target | FeatureFlags.CLIENT_ID << 32
            message = InitiateContact(version, message.target_vp, target, *values[3:])
    return message
