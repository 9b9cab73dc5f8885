"""A test waits for what another thread or process does: as long as a slow machine may take, and no longer."""

import time
from collections.abc import Callable
from typing import Final

WAIT_S: Final = 30.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
