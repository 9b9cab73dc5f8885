"""Any hypercall with any arguments, from the one table that says what each takes: a new call is called at once."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

from runtime.abi import ALL_PRIVILEGES, VP_ANY, VP_SELF, HypercallCode
from runtime.hypercalls.arguments import ARGUMENTS, Argument, Kind
from runtime.simulation.actions import Action, ActionKind

_CODES: Final = tuple(HypercallCode)
_UINTS: Final = (
    0,
    0,
    0,
    1,
    1,
    2,
    3,
    4,
    7,
    16,
    0x1000,
    0x20002,
    0x10000,
    2**24,
    VP_ANY,
    VP_SELF,
    2**40,
    2**63,
)
_MISFITS: Final[tuple[object, ...]] = (None, -1, 2**64, 1.5, True, b"x", [], {}, [[]], ["a"])
_MISFIT_SHARE: Final = 0.06
_REGISTERS: Final = (
    0,
    0x9_0003,
    0x9_0004,
    0xA_0002,
    0xA_0010,
    0xA_0012,
    0xA_0013,
    0xA_0014,
    0xB_0000,
    0xB_0001,
)
_VALUES: Final = (0, 1, 0x20, 0x1001, 1 << 16, int(ALL_PRIVILEGES), 2**64 - 1)


def wild_call(rng: Random, who: str, somebody: Callable[[], str]) -> Action:
    """Mostly of a possible shape, so that it gets past the first check. `somebody`: labels of partitions."""
    if rng.random() < _MISFIT_SHARE:
        return Action(
            ActionKind.CALL, who, code=rng.choice((*_MISFITS, 0, 0x42, 0x8FFF)), args=rng.choice(_MISFITS)
        )
    code = rng.choice(_CODES)
    args: dict[str, Any] = {}
    for argument in ARGUMENTS[code]:
        if not argument.required and rng.random() < 0.5:
            continue
        if "partition" in argument.name and rng.random() < 0.9:
            args[argument.name] = somebody()
        elif rng.random() < _MISFIT_SHARE:
            args[argument.name] = rng.choice(_MISFITS)
        else:
            args[argument.name] = _value(rng, argument)
    return Action(
        ActionKind.CALL, who, 0, int(code), args, rng.choice((0, 0, 0, 1, 16)), rng.choice((0, 0, 1, 2))
    )


def _value(rng: Random, argument: Argument) -> object:
    match argument.kind:
        case Kind.UINT:
            return rng.choice(_UINTS)
        case Kind.BYTES:
            return rng.randbytes(rng.choice((0, 1, 8, 200, argument.limit, argument.limit + 1)))
        case Kind.UINTS:
            return [rng.choice(_REGISTERS) for _ in range(rng.randrange(4))]
        case Kind.PAIRS:
            return [[rng.choice(_REGISTERS), rng.choice(_VALUES)] for _ in range(rng.randrange(4))]
        case Kind.MAP:
            return rng.choice(({}, {"module": "a.b", "name": "twin"}, {"module": "a.b"}, {"name": 1}))
        case _:
            return "text"
