"""What the walls cost a partition: from the fork to where its program would begin, with them and without, in pairs.

    python -m partitions.sandbox.cost [PAIRS]

Prints JSON, in microseconds: of the clock, and of processor time, which a busy host does not stretch. Each pair is two
processes forked one after the other from the same parent, which has imported what the zygote has. The difference within
pairs counts; its ninth decile says how noisy the host was. Then what the filter adds to a doorbell's
system call, a write to an eventfd, in nanoseconds of processor time.
"""

import gc
import json
import os
import statistics
import sys
import time
from typing import Final

import partitions.guest_modules
from partitions.sandbox import apply, limits
from partitions.sandbox.profiles import Profile
from partitions.sandbox.readable import of_this_interpreter

PAIRS: Final = 50
_GRANT: Final = limits.Grant(pages=4096, vps=1, files=0)
_STAMP_BYTES: Final = 8
_DOORBELLS: Final = 50_000
_DOORBELL_PAIRS_MAX: Final = 10


def _fork_to_first_line_us(*, sandboxed: bool) -> tuple[float, float]:
    """By the clock, and of the new process's processor time."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    begun_ns = time.monotonic_ns()
    pid = os.fork()
    if pid == 0:
        try:
            if sandboxed:
                apply.enter(Profile.GUEST, of_this_interpreter(), [write_end], _GRANT)
            stamps = time.monotonic_ns(), time.process_time_ns()
            os.write(write_end, b"".join(stamp.to_bytes(_STAMP_BYTES, "little") for stamp in stamps))
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        clock, used = pipe.read(_STAMP_BYTES), pipe.read(_STAMP_BYTES)
    os.waitpid(pid, 0)
    return (int.from_bytes(clock, "little") - begun_ns) / 1000, int.from_bytes(used, "little") / 1000


def _doorbell_ns(*, sandboxed: bool) -> float:
    """Of processor time, for one write to an eventfd."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            doorbell = os.eventfd(0, os.EFD_NONBLOCK)
            if sandboxed:
                apply.enter(Profile.GUEST, of_this_interpreter(), [doorbell, write_end], _GRANT)
            begun_ns = time.process_time_ns()
            for _ in range(_DOORBELLS):
                os.eventfd_write(doorbell, 1)
            used_ns = time.process_time_ns() - begun_ns
            os.write(write_end, used_ns.to_bytes(_STAMP_BYTES, "little"))
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        used = pipe.read()
    os.waitpid(pid, 0)
    return int.from_bytes(used, "little") / _DOORBELLS


def measure(pairs: int) -> dict[str, float]:
    partitions.guest_modules.preload()
    apply.prepare()
    gc.collect()
    gc.freeze()
    with_us: list[tuple[float, float]] = []
    without_us: list[tuple[float, float]] = []
    for number in range(pairs):
        for sandboxed in (True, False) if number % 2 else (False, True):
            taken = with_us if sandboxed else without_us
            taken.append(_fork_to_first_line_us(sandboxed=sandboxed))
    clock, used = (
        [one[which] - other[which] for one, other in zip(with_us, without_us, strict=True)]
        for which in (0, 1)
    )
    calls = [
        (_doorbell_ns(sandboxed=True), _doorbell_ns(sandboxed=False))
        for _ in range(min(pairs, _DOORBELL_PAIRS_MAX))
    ]
    return {
        "pairs": pairs,
        "with_us_p50": statistics.median(taken for taken, _ in with_us),
        "without_us_p50": statistics.median(taken for taken, _ in without_us),
        "difference_us_p50": statistics.median(clock),
        "difference_us_p90": statistics.quantiles(clock, n=10)[-1],
        "processor_time_us_p50": statistics.median(used),
        "processor_time_us_p90": statistics.quantiles(used, n=10)[-1],
        "doorbell_without_ns_p50": statistics.median(without for _, without in calls),
        "doorbell_difference_ns_p50": statistics.median(taken - without for taken, without in calls),
    }


if __name__ == "__main__":
    json.dump(measure(int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS), sys.stdout, indent=2)
