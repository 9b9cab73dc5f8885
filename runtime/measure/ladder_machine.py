"""The machines that the ladder's own rows run on: their configs, by the guests that are needed.

One machine has almost everything; each further architecture has one of its own, which is booted only when its rows are
asked for. Guests measure as `partitions.guests.ladder_load` says; in a pair, `ladder_partner` answers.
"""

import functools
import os
from collections.abc import Collection
from typing import Final

from runtime.config.architecture import Architecture
from runtime.config.model import SignalRoute, WaitingKind
from runtime.measure.measuring_machine import MeasuringMachine, files_of

LOAD: Final = "load"
DIRECT: Final = "direct"  # its port accesses take the direct way
ASKER: Final = "asker"  # one of a pair of guests, which is there with its partner
ANSWERER: Final = "answerer"
DEPTHS: Final = {1: LOAD, 2: "depth2", 3: "depth3"}  # a guest at each depth of the tree
DISK: Final = "disk0"
PAIR_RING_BYTES: Final = 256 << 10
_PARENTS: Final = {2: "parent1", 3: "parent2"}  # of the guest at that depth
_NAMES_OF_EVENTS: Final = {"depth2": "parent1/depth2", "depth3": "parent1/parent2/depth3"}

# Architectures with a machine and rows of their own, and how who asks waits there. Send, receive and reply sleeps.
WAITINGS: Final = {
    Architecture.HOSTED: (WaitingKind.ADAPTIVE, WaitingKind.BLOCK),
    Architecture.MICROKERNEL: (WaitingKind.BLOCK,),
}

# What the pair talks over. A switch has two threads of the root beside the two guests. Adaptive ones sleep when nothing
# comes, so that they take no CPU from other ways in their turn, and run on while something does.
PAIR_DEVICES: Final = {
    "link-direct-block": ("link", SignalRoute.DIRECT, WaitingKind.BLOCK),
    "link-broker-block": ("link", SignalRoute.BROKER, WaitingKind.BLOCK),
    "switch-direct-block": ("switch", SignalRoute.DIRECT, WaitingKind.BLOCK),
    "link-direct-spin": ("link", SignalRoute.DIRECT, WaitingKind.SPIN),
    "link-direct-adaptive": ("link", SignalRoute.DIRECT, WaitingKind.ADAPTIVE),
    "switch-direct-adaptive": ("switch", SignalRoute.DIRECT, WaitingKind.ADAPTIVE),
}

_MACHINE: Final = """
[machine]
name = "bench-{name}-{pid}"
memory = "{memory}MiB"
architecture = "{architecture}"
"""
_DEVICE: Final = '\n[[root.device]]\nname = "{name}"\nkind = "{kind}"\n'
_GUEST: Final = """
[[partition]]
name = "{name}"
parent = "{parent}"
program = "partitions.guests.{program}:main"
memory = "{memory}MiB"
vps = 2
{more}
"""
_ATTACHMENT: Final = """
[[partition.device]]
name = "{name}"
ring_bytes = "{ring}KiB"
signal_route = "{route}"
waiting = "{waiting}"
"""
_DISK_DEVICE: Final = _DEVICE.format(name=DISK, kind="disk") + 'backend = "memory"\nsize = "16MiB"\n'
_DISK_ATTACHED: Final = _ATTACHMENT.format(
    name=DISK, ring=64, route=SignalRoute.DIRECT, waiting=WaitingKind.ADAPTIVE
)
_UART: Final = '\n[[partition.emulated]]\nkind = "uart"\n'
_ROUTED: Final = [(route, waiting) for route in SignalRoute for waiting in WaitingKind]


def echo_name(route: SignalRoute, waiting: WaitingKind) -> str:
    return f"echo-{route}-{waiting}"


class LadderMachine(MeasuringMachine):
    """One of the ladder's; which guests it is to have may be said until it boots."""

    def __init__(
        self, guests: Collection[str] = (), architecture: Architecture = Architecture.MICROKERNELIZED
    ) -> None:
        usual = architecture is Architecture.MICROKERNELIZED
        config = machine_text if usual else functools.partial(architecture_text, architecture)
        super().__init__(config, _with_partners(guests), _NAMES_OF_EVENTS)

    def need(self, guests: Collection[str]) -> None:
        super().need(_with_partners(guests))


def _with_partners(guests: Collection[str]) -> set[str]:
    return {*guests, ANSWERER} if ASKER in guests else set(guests)


def architecture_text(architecture: Architecture, guests: Collection[str] = (LOAD,)) -> str:
    """A config of another architecture: one guest, and an echo for each way to wait."""
    text = _MACHINE.format(name=architecture, pid=os.getpid(), memory=192, architecture=architecture)
    direct = SignalRoute.DIRECT
    for waiting in WAITINGS[architecture]:
        text += _DEVICE.format(name=echo_name(direct, waiting), kind="echo")
    text += _guest(LOAD, "root", "ladder_load", 64) + files_of(LOAD)
    for waiting in WAITINGS[architecture]:
        text += _ATTACHMENT.format(name=echo_name(direct, waiting), ring=256, route=direct, waiting=waiting)
    return text


def machine_text(guests: Collection[str]) -> str:
    """A config with these guests, and the parents that they need."""
    architecture = Architecture.MICROKERNELIZED
    text = (
        _MACHINE.format(name="ladder", pid=os.getpid(), memory=768, architecture=architecture) + _DISK_DEVICE
    )
    for route, waiting in _ROUTED:
        text += _DEVICE.format(name=echo_name(route, waiting), kind="echo")
    if ASKER in guests:
        for name, (kind, _, _) in PAIR_DEVICES.items():
            text += _DEVICE.format(name=name, kind=kind)
    if LOAD in guests:
        text += _guest(LOAD, "root", "ladder_load", 64) + files_of(LOAD) + _UART + _DISK_ATTACHED
        for route, waiting in _ROUTED:
            text += _ATTACHMENT.format(name=echo_name(route, waiting), ring=256, route=route, waiting=waiting)
    if DIRECT in guests:
        direct = _guest(DIRECT, "root", "ladder_load", 32, 'intercepts = "direct"')
        text += direct + files_of(DIRECT) + _UART
    if ASKER in guests:
        text += _pair()
    return text + _deeper(guests)


def _guest(name: str, parent: str, program: str, memory: int, more: str = "") -> str:
    return _GUEST.format(name=name, parent=parent, program=program, memory=memory, more=more)


def _pair() -> str:
    """The first one lends the pages of the links."""
    text = ""
    names = ", ".join(f'"{name}"' for name in PAIR_DEVICES)
    for guest, program in ((ASKER, "ladder_load"), (ANSWERER, "ladder_partner")):
        text += _guest(guest, "root", program, 64, f"args = {{ pair = [{names}] }}") + files_of(guest)
        for name, (_, route, waiting) in PAIR_DEVICES.items():
            ring = PAIR_RING_BYTES >> 10
            text += _ATTACHMENT.format(name=name, ring=ring, route=route, waiting=waiting)
    return text


def _deeper(guests: Collection[str]) -> str:
    """The guests below others, and who is above them."""
    text, parent = "", "root"
    deepest = max((depth for depth, name in DEPTHS.items() if name in guests), default=0)
    for depth in range(2, deepest + 1):
        guest, above = DEPTHS[depth], _PARENTS[depth]
        program = "ladder_parent" if guest in guests else "parent"
        text += _guest(above, parent, program, 64 * (deepest - depth) + 80) + _DISK_ATTACHED
        parent = above
        if guest in guests:
            text += _guest(guest, parent, "ladder_load", 32) + files_of(guest) + _DISK_ATTACHED
    return text
