"""The two ways to break a protocol. Both are raised before anything was changed."""


class RemoteProtocolError(Exception):
    """The peer sent what it must not send now. Log it, drop the message, carry on: the state is as it was."""


class LocalProtocolError(Exception):
    """We asked for what is impossible now: a mistake in this process, not the peer's."""
