"""Bytes in shared memory; what differs is how one side learns that the other has written.

Python has no fences. Its indexes are aligned 64-bit words, and x86 keeps stores in order: that is enough there.
"""

import ctypes
import mmap
import os
import platform
from typing import Final

from runtime.config.model import WaitingKind
from runtime.measure.transport import Answer, Impossible, Transport

_LINE: Final = 64  # bytes of a cache line
_RING_SLOTS: Final = 8
_FUTEX_WAIT: Final = 0
_FUTEX_WAKE: Final = 1
_FUTEX_NUMBERS: Final = {"x86_64": 202, "aarch64": 98}  # of the system call


class _SpinRing:
    """One writer, one reader, slots of one size; two indexes that only grow, each on a line of its own."""

    def __init__(self, memory: memoryview, slot_bytes: int) -> None:
        self._index = memory[: 2 * _LINE].cast("Q")
        self._data, self._slot = memory[2 * _LINE :], slot_bytes
        self._mine = 0  # how many this side has written, or read

    @staticmethod
    def bytes_for(slot_bytes: int) -> int:
        return 2 * _LINE + _RING_SLOTS * slot_bytes

    def put(self, data: bytes) -> None:
        index, mine = self._index, self._mine
        while mine - index[8] == _RING_SLOTS:
            pass
        at = mine % _RING_SLOTS * self._slot
        self._data[at : at + self._slot] = data
        self._mine = index[0] = mine + 1

    def take(self) -> bytes:
        index, mine = self._index, self._mine
        while index[0] == mine:
            pass
        at = mine % _RING_SLOTS * self._slot
        data = bytes(self._data[at : at + self._slot])
        self._mine = index[8] = mine + 1
        return data


class PythonSpinRingTransport(Transport):
    """A ring for each direction, in pure Python, both sides spinning."""

    name, group, waiting = "python-spin-ring", "shared memory", WaitingKind.SPIN

    def open(self, payload_bytes: int) -> None:
        each = _SpinRing.bytes_for(payload_bytes)
        whole = memoryview(mmap.mmap(-1, 2 * each))
        self._requests = _SpinRing(whole[:each], payload_bytes)
        self._replies = _SpinRing(whole[each:], payload_bytes)

    def serve(self, answer: Answer) -> None:
        while True:
            self._replies.put(answer(self._requests.take()))

    def exchange(self, request: bytes) -> bytes:
        self._requests.put(request)
        return self._replies.take()


class _SharedBuffers(Transport):
    """A buffer for each direction, of which one message uses the whole."""

    group = "shared memory"

    def open(self, payload_bytes: int) -> None:
        self._size = payload_bytes
        self._words = mmap.mmap(-1, mmap.PAGESIZE)
        self._whole = memoryview(mmap.mmap(-1, 2 * payload_bytes))
        self._requests, self._replies = self._whole[:payload_bytes], self._whole[payload_bytes:]


class EventfdTransport(_SharedBuffers):
    """Two eventfds say whose turn it is."""

    name = "eventfd"

    def open(self, payload_bytes: int) -> None:
        super().open(payload_bytes)
        self._to_server, self._to_client = os.eventfd(0), os.eventfd(0)

    def serve(self, answer: Answer) -> None:
        while True:
            os.eventfd_read(self._to_server)
            self._replies[:] = answer(bytes(self._requests))
            os.eventfd_write(self._to_client, 1)

    def exchange(self, request: bytes) -> bytes:
        self._requests[:] = request
        os.eventfd_write(self._to_server, 1)
        os.eventfd_read(self._to_client)
        return bytes(self._replies)

    def close(self) -> None:
        os.close(self._to_server)
        os.close(self._to_client)


class FutexTransport(_SharedBuffers):
    """One word for each direction, by the futex system call through ctypes. Source: futex(2)."""

    name = "futex"

    def open(self, payload_bytes: int) -> None:
        super().open(payload_bytes)
        number = _FUTEX_NUMBERS.get(platform.machine())
        if number is None:
            raise Impossible(f"the futex system call's number on {platform.machine()} is not known here")
        self._number = ctypes.c_long(number)
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._to_server = ctypes.c_uint32.from_buffer(self._words, 0)
        self._to_client = ctypes.c_uint32.from_buffer(self._words, _LINE)
        self._seen = 0

    def serve(self, answer: Answer) -> None:
        while True:
            self._wait(self._to_server)
            self._replies[:] = answer(bytes(self._requests))
            self._wake(self._to_client)

    def exchange(self, request: bytes) -> bytes:
        self._requests[:] = request
        self._wake(self._to_server)
        self._wait(self._to_client)
        return bytes(self._replies)

    def _wake(self, word: ctypes.c_uint32) -> None:
        word.value += 1
        self._syscall(self._number, ctypes.byref(word), _FUTEX_WAKE, 1, None, None, 0)

    def _wait(self, word: ctypes.c_uint32) -> None:
        seen = self._seen
        while word.value == seen:  # the kernel looks again before it puts us to sleep
            self._syscall(self._number, ctypes.byref(word), _FUTEX_WAIT, ctypes.c_uint32(seen), None, None, 0)
        self._seen = (seen + 1) & 0xFFFF_FFFF
