"""What the hypervisor tells a parent about a port or memory access of its child: intercept messages.

The types are `bus.synic.MessageType`'s, the sender is the child's partition id. Only the layouts are here: what
is intercepted, and how a parent answers, is docs/emulation.md's business.

Source: TLFS, HV_X64_INTERCEPT_MESSAGE_HEADER, HV_X64_IO_PORT_INTERCEPT_MESSAGE, HV_X64_MEMORY_INTERCEPT_MESSAGE;
openvmm, vm/hv1/hvdef/src/lib.rs.
"""

import enum
import struct
from dataclasses import dataclass
from typing import Final, Self

INTERCEPT_SINT: Final = 0  # of the parent's VP; no port may use it

# vp, instruction length | CR8 << 4, access, execution state, CS, RIP, RFLAGS
_HEADER: Final = struct.Struct("<IBBHQIHHQQ")
# port, access info, instruction bytes there are, 0, RAX, instruction, DS, ES, RCX, RSI, RDI
_PORT: Final = struct.Struct("<HBBIQ16sQIHHQIHHQQQ")
# cache type, instruction bytes there are, access info, TPR, 0, GVA, GPA, instruction
_MEMORY: Final = struct.Struct("<IBBBBQQ16s")
PORT_MESSAGE_BYTES: Final = _HEADER.size + _PORT.size
MEMORY_MESSAGE_BYTES: Final = _HEADER.size + _MEMORY.size

assert _HEADER.size == 40
assert PORT_MESSAGE_BYTES == 128
assert MEMORY_MESSAGE_BYTES == 80


class InterceptAccess(enum.IntEnum):
    """What the instruction was about to do."""

    READ = 0
    WRITE = 1
    EXECUTE = 2


class InterceptFormatError(ValueError):
    """Not such a message: nothing that a hypervisor sends."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register."""

    base: int
    limit: int
    selector: int
    attributes: int


# A partition is a process: one flat 64-bit address space, and nobody is more privileged than its only program.
LONG_MODE: Final = 1 << 2 | 1 << 4  # execution state: CPL 0, CR0.PE, EFER.LMA
FLAT_CODE: Final = Segment(0, 0xFFFF_FFFF, 0x10, 0xA09B)
FLAT_DATA: Final = Segment(0, 0xFFFF_FFFF, 0x18, 0xC093)

_STRING: Final = 1 << 3  # of the port message's access info; bits 2:0 are the size
_REPEATED: Final = 1 << 4
_ADDRESSES_VALID: Final = 0x3  # of the memory message's: GVA, and that it maps to the GPA
_UNCACHED: Final = 0


@dataclass(frozen=True, slots=True)
class InterceptHeader:
    """Bytes 0 to 39 of every x64 intercept."""

    vp: int
    instruction_length: int  # bytes; 0: not known
    access: InterceptAccess
    rip: int  # of the instruction, which has not been executed
    rflags: int

    def encode(self) -> bytes:
        return _HEADER.pack(
            self.vp,
            self.instruction_length,
            self.access,
            LONG_MODE,
            FLAT_CODE.base,
            FLAT_CODE.limit,
            FLAT_CODE.selector,
            FLAT_CODE.attributes,
            self.rip,
            self.rflags,
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        vp, length, access, _, _, _, _, _, rip, rflags = _HEADER.unpack_from(data)
        try:
            return cls(vp, length & 0xF, InterceptAccess(access), rip, rflags)
        except ValueError as error:
            raise InterceptFormatError(f"access {access}") from error


@dataclass(frozen=True, slots=True)
class PortIntercept:
    """IN, OUT, INS or OUTS."""

    header: InterceptHeader
    port: int
    size: int  # 1, 2 or 4 bytes
    is_string: bool
    is_repeated: bool  # RCX times
    instruction: bytes
    rax: int
    rcx: int
    rsi: int
    rdi: int

    def encode(self) -> bytes:
        info = self.size | (_STRING if self.is_string else 0) | (_REPEATED if self.is_repeated else 0)
        flat = (FLAT_DATA.base, FLAT_DATA.limit, FLAT_DATA.selector, FLAT_DATA.attributes)
        return self.header.encode() + _PORT.pack(
            self.port,
            info,
            len(self.instruction),
            0,
            self.rax,
            self.instruction,
            *flat,
            *flat,
            self.rcx,
            self.rsi,
            self.rdi,
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises InterceptFormatError."""
        if len(data) != PORT_MESSAGE_BYTES:
            raise InterceptFormatError(f"{len(data)} bytes; a port intercept has {PORT_MESSAGE_BYTES}")
        fields = _PORT.unpack_from(data, _HEADER.size)
        port, info, count, _, rax, instruction = fields[:6]
        rcx, rsi, rdi = fields[-3:]
        if info & 0x7 not in (1, 2, 4):
            raise InterceptFormatError(f"an access of {info & 0x7} bytes")
        return cls(
            InterceptHeader.decode(data),
            port,
            info & 0x7,
            bool(info & _STRING),
            bool(info & _REPEATED),
            instruction[:count],
            rax,
            rcx,
            rsi,
            rdi,
        )


@dataclass(frozen=True, slots=True)
class MemoryIntercept:
    """A load or store. What it stores is in a register that only the instruction names."""

    header: InterceptHeader
    gva: int
    gpa: int
    instruction: bytes

    def encode(self) -> bytes:
        return self.header.encode() + _MEMORY.pack(
            _UNCACHED, len(self.instruction), _ADDRESSES_VALID, 0, 0, self.gva, self.gpa, self.instruction
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises InterceptFormatError."""
        if len(data) != MEMORY_MESSAGE_BYTES:
            raise InterceptFormatError(f"{len(data)} bytes; a memory intercept has {MEMORY_MESSAGE_BYTES}")
        _, count, _, _, _, gva, gpa, instruction = _MEMORY.unpack_from(data, _HEADER.size)
        return cls(InterceptHeader.decode(data), gva, gpa, instruction[:count])


# -- instructions ------------------------------------------------------------------------------------------
# A process traps by a call that says what it wants. The message shows it as the instruction that a compiler would
# have made of it, with the operands where the message or the registers have them: port in DX, value in A, address
# in DI or SI.

_OPERAND_16: Final = b"\x66"
_WIDE: Final = b"\x48"  # REX.W
_REP: Final = b"\xf3"


def port_instruction(*, size: int, write: bool, string: bool) -> bytes:
    """IN or OUT with DX; REP INS or REP OUTS."""
    opcode = (0x6E if write else 0x6C) if string else (0xEE if write else 0xEC)
    prefix = (_REP if string else b"") + (_OPERAND_16 if size == 2 else b"")
    return prefix + bytes([opcode | (size > 1)])


def memory_instruction(*, size: int, write: bool) -> bytes:
    """MOV between A and [RDI]."""
    prefix = {1: b"", 2: _OPERAND_16, 4: b"", 8: _WIDE}[size]
    return prefix + bytes([(0x88 if write else 0x8A) | (size > 1), 0x07])


_MEMORY_SIZES: Final = {
    memory_instruction(size=size, write=write): size for size in (1, 2, 4, 8) for write in (False, True)
}


def memory_access_size(instruction: bytes) -> int | None:
    """Bytes that an instruction of `memory_instruction` moves. None: another instruction."""
    return _MEMORY_SIZES.get(instruction)
