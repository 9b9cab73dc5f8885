"""Checks a call's argument map against `runtime.call_arguments`, before anyone looks at it.

The map comes from a hostile partition: any value of any type may stand anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from runtime.abi import HvStatus, HypercallCode
from runtime.call_arguments import ARGUMENTS, Argument, Kind
from runtime.hypervisor.replies import Refused

_U64_MAX: Final = 2**64 - 1


def check(code: HypercallCode, given: object) -> dict[str, object]:
    """The complete arguments of a call: everything it declares and nothing else.

    Raises: Refused: INVALID_HYPERCALL_INPUT for a wrong shape, INVALID_PARAMETER beyond a limit.
    """
    declared = ARGUMENTS[code]
    if type(given) is not dict:
        raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
    if not all(isinstance(name, str) for name in given) or given.keys() - {entry.name for entry in declared}:
        raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
    return {entry.name: _value(entry, given) for entry in declared}


def _value(declared: Argument, given: dict[str, object]) -> object:
    if declared.name not in given:
        if declared.required:
            raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
        return declared.default
    value = given[declared.name]
    match declared.kind:
        case Kind.UINT:
            return _uint(value, declared.limit)
        case Kind.BYTES:
            if type(value) is not bytes:
                raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
            if len(value) > declared.limit:
                raise Refused(HvStatus.INVALID_PARAMETER)
            return value
        case Kind.UINTS:
            return [_uint(element, _U64_MAX) for element in _elements(value, declared.limit)]
        case Kind.PAIRS:
            pairs = [_elements(element, 2) for element in _elements(value, declared.limit)]
            if any(len(pair) != 2 for pair in pairs):
                raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
            return [(_uint(pair[0], _U64_MAX), _uint(pair[1], _U64_MAX)) for pair in pairs]
        case _:
            assert declared.kind is Kind.MAP
            if type(value) is not dict or not all(isinstance(key, str) for key in value):
                raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
            return value


def _uint(value: object, limit: int) -> int:
    if type(value) is not int:  # bool is an int to isinstance
        raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
    if not 0 <= value <= limit:
        raise Refused(HvStatus.INVALID_PARAMETER)
    return value


def _elements(value: object, limit: int) -> Sequence[object]:
    if type(value) is not list:
        raise Refused(HvStatus.INVALID_HYPERCALL_INPUT)
    if len(value) > limit:
        raise Refused(HvStatus.INVALID_PARAMETER)
    return value
