"""The registers of a processor of machine code, as bytes, whatever emulator they were read from.

    u32 version, u32 mode, u32 count, then of each register: u32 length, its bytes, little-endian

The registers are those of its mode, in the order of `register_names`. What no instruction can read is not here: the
hidden parts of segment registers are loaded again, from the tables in memory or, in real mode, from the segment itself.
"""

import enum
import struct
from collections.abc import Callable
from typing import Any, Final

_HEAD: Final = struct.Struct("<III")
_LENGTH: Final = struct.Struct("<I")
_TABLE: Final = struct.Struct("<HQII")  # selector, base, limit, flags
_VERSION: Final = 1
_FLOAT: Final = struct.Struct("<QH")  # of 80 bits: mantissa, sign and exponent
_INTEGER_BYTES: Final = 8
_XMM_BYTES: Final = 16


class MachineCodeError(Exception):
    """The code cannot be run, or did what no processor goes on after. One line."""


class Mode(enum.IntEnum):
    """What the processor starts in."""

    REAL = 16
    PROTECTED = 32
    LONG = 64


_TABLES: Final = ("GDTR", "IDTR", "LDTR", "TR")
_SEGMENTS: Final = ("CS", "DS", "ES", "FS", "GS", "SS")
_FLOATS: Final = tuple(f"FP{number}" for number in range(8))


def register_names(mode: Mode) -> tuple[str, ...]:
    """In the order in which they are set: what says how the rest is understood comes first."""
    general = ("AX", "BX", "CX", "DX", "SI", "DI", "SP", "BP")
    letter = "R" if mode is Mode.LONG else "E"
    return (
        *(_TABLES[:2] if mode is Mode.REAL else _TABLES),
        "CR0",
        "CR2",
        "CR3",
        "CR4",
        *_SEGMENTS,
        *(("FS_BASE", "GS_BASE") if mode is Mode.LONG else ()),
        *(f"{letter}{name}" for name in general),
        *((f"R{number}" for number in range(8, 16)) if mode is Mode.LONG else ()),
        f"{letter}IP",
        "EFLAGS",
        "FPCW",
        "FPSW",
        "FPTAG",
        *_FLOATS,
        "MXCSR",
        *(f"XMM{number}" for number in range(16 if mode is Mode.LONG else 8)),
    )


def _encode(name: str, value: Any) -> bytes:
    if name in _TABLES:
        return _TABLE.pack(*value)
    if name in _FLOATS:
        return _FLOAT.pack(*value)
    return int(value).to_bytes(_bytes_of(name), "little")


def _decode(name: str, data: bytes) -> Any:
    if name in _TABLES:
        return _TABLE.unpack(data)
    if name in _FLOATS:
        return _FLOAT.unpack(data)
    if len(data) != _bytes_of(name):
        raise ValueError(f"{name} of {len(data)} bytes")
    return int.from_bytes(data, "little")


def _bytes_of(name: str) -> int:
    return _XMM_BYTES if name.startswith("XMM") else _INTEGER_BYTES


def save_registers(processor: Any, constants: Any, mode: Mode) -> bytes:
    """`processor`: an emulator that does not run; `constants`: its names of registers."""
    names = register_names(mode)
    parts = [_HEAD.pack(_VERSION, mode, len(names))]
    for name in names:
        data = _encode(name, processor.reg_read(_number(constants, name)))
        parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)


def restore_registers(processor: Any, constants: Any, mode: Mode, state: bytes) -> None:
    """Raises MachineCodeError: nothing was set, unless the emulator itself refuses a value."""
    names = register_names(mode)
    try:
        version, saved_mode, count = _HEAD.unpack_from(state)
        if (version, saved_mode, count) != (_VERSION, mode, len(names)):
            raise ValueError(f"version {version}, {saved_mode} bits, {count} registers")
        at, values = _HEAD.size, []
        for name in names:
            (length,) = _LENGTH.unpack_from(state, at)
            at += _LENGTH.size
            values.append(_decode(name, state[at : at + length]))
            at += length
        if at != len(state):
            raise ValueError("more bytes than registers")
    except (ValueError, struct.error) as error:
        raise MachineCodeError(f"what was saved are no registers of this processor: {error}") from error
    write: Callable[[int, Any], None] = processor.reg_write
    try:
        for name, value in zip(names, values, strict=True):
            # A segment that the code has never loaded has no table to be loaded from.
            if name not in _SEGMENTS or processor.reg_read(_number(constants, name)) != value:
                write(_number(constants, name), value)
    except Exception as error:  # the emulator's own kind: a selector whose table is not there, for instance
        raise MachineCodeError(f"the processor cannot go on: {error}") from error


def _number(constants: Any, name: str) -> int:
    return int(getattr(constants, f"UC_X86_REG_{name}"))
