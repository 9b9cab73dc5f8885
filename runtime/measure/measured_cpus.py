"""Which two CPUs a benchmark's sides are pinned to."""

import os

from runtime.exits import CommandError


def two_cpus(asked: tuple[int, int] | None = None) -> tuple[int, int]:
    """Those, or the first two that this process may use. CommandError: it has only one."""
    if asked is not None:
        return asked
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise CommandError("two CPUs are needed, and this process may use only one")
    return allowed[0], allowed[1]
