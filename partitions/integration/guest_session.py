"""The guest's side of one service: which version is agreed on, and which requests are worth an answer. No I/O."""

from dataclasses import dataclass
from typing import Final

from partitions.integration.services import FRAMEWORKS, IcService
from partitions.integration.wire import (
    Flags,
    IcError,
    IcMessage,
    MessageType,
    Version,
    Versions,
    answer_to,
    choose,
)

_NO_VERSIONS: Final = Versions((), ())


@dataclass(frozen=True, slots=True)
class Reply:
    """To be sent as it stands."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """To be done, and answered by `answer_to(message, body, status)`."""

    message: IcMessage

    @property
    def version(self) -> Version:
        return self.message.header.version


@dataclass(slots=True)
class GuestSession:
    """A host may negotiate again at any time: after its death its successor does."""

    service: IcService
    version: Version | None = None  # of the service's messages; None: not agreed

    def receive(self, payload: bytes) -> Reply | Request:
        """IcError: it is nothing to be answered; nothing has changed."""
        message = IcMessage.decode(payload)
        header = message.header
        if not header.flags & Flags.REQUEST or header.flags & Flags.RESPONSE:
            raise IcError(f"flags {int(header.flags)} in a request")
        if header.message_type == MessageType.NEGOTIATE:
            return Reply(answer_to(message, self._agree(Versions.decode(message.body)).encode()).encode())
        if header.message_type != self.service.message_type:
            raise IcError(f"message type {header.message_type} of a {self.service.name} service")
        if self.version is None or header.version != self.version:
            raise IcError(f"version {header.version}, and {self.version} is agreed on")
        return Request(message)

    def _agree(self, offered: Versions) -> Versions:
        framework = choose(offered.framework, FRAMEWORKS)
        self.version = choose(offered.message, self.service.versions)
        if framework is None or self.version is None:
            self.version = None
            return _NO_VERSIONS
        return Versions((framework,), (self.version,))
