"""Checks a call's argument map against `runtime.hypercalls.arguments`, before anyone looks at it.

The map comes from a hostile partition: any value of any type may stand anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from runtime.abi import HvStatus, HypercallCode
from runtime.hypercalls.arguments import ARGUMENTS, Argument, Kind
from runtime.hypervisor.replies import Refused

_U64_MAX: Final = 2**64 - 1
_MISSING: Final = object()
# of each argument: name, limit if it is an unsigned integer, and the whole of it
_Plan = tuple[tuple[str, int | None, Argument], ...]
_PLANS: Final[dict[HypercallCode, _Plan]] = {
    code: tuple((entry.name, entry.limit if entry.kind is Kind.UINT else None, entry) for entry in declared)
    for code, declared in ARGUMENTS.items()
}


def check(code: HypercallCode, given: object) -> dict[str, object]:
    """The complete arguments of a call: everything it declares and nothing else.

    Raises: Refused: INVALID_HYPERCALL_INPUT for a wrong shape, INVALID_PARAMETER beyond a limit.
    """
    if type(given) is not dict:
        raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
    values: dict[str, object] = {}
    known, is_beyond = 0, False
    for name, limit, declared in _PLANS[
        code
    ]:  # every call passes here: the usual kind is checked on the spot
        value = given.get(name, _MISSING)
        if value is _MISSING:
            if declared.required:
                raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
            value = declared.default
        else:
            known += 1
            if limit is None:
                value, is_within = _value(declared, value)
                is_beyond |= not is_within
            elif type(value) is not int:  # bool is an int to isinstance
                raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
            elif not 0 <= value <= limit:
                is_beyond = True
        values[name] = value
    if known != len(given):
        raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
    if is_beyond:
        raise Refused(HvStatus.INVALID_PARAMETER)
    return values


def _value(declared: Argument, value: object) -> tuple[object, bool]:
    """Of another kind than an unsigned integer; and whether it is within its limits."""
    match declared.kind:
        case Kind.BYTES:
            if type(value) is not bytes:
                raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
            return value, len(value) <= declared.limit
        case Kind.UINTS:
            elements = _elements(value)
            is_within = False not in [_is_u64(element) for element in elements]  # each is looked at
            return elements, is_within and len(elements) <= declared.limit
        case Kind.PAIRS:
            pairs = [_elements(element) for element in _elements(value)]
            if any(len(pair) < 2 for pair in pairs):
                raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
            is_within = False not in [_is_u64(element) for pair in pairs for element in pair]
            is_within &= len(pairs) <= declared.limit and all(len(pair) == 2 for pair in pairs)
            return [(pair[0], pair[1]) for pair in pairs], is_within
        case _:
            assert declared.kind is Kind.MAP
            if type(value) is not dict or not all(isinstance(key, str) for key in value):
                raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
            return value, True


def _is_u64(value: object) -> bool:
    if type(value) is not int:
        raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
    return 0 <= value <= _U64_MAX


def _elements(value: object) -> Sequence[object]:
    if type(value) is not list:
        raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
    return value
