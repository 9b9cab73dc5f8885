"""A thread that waits on a channel, and whether it has ended."""

import threading
from collections.abc import Callable
from typing import Final

PATIENCE_S: Final = 60


def started(target: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def ended(thread: threading.Thread) -> bool:
    thread.join(PATIENCE_S)
    return not thread.is_alive()
