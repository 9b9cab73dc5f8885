"""What code can do to the process that it runs in, and from there to others: each bounded, so that no host suffers.

Every function takes a seed and returns what it brought about, where it returns at all. A limit that was met is told as
{"stopped_by": ...}: the text of the kernel's refusal, or OURS where nobody but us stopped it.
"""

import contextlib
import ctypes
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

LEAK_BYTES_MAX: Final = 512 << 20
PROCESSES_MAX: Final = 200
DESCRIPTORS_MAX: Final = 1 << 16
PAGES_MAX: Final = 1 << 17  # that are written to
LIFE_S: Final = 10  # of a process that hangs or spins, and of each that a bomb made
OURS: Final = "nobody but the experiment's own bound"

_CHUNKS_BYTES: Final = (8 << 20, 256 << 10, 16 << 10)  # ever smaller, so that really little is left
_RESERVE_BYTES: Final = 1 << 20  # given back, so that what was done can be written down
_SPLASH_BYTES: Final = 64  # written into each page
_PAGE_BYTES: Final = 4096
_PR_SET_PDEATHSIG: Final = 1
_hoard: Final[list[Any]] = []  # what is leaked is held by somebody

Did = Mapping[str, Any]


def crash(_seed: int) -> Did:
    """A null pointer."""
    resource.setrlimit(
        resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1])
    )  # no image of it
    ctypes.memset(0, 0, 1)
    return {}


def hang(_seed: int) -> Did:
    """The whole process stands still: this thread never gives the interpreter's lock back."""
    _die_later()
    still = ctypes.PyDLL(None)
    while True:
        still.pause()


def spin(_seed: int) -> Did:
    """This thread computes for ever; others of the process still get a turn now and then."""
    _die_later()
    while True:
        pass


def leak_memory(_seed: int) -> Did:
    """Until there is none, and then goes on without."""
    leaked, stopped_by = 0, OURS
    reserve = bytearray(_RESERVE_BYTES)
    for chunk in _CHUNKS_BYTES:
        try:
            while leaked + chunk <= LEAK_BYTES_MAX:
                _hoard.append(b"\xee" * chunk)
                leaked += chunk
        except MemoryError:
            stopped_by = "MemoryError"
    del reserve
    return {"bytes": leaked, "stopped_by": stopped_by}


def exhaust_descriptors(_seed: int) -> Did:
    """Until there is none, and then goes on without."""
    opened, stopped_by = 0, OURS
    try:
        while opened < DESCRIPTORS_MAX:
            _hoard.append(os.dup(2))
            opened += 1
    except OSError as error:
        stopped_by = _text(error)
    return {"descriptors": opened, "stopped_by": stopped_by}


def bomb(_seed: int) -> Did:
    """Processes; where there can be none, threads."""
    libc = ctypes.CDLL(None)
    forked, stopped_by = 0, OURS
    try:
        while forked < PROCESSES_MAX:
            if not os.fork():
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                signal.alarm(LIFE_S)
                while True:
                    libc.pause()
            forked += 1
    except OSError as error:
        stopped_by = _text(error)
    if forked:
        return {"processes": forked, "stopped_by": stopped_by}
    started, threads_stopped_by = 0, OURS
    try:
        while started < PROCESSES_MAX:
            threading.Thread(target=time.sleep, args=(LIFE_S,), daemon=True).start()
            started += 1
    except (RuntimeError, MemoryError) as error:
        threads_stopped_by = _text(error)
    return {
        "processes": 0,
        "stopped_by": stopped_by,
        "threads": started,
        "threads_stopped_by": threads_stopped_by,
    }


def write_wildly(seed: int) -> Did:
    """Some random bytes into every page that can be written: what is shared with others first, then our own.

    The latter is what an interpreter lives in: it seldom returns.
    """
    _die_later()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    rng = random.Random(seed)
    left = PAGES_MAX
    regions = list(_writable())
    for shared in (True, False):
        for start, pages, is_shared in regions:
            if is_shared != shared:
                continue
            for page in range(min(pages, left)):
                splash = rng.randbytes(_SPLASH_BYTES)
                at = start + page * _PAGE_BYTES + rng.randrange(_PAGE_BYTES - _SPLASH_BYTES)
                ctypes.memmove(at, splash, _SPLASH_BYTES)
            left -= min(pages, left)
    signal.alarm(0)  # it lives
    return {"pages": PAGES_MAX - left}


def _writable() -> Iterator[tuple[int, int, bool]]:
    """(address, pages, shared?) of shared memory, the heap and other anonymous memory; not of stacks and libraries."""
    with open("/proc/self/maps") as maps:
        lines = maps.read().splitlines()
    for line in lines:
        span, permissions, _, _, _, *path = line.split(maxsplit=5)
        start, end = (int(edge, 16) for edge in span.split("-"))
        shared = permissions[3] == "s"
        if permissions[1] == "w" and (shared or not path or path[0] == "[heap]"):
            yield start, (end - start) // _PAGE_BYTES, shared


def _die_later() -> None:
    """Nobody may find out that we hang; and even a host that is left alone with us is rid of us after a while."""
    with contextlib.suppress(ValueError, OSError):
        signal.alarm(LIFE_S)


def _text(error: BaseException) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else f"{error}"


if sys.platform != "linux":  # /proc, prctl
    raise ImportError("it knows Linux alone")
