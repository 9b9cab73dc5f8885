"""Drivers of devices of one's own: requests in, replies out, both of any bytes. See docs/drivers.md.

A reply is exactly `bytes`, at most as long as the guest has room for. A request may be served again after the death of
the process that served it; the guest gets one reply.
"""

import os
from collections.abc import Sequence

from partitions.sdk.context import DriverContext


class _Base:
    def __init__(self, context: DriverContext) -> None:
        self.context = context

    def close(self) -> None:
        """After the last call of all others. Not when the process is killed."""
        if self.context.backing_fd is not None:
            os.close(self.context.backing_fd)


class CustomDriver(_Base):
    """Override `serve` or `answer`, whichever suits the device. Calls of one object never overlap.

    BackendError is an ordinary reply: the guest gets it as CustomError, from `serve` for all of that batch.
    """

    def serve(self, requests: Sequence[bytes]) -> Sequence[bytes]:
        """The replies to a batch of one guest's, in its order: all that its ring held, up to 64."""
        return [self.answer(request) for request in requests]

    def answer(self, request: bytes) -> bytes:
        """The reply to one request. A driver that overrides this alone gets the shortest way there is."""
        (reply,) = self.serve((request,))
        return reply

    def opened(self) -> "CustomDriver":
        """A guest opens the device: what serves it from here on. Itself, or an object with a state for this guest."""
        return self


class AsyncCustomDriver(_Base):
    """Several requests of a guest at a time, up to 64, under trio. Replies leave in the order of the requests."""

    async def serve(self, request: bytes) -> bytes:
        raise NotImplementedError

    def opened(self) -> "AsyncCustomDriver":
        """As CustomDriver.opened."""
        return self
