"""The direct way of an intercept: a page that a partition shares with its parent, and a doorbell each way.

    +0   sequence u32 of the request, +4 its message type u32, +8 its bytes u32      the child writes these
    +64  the message, as the hypervisor would have made it
    +256 sequence u32 of the answer, +264 RAX, RCX, address, RIP u64 each             the parent writes these

One request at a time: the child writes the message, then the sequence, then rings. The parent copies the message once,
writes the answer, then its sequence, then rings. (x86 keeps the order of stores, and a doorbell is a system call.)
What stands here outlives both processes, so a parent's successor finds a request that was not answered.
"""

import struct
from typing import Final, NamedTuple

INTERCEPT_PAGE_BYTES: Final = 4096
_MESSAGE_AT: Final = 64
MESSAGE_BYTES_MAX: Final = 128
_ANSWER_AT: Final = 256
_REQUEST: Final = struct.Struct("<III")
_SEQUENCE: Final = struct.Struct("<I")
_ANSWER: Final = struct.Struct("<QQQQ")
assert _MESSAGE_AT + MESSAGE_BYTES_MAX <= _ANSWER_AT


class DirectAnswer(NamedTuple):
    """Registers with which the VP goes on. RIP where it was: the instruction is executed again."""

    rax: int
    rcx: int
    address: int
    rip: int


class DirectRequest(NamedTuple):
    """A message that a child wrote. Nothing of it is checked."""

    sequence: int
    message_type: int
    payload: bytes


class InterceptPage:
    """The page, from either side."""

    def __init__(self, memory: memoryview) -> None:
        if len(memory) != INTERCEPT_PAGE_BYTES:
            raise ValueError(f"{len(memory)} bytes; an intercept page has {INTERCEPT_PAGE_BYTES}")
        self._memory = memory

    # -- the child

    def ask(self, message_type: int, payload: bytes) -> int:
        """Leave a request; then ring. Its sequence, which `answer` wants."""
        (last,) = _SEQUENCE.unpack_from(self._memory, 0)
        sequence = (last + 1) & 0xFFFF_FFFF
        self._memory[_MESSAGE_AT : _MESSAGE_AT + len(payload)] = payload
        _REQUEST.pack_into(self._memory, 0, last, message_type, len(payload))
        _SEQUENCE.pack_into(self._memory, 0, sequence)
        return int(sequence)

    def answer(self, sequence: int) -> DirectAnswer | None:
        """None: not yet."""
        if _SEQUENCE.unpack_from(self._memory, _ANSWER_AT)[0] != sequence:
            return None
        return DirectAnswer(*_ANSWER.unpack_from(self._memory, _ANSWER_AT + 8))

    # -- the parent

    def request(self) -> DirectRequest | None:
        """What is not answered yet. Copied: the child can write here whenever it likes."""
        sequence, message_type, length = _REQUEST.unpack_from(self._memory, 0)
        if sequence == _SEQUENCE.unpack_from(self._memory, _ANSWER_AT)[0]:
            return None
        length = min(length, MESSAGE_BYTES_MAX)
        payload = bytes(self._memory[_MESSAGE_AT : _MESSAGE_AT + length])
        return DirectRequest(sequence, message_type, payload)

    def reply(self, sequence: int, answer: DirectAnswer) -> None:
        """Then ring."""
        _ANSWER.pack_into(self._memory, _ANSWER_AT + 8, *answer)
        _SEQUENCE.pack_into(self._memory, _ANSWER_AT, sequence)
