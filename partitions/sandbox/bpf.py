"""A small assembler for classic BPF programs that judge system calls: struct sock_filter of linux/filter.h.

A program is a list of instructions that ends in a return on every path. `decide` arranges one program for each range
of system call numbers into a binary tree, so that no call costs more than a handful of comparisons, and so that the
kernel, which tries each number once when the filter is installed, can remember those that are allowed whatever their
arguments are, and does not run the filter for them again (Linux 5.11, seccomp_cache_prepare).
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_INSTRUCTION: Final = struct.Struct("=HBBI")  # code, jump if true, jump if false, operand

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP: Final = 0x05  # BPF_JMP | BPF_JA
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

# struct seccomp_data
_NUMBER_OFFSET: Final = 0
_PROCESSOR_OFFSET: Final = 4
_ARGUMENTS_OFFSET: Final = 16
_ARGUMENT_BYTES: Final = 8
_NEAR_MAX: Final = 255  # a conditional jump's distance is one byte

KILL_PROCESS: Final = 0x8000_0000
ERRNO: Final = 0x0005_0000
ALLOW: Final = 0x7FFF_0000

assert _INSTRUCTION.size == 8


@dataclass(frozen=True, slots=True)
class Instruction:
    code: int
    if_true: int
    if_false: int
    operand: int
    is_own_pid: bool = False  # the operand is the pid of whoever installs the program


Program = tuple[Instruction, ...]


def give(action: int) -> Program:
    return (Instruction(_RETURN, 0, 0, action),)


def _load(offset: int) -> Instruction:
    return Instruction(_LOAD, 0, 0, offset)


def _low_word(argument: int) -> Instruction:
    """Of a little-endian 64-bit argument; all that the kernel looks at where its own type is an int."""
    return _load(_ARGUMENTS_OFFSET + argument * _ARGUMENT_BYTES)


def if_argument_is(argument: int, values: Sequence[int], then: int, otherwise: int) -> Program:
    """Compares 32 bits."""
    body = [_low_word(argument)]
    for value in values:
        body += [Instruction(_EQUAL, 0, 1, value & 0xFFFF_FFFF), *give(then)]
    return (*body, *give(otherwise))


def if_argument_is_own_pid(argument: int, then: int, otherwise: int) -> Program:
    test = Instruction(_EQUAL, 0, 1, 0, is_own_pid=True)
    return (_low_word(argument), test, *give(then), *give(otherwise))


def if_argument_has(argument: int, all_of: int, none_of: int, then: int, otherwise: int) -> Program:
    """`all_of`: one bit, or 0 for none. 32 bits."""
    body = [_low_word(argument), Instruction(_ANY_BIT, 0, 1, none_of), *give(otherwise)]
    if all_of:
        body += [Instruction(_ANY_BIT, 1, 0, all_of), *give(otherwise)]
    return (*body, *give(then))


def decide(
    processor: int,
    programs: Mapping[int, Program],
    unlisted: Program,
    beyond: Program,
    beyond_number: int,
    foreign: Program,
) -> Program:
    """Judge by number.

    Args:
        processor: AUDIT_ARCH_*, the only one whose numbers these are.
        programs: by system call number.
        unlisted: for every other number below `beyond_number`.
        beyond: for those from there on: calls that are newer than our table.
        foreign: for calls by another processor's convention.
    """
    ranges: list[tuple[int, Program]] = []  # first number, program

    def begin(number: int, program: Program) -> None:
        if ranges and ranges[-1][0] == number:
            ranges.pop()
        if not ranges or ranges[-1][1] != program:
            ranges.append((number, program))

    begin(0, unlisted)
    for number in sorted(programs):
        begin(number, programs[number])
        begin(number + 1, unlisted)
    begin(beyond_number, beyond)
    return (
        _load(_PROCESSOR_OFFSET),
        Instruction(_EQUAL, len(foreign), 0, processor),
        *foreign,
        _load(_NUMBER_OFFSET),
        *_tree(ranges),
    )


def _tree(ranges: Sequence[tuple[int, Program]]) -> Program:
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    below, above = _tree(ranges[:middle]), _tree(ranges[middle:])
    first = ranges[middle][0]
    if len(below) <= _NEAR_MAX:
        return (Instruction(_AT_LEAST, len(below), 0, first), *below, *above)
    return (
        Instruction(_AT_LEAST, 0, 1, first),
        Instruction(_JUMP, 0, 0, len(below)),
        *below,
        *above,
    )


def assemble(program: Program, pid: int) -> bytes:
    """As the kernel takes it."""
    return b"".join(
        _INSTRUCTION.pack(one.code, one.if_true, one.if_false, pid if one.is_own_pid else one.operand)
        for one in program
    )


def run(program: Program, processor: int, number: int, arguments: Sequence[int], pid: int) -> int:
    """What the program returns for one call: the kernel's reading of it, for tests and for tables in the docs."""
    words = struct.pack("<IIQ6Q", number, processor, 0, *arguments, *[0] * (6 - len(arguments)))
    place = accumulator = 0
    while True:
        one = program[place]
        operand = pid if one.is_own_pid else one.operand
        place += 1
        match one.code:
            case code if code == _LOAD:
                (accumulator,) = struct.unpack_from("<I", words, operand)
            case code if code == _JUMP:
                place += operand
            case code if code == _EQUAL:
                place += one.if_true if accumulator == operand else one.if_false
            case code if code == _AT_LEAST:
                place += one.if_true if accumulator >= operand else one.if_false
            case code if code == _ANY_BIT:
                place += one.if_true if accumulator & operand else one.if_false
            case _:
                return operand
