"""What a guest's network adapter can say."""


class NetError(Exception):
    """Base of what a network adapter raises."""


class NetProtocolError(NetError):
    """Whatever answers is no network server that we can use. Nothing is set up."""


class NetClosedError(NetError):
    """The channel is gone, for good."""


class NetTimeoutError(NetError):
    """The server did not answer in time."""
