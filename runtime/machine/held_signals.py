"""Signals that ask a machine to end, held back while nobody could obey them.

From before a machine's folder is made until somebody listens, and again from when nobody listens any more until the
folder is gone: there a signal would end the process where it stands, and leave the folder behind. What was held is
obeyed as soon as somebody listens, or kills us when all is tidied up. Children inherit what is held, so none is
started meanwhile but the janitor, who ignores these signals anyway.

Source: pthread_sigmask(3), signal(7).
"""

import contextlib
import signal
from collections.abc import Iterator
from typing import Final

ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """Of this thread, which must be the one that all signals go to: there are no others yet."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def obeyed_signals() -> Iterator[None]:
    """While somebody listens. Within `held_signals`; else nothing changes."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
