"""The way of one operation through each device class: the stamps that it passes, and whose the time before each is.

A way begins with CALL and ends with RETURN, both at the end that asks: a guest's channel, or a client outside of the
machine. In between stand the seams. A seam that an operation must pass is a gate; the others are passed if somebody had
to be woken, or has a backend. docs/measuring.md has the same as a table.
"""

import enum
from dataclasses import dataclass
from typing import Final

from bus.trace import Hop


class Place(enum.Enum):
    """Whose the time is. The order is that of the columns."""

    GUEST = "guest"
    RING = "ring"  # the packet is there, and its reader runs and finds it
    WAKE = "wake"
    HYPERVISOR = "hypervisor"
    VSP = "VSP"
    BACKEND = "backend"
    OUTSIDE = "outside"  # who asks from outside of the machine: its own code, and the socket between


class Pick(enum.Enum):
    """Which of several stamps it is, of those between two gates."""

    FIRST = enum.auto()
    LAST = enum.auto()


@dataclass(frozen=True, slots=True)
class Spot:
    """An end of a channel. `guest`: a partition's name; `device`: as the root calls it, or a prefix of that."""

    guest: str
    device: str
    is_server: bool = False


CLIENT: Final = Spot("", "client")  # outside of the machine


@dataclass(frozen=True, slots=True)
class Seam:
    """A moment of an operation. `place`: whose the time is that ends here."""

    spot: Spot
    hop: Hop
    place: Place
    is_gate: bool = False
    has_id: bool = False  # of a gate: the id of the gate before
    pick: Pick = Pick.FIRST


Way = tuple[Seam, ...]
ASKER: Final = "asker"
ANSWERER: Final = "answerer"


def _crossing(
    guest: str, device: str, *, to_server: bool, asked: bool = True, pick: Pick = Pick.FIRST
) -> Way:
    """A packet from one end of a channel to the other. `asked`: it asks for something; otherwise it is an answer.

    A wake-up that came between makes the time until the packet is found its receiver's; without one it is the ring's.
    """
    sender, receiver = (Spot(guest, device, is_server) for is_server in (not to_server, to_server))
    ours, theirs = (Place.GUEST, Place.VSP) if to_server else (Place.VSP, Place.GUEST)
    write, found = (Hop.WRITE, Hop.TAKE) if asked else (Hop.ANSWER, Hop.RECEIVE)
    return (
        Seam(sender, write, ours, is_gate=True, has_id=not asked, pick=pick),
        Seam(sender, Hop.PUBLISH, ours),
        Seam(sender, Hop.SIGNAL, ours),
        Seam(receiver, Hop.BROKER_WAKE, Place.HYPERVISOR),
        Seam(receiver, Hop.FLAG_SET, Place.HYPERVISOR),
        Seam(receiver, Hop.WAKE, Place.WAKE, pick=Pick.LAST),
        Seam(receiver, found, theirs, is_gate=True, has_id=True),
    )


def _between(begin: Spot, *middle: Seam, end_place: Place) -> Way:
    return (
        Seam(begin, Hop.CALL, end_place, is_gate=True),
        *middle,
        Seam(begin, Hop.RETURN, end_place, is_gate=True),
    )


def _backend(spot: Spot, pick: Pick = Pick.FIRST) -> Way:
    return (
        Seam(spot, Hop.BACKEND_BEGIN, Place.VSP, pick=pick),
        Seam(spot, Hop.BACKEND_END, Place.BACKEND),
    )


def request(device: str) -> Way:
    """A request, and its completion: disk, echo."""
    return (
        *_crossing(ASKER, device, to_server=True),
        *_backend(Spot(ASKER, device, True)),
        *_crossing(ASKER, device, to_server=False, asked=False),
    )


def asked_by_guest(device: str, *middle: Seam) -> Way:
    return _between(Spot(ASKER, device), *middle, end_place=Place.GUEST)


def _relayed(sender: str, receiver: str, device: str) -> Way:
    """From one guest to another one by way of two relays, with a socket between them."""
    there = Spot(receiver, device, True)
    return (
        *_crossing(sender, device, to_server=True),
        *_backend(Spot(sender, device, True)),
        Seam(there, Hop.WAKE, Place.WAKE),
        *_backend(there, Pick.LAST),
        *_crossing(receiver, device, to_server=False),
    )


def _switched(sender: str, receiver: str, device: str) -> Way:
    return (*_crossing(sender, device, to_server=True), *_crossing(receiver, device, to_server=False))


def _there_and_back(device: str) -> Way:
    """A line that gives back what it gets. The driver wakes the thread that reads it."""
    server = Spot(ASKER, device, True)
    return (
        *_crossing(ASKER, device, to_server=True),
        *_backend(server),
        Seam(server, Hop.WAKE, Place.WAKE),
        *_backend(server, Pick.LAST),
        *_crossing(ASKER, device, to_server=False),
    )


def _seen(device: str, pick: Pick) -> Way:
    """What a viewer does, what the guest draws, and the picture. What is between the two is the screen's server."""
    screen = Spot(ASKER, "video0", True)
    return (
        Seam(Spot(ASKER, device, True), Hop.BACKEND_END, Place.BACKEND, pick=pick),
        *_crossing(ASKER, device, to_server=False, pick=pick),
        *_crossing(ASKER, "video0", to_server=True),
        Seam(screen, Hop.BACKEND_BEGIN, Place.VSP),
        Seam(CLIENT, Hop.RECEIVE, Place.BACKEND, is_gate=True),
    )


_KVP: Final = "integration:kvp"
_SWITCHES, _STREAMS, _LINE = "net0", "stream:", "serial0"
DISK: Final = asked_by_guest("disk0", *request("disk0"))
ECHO: Final = asked_by_guest("echo0", *request("echo0"))
NET: Final = asked_by_guest(
    _SWITCHES, *_switched(ASKER, ANSWERER, _SWITCHES), *_switched(ANSWERER, ASKER, _SWITCHES)
)
STREAM: Final = asked_by_guest(
    _STREAMS, *_relayed(ASKER, ANSWERER, _STREAMS), *_relayed(ANSWERER, ASKER, _STREAMS)
)
SERIAL: Final = asked_by_guest(_LINE, *_there_and_back(_LINE))
KEY: Final = _between(CLIENT, *_seen("keyboard0", Pick.FIRST), end_place=Place.OUTSIDE)
CLICK: Final = _between(CLIENT, *_seen("mouse0", Pick.LAST), end_place=Place.OUTSIDE)
PICTURE: Final = _between(
    CLIENT, Seam(CLIENT, Hop.RECEIVE, Place.BACKEND, is_gate=True), end_place=Place.OUTSIDE
)
KEY_VALUE: Final = _between(
    CLIENT,
    Seam(Spot(ASKER, _KVP, True), Hop.BACKEND_END, Place.BACKEND),
    *_crossing(ASKER, _KVP, to_server=False),
    *_crossing(ASKER, _KVP, to_server=True),
    Seam(Spot(ASKER, _KVP, True), Hop.BACKEND_BEGIN, Place.VSP),
    end_place=Place.BACKEND,
)
NBD: Final = _between(
    CLIENT,
    Seam(Spot(ASKER, "disk0"), Hop.WAKE, Place.WAKE, pick=Pick.LAST),
    Seam(Spot(ASKER, "disk0"), Hop.CALL, Place.OUTSIDE, is_gate=True, has_id=True),
    *request("disk0"),
    Seam(Spot(ASKER, "disk0"), Hop.RETURN, Place.GUEST, is_gate=True),
    end_place=Place.OUTSIDE,
)
