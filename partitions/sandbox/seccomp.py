"""The filter of system calls: built once for each kind of partition, patched with a pid, installed."""

import ctypes
from functools import cache
from typing import Final

from partitions.sandbox import bpf, kernel, rules, syscalls
from partitions.sandbox.profiles import Profile

_SET_MODE_FILTER: Final = 1
_FLAG_SPEC_ALLOW: Final = (
    1 << 2
)  # no slow-downs against speculation that processes without a filter do not have either
_INSTRUCTION_BYTES: Final = 8
INSTRUCTIONS_MAX: Final = 4096  # BPF_MAXINSNS


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("count", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


@cache
def program_of(profile: Profile) -> bpf.Program:
    program = bpf.decide(
        syscalls.AUDIT_ARCH_X86_64,
        rules.programs(profile),
        unlisted=bpf.give(rules.REFUSED),
        beyond=bpf.give(rules.UNKNOWN),
        beyond_number=syscalls.UNKNOWN_FROM,
        foreign=bpf.give(rules.HOSTILE),
    )
    assert len(program) <= INSTRUCTIONS_MAX
    return program


@cache
def _assembled(profile: Profile) -> tuple[bytes, tuple[int, ...]]:
    """And where in it the pid goes, in bytes."""
    program = program_of(profile)
    places = tuple(
        index * _INSTRUCTION_BYTES + _INSTRUCTION_BYTES - 4
        for index, instruction in enumerate(program)
        if instruction.is_own_pid
    )
    return bpf.assemble(program, 0), places


def prepare(profile: Profile) -> None:
    """Build it."""
    if syscalls.are_known_here():
        _assembled(profile)


def install(profile: Profile, pid: int) -> None:
    """On this thread, and on all that it starts. For good. OSError: it is not in force."""
    if not syscalls.are_known_here():
        raise OSError(0, f"there is no table of system calls for any processor but {syscalls.MACHINE}")
    assembled, places = _assembled(profile)
    patched = bytearray(assembled)
    for place in places:
        patched[place : place + 4] = pid.to_bytes(4, "little")
    filter_program = _FilterProgram(len(patched) // _INSTRUCTION_BYTES, bytes(patched))
    kernel.syscall(
        "seccomp", syscalls.SECCOMP, _SET_MODE_FILTER, _FLAG_SPEC_ALLOW, ctypes.byref(filter_program)
    )
