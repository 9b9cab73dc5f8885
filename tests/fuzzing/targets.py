"""What can be fuzzed: for each protocol the side that listens, fed with what the other one says.

A target's function takes one input, and raises only where something is wrong: an error that is not of the protocol's
types, or an invariant that does not hold. Its seeds are conversations of honest peers.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

INPUT_BYTES_MAX: Final = 64 << 10  # what is longer the fuzzer would cut, seeds as well
Run = Callable[[bytes], None]


class Side(enum.StrEnum):
    HOST = "host"  # a VSP, or whoever serves: a guest is hostile
    GUEST = "guest"  # a VSC, or whoever asks: its host is hostile
    SERVER = "server"  # of ours, for programs outside of the machine: one of those is hostile
    CLIENT = "client"  # of ours, of such a server, or of somebody else's program: that one is hostile
    READER = "reader"  # of a file: whoever wrote it is hostile


BOTH: Final = frozenset({Side.HOST, Side.GUEST})


@dataclass(frozen=True, slots=True)
class Target:
    protocol: str
    side: Side
    run: Run
    seeds: Callable[[], Sequence[bytes]]

    @property
    def name(self) -> str:
        return f"{self.protocol}-{self.side}"


_TARGETS: Final[dict[str, Target]] = {}
_SIDES: Final[dict[str, frozenset[Side]]] = {}


def declare(protocol: str, *sides: Side) -> None:
    """Which sides of it listen to somebody who may be hostile; without it, BOTH. Each wants a target."""
    if protocol in _SIDES:
        raise ValueError(f"{protocol} is declared twice")
    _SIDES[protocol] = frozenset(sides)


def sides_of(protocol: str) -> frozenset[Side]:
    """Once `all_targets` has loaded them."""
    return _SIDES.get(protocol, BOTH)


def declared() -> frozenset[str]:
    return frozenset(_SIDES)


def target(protocol: str, side: Side, seeds: Callable[[], Sequence[bytes]]) -> Callable[[Run], Run]:
    """Register a function of one input."""

    def register(run: Run) -> Run:
        found = Target(protocol, side, run, seeds)
        if found.name in _TARGETS:
            raise ValueError(f"two targets {found.name}")
        _TARGETS[found.name] = found
        return run

    return register


def all_targets() -> dict[str, Target]:
    """By name. Loads every module of them."""
    import importlib
    import pkgutil

    import tests.fuzzing.protocols as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_TARGETS.items()))
