"""The host's side of one service on one opened channel: what may be said, and what an answer means. No I/O.

    NEGOTIATING --versions in common--> READY <--request, answer--> (one transaction at a time)
              `--none in common--> REFUSED

Each opening begins with a negotiation, and so does each successor of a server that died. Answers to what a predecessor
asked are stale: counted, not wrong.
"""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from partitions.integration.services import FRAMEWORKS, IcService
from partitions.integration.wire import (
    Flags,
    IcError,
    IcHeader,
    IcMessage,
    MessageType,
    Version,
    Versions,
)

_NO_VERSION: Final = Version(0, 0)


class NotNow(Exception):
    """We can't ask: the guest has not agreed on a version, or has not answered the last request."""


class Phase(Enum):
    NEGOTIATING = auto()
    READY = auto()
    REFUSED = auto()  # no version in common: nothing is said any more


@dataclass(frozen=True, slots=True)
class Negotiated:
    version: Version | None  # None: none in common


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes


@dataclass(slots=True)
class HostSession:
    """Messages in, what they mean out."""

    service: IcService
    phase: Phase = Phase.NEGOTIATING
    framework: Version = _NO_VERSION
    version: Version = _NO_VERSION
    stale: int = 0  # answers that nobody waits for
    _last: int = field(default=0)  # transaction id
    _waits_for: int | None = None

    def negotiate(self) -> bytes:
        """The first message; or a new beginning."""
        self.phase, self._waits_for = Phase.NEGOTIATING, self._next()
        body = Versions(FRAMEWORKS, self.service.versions).encode()
        return self._encode(MessageType.NEGOTIATE, FRAMEWORKS[0], FRAMEWORKS[0], body)

    def request(self, body: bytes) -> bytes:
        """Raises NotNow; PacketError: too long."""
        if self.phase is not Phase.READY:
            raise NotNow("the guest has not agreed on a version yet")
        if self._waits_for is not None:
            raise NotNow("the guest has not answered the last request")
        before = self._last
        self._waits_for = self._next()
        try:
            return self._encode(self.service.message_type, self.framework, self.version, body)
        except BaseException:
            self._last, self._waits_for = before, None
            raise

    def give_up(self) -> None:
        """Wait no longer for the answer to the last request: should it come, it is stale."""
        if self.phase is Phase.READY:
            self._waits_for = None

    def receive(self, payload: bytes) -> Negotiated | Answer | None:
        """None: stale. IcError: it is no answer; nothing has changed."""
        message = IcMessage.decode(payload)
        header = message.header
        if not header.flags & Flags.RESPONSE or header.flags & Flags.REQUEST:
            raise IcError(f"flags {int(header.flags)} in an answer")
        if header.message_type not in (MessageType.NEGOTIATE, self.service.message_type):
            raise IcError(f"message type {header.message_type} of a {self.service.name} service")
        is_negotiation = header.message_type == MessageType.NEGOTIATE
        if (
            header.transaction != self._waits_for
            or is_negotiation != (self.phase is Phase.NEGOTIATING)
            or self.phase is Phase.REFUSED
        ):
            self.stale += 1
            return None
        if not is_negotiation:
            if (header.framework, header.version) != (self.framework, self.version):
                raise IcError(f"version {header.version} in an answer, and {self.version} is agreed on")
            self._waits_for = None
            return Answer(header.status, message.body)
        return self._agree(Versions.decode(message.body))

    def _agree(self, taken: Versions) -> Negotiated:
        match taken.framework, taken.message:
            case (framework,), (version,) if framework in FRAMEWORKS and version in self.service.versions:
                self.framework, self.version, self.phase = framework, version, Phase.READY
                self._waits_for = None
                return Negotiated(version)
            case (), _:
                self.phase, self._waits_for = Phase.REFUSED, None
                return Negotiated(None)
            case _, ():
                self.phase, self._waits_for = Phase.REFUSED, None
                return Negotiated(None)
        raise IcError("versions that were not offered")

    def _next(self) -> int:
        self._last = (self._last + 1) & 0xFF
        return self._last

    def _encode(self, message_type: int, framework: Version, version: Version, body: bytes) -> bytes:
        flags = Flags.TRANSACTION | Flags.REQUEST
        header = IcHeader(framework, message_type, version, len(body), 0, self._last, flags)
        return IcMessage(header, body).encode()
