"""This process on one processor for a while."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
