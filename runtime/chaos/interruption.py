"""Ctrl-C while machines are under way: heeded in waits; anywhere else it is kept until the next one.

Python raises KeyboardInterrupt between any two instructions of the main thread: when a lock has just been taken, and
nobody stands ready yet to give it back; when a machine has just been started, and nobody has it yet who would end it.
Whoever tidies up behind that waits forever, or does not know of it. A wait is where an interruption finds nothing
half done, and where nearly all of the time goes.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final, TypeVar

Result = TypeVar("Result")

_ENDING: Final = (signal.SIGINT, signal.SIGTERM)  # the second only for who has made it the same


class _Kept:
    """Its handler runs in the main thread, between two instructions of what is below."""

    __slots__ = ("is_pending", "is_waiting")

    def __init__(self) -> None:
        self.is_pending = self.is_waiting = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_waiting:
            raise KeyboardInterrupt
        self.is_pending = True


_kept: _Kept | None = None


@contextlib.contextmanager
def interrupts_kept() -> Iterator[None]:
    """Within, Ctrl-C raises KeyboardInterrupt in `heeding`; or, if no other comes, when this is left.

    Nothing changes where Ctrl-C raises nothing (it is ignored, or this is not the main thread), and within another.
    """
    global _kept
    numbers = [number for number in _ENDING if signal.getsignal(number) is signal.default_int_handler]
    if _kept is not None or not numbers or threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = _Kept()
    try:
        for number in numbers:
            signal.signal(number, kept.handle)
        _kept = kept
        yield
    finally:
        _kept = None
        for number in numbers:
            signal.signal(number, signal.default_int_handler)
    if kept.is_pending:
        raise KeyboardInterrupt


def heeding(wait: Callable[[], Result]) -> Result:
    """Wait so. It may be left at any instruction: it must take nothing that it would have to give back."""
    kept = _kept
    if kept is None or threading.current_thread() is not threading.main_thread():
        return wait()
    try:
        kept.is_waiting = True
        if kept.is_pending:
            kept.is_pending = False
            raise KeyboardInterrupt
        return wait()
    finally:
        kept.is_waiting = False
