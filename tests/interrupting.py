"""Ctrl-C at a chosen instruction of the main thread: what a user hits once in thousands of times, every time."""

import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


def interrupted_everywhere(call: Callable[[], object]) -> Iterator[BaseException | None]:
    """Call it again and again, each time with a SIGINT one instruction later, until it ends before that one.

    Yields what each call raised: of what the SIGINT did to it, the test is the judge.
    """
    number = 0
    while True:
        number += 1
        left = number

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal left
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            if event in ("opcode", "return"):
                left -= 1
                if left == 0:
                    sys.settrace(None)
                    signal.raise_signal(signal.SIGINT)
            return trace

        raised, before = None, sys.gettrace()
        try:
            sys.settrace(trace)
            call()
        except KeyboardInterrupt as error:
            raised = error
        finally:
            sys.settrace(before)
        if left > 0:
            return
        yield raised
