"""Integration services: framework headers, versions, and the bodies of each service."""

from contextlib import suppress

from partitions.integration.bodies import Heartbeat, Kvp, Shutdown, Snapshot, TimeSync
from partitions.integration.guest_session import GuestSession, Reply, Request
from partitions.integration.host_session import HostSession, Negotiated, NotNow, Phase
from partitions.integration.services import SERVICES
from partitions.integration.wire import IcError, answer_to
from tests.fuzzing.pieces import cut, join
from tests.fuzzing.targets import Side, target

_BODIES = {"heartbeat": Heartbeat, "shutdown": Shutdown, "kvp": Kvp, "vss": Snapshot}


def _conversations() -> tuple[list[bytes], list[bytes]]:
    """A guest's answers, and a host's requests; each with the number of its service in front."""
    answers, requests = [], []
    for number, service in enumerate(SERVICES):
        host, guest, mark = HostSession(service), GuestSession(service), bytes([number])
        asked = host.negotiate()
        reply = guest.receive(asked)
        assert isinstance(reply, Reply)
        assert isinstance(host.receive(reply.payload), Negotiated)
        said = host.request(bytes(64))
        request = guest.receive(said)
        assert isinstance(request, Request)
        requests.append(join([mark + asked, mark + said]))
        answers.append(join([mark + reply.payload, mark + answer_to(request.message, bytes(32)).encode()]))
    return answers, requests


@target("integration", Side.HOST, lambda: _conversations()[0])
def host(data: bytes) -> None:
    """A host that negotiates and asks as soon as it may; a guest answers anything."""
    sessions = [HostSession(service) for service in SERVICES]
    for session in sessions:
        session.negotiate()
    for piece in cut(data):
        if not piece:
            continue
        session = sessions[piece[0] % len(sessions)]
        with suppress(IcError):
            session.receive(piece[1:])
        if session.phase is Phase.READY:
            with suppress(NotNow):
                session.request(bytes(8))


@target("integration", Side.GUEST, lambda: _conversations()[1])
def guest(data: bytes) -> None:
    sessions = [GuestSession(service) for service in SERVICES]
    for piece in cut(data):
        if not piece:
            continue
        number = piece[0] % len(sessions)
        with suppress(IcError):
            found = sessions[number].receive(piece[1:])
            if isinstance(found, Request):
                name, body = SERVICES[number].name, found.message.body
                if name == "timesync":
                    TimeSync.decode(body, found.version)
                else:
                    _BODIES[name].decode(body)  # type: ignore[attr-defined]
