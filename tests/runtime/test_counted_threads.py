"""What a limit of processes is held against: the kernel says so itself, by the one more that it refuses or allows."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

import pytest

from runtime.chaos.faults.counted_threads import counted_threads

_THREADS: Final = 3
_NOBODY: Final = 65534  # whom no limit exempts, as it does root
# Three threads wait, in a user namespace of their own. Each line on stdin is a limit; whether one more thread starts
# under it is a line on stdout.
_PROGRAM: Final = f"""
import ctypes, os, resource, sys, threading
if os.getuid() == 0:
    os.setuid({_NOBODY})
if ctypes.CDLL(None).unshare(0x1000_0000):
    sys.exit()
waits = threading.Event().wait
for _ in range({_THREADS - 1}):
    threading.Thread(target=waits, daemon=True).start()
print("here", flush=True)
for line in sys.stdin:
    resource.setrlimit(resource.RLIMIT_NPROC, (int(line), resource.getrlimit(resource.RLIMIT_NPROC)[1]))
    try:
        threading.Thread(target=waits, daemon=True).start()
        print("started", flush=True)
    except RuntimeError:
        print("refused", flush=True)
"""


@pytest.fixture
def process() -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", _PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        try:
            if not one.stdout.readline():
                pytest.skip("this host allows no user namespace")
            yield one
        finally:
            one.kill()


def test_it_is_the_number_at_which_no_more_starts(process: "subprocess.Popen[str]") -> None:
    """However many processes the same user has elsewhere."""
    counted = counted_threads(process.pid)
    assert counted == _THREADS
    assert process.stdin is not None
    assert process.stdout is not None
    for limit, answer in ((counted, "refused"), (counted + 1, "started"), (counted + 1, "refused")):
        process.stdin.write(f"{limit}\n")
        process.stdin.flush()
        assert process.stdout.readline().strip() == answer


def test_those_of_namespaces_within_count_and_those_around_do_not(process: "subprocess.Popen[str]") -> None:
    with subprocess.Popen(["sleep", "60"], user=_NOBODY if os.geteuid() == 0 else None) as around:
        try:
            assert counted_threads(around.pid) >= 1 + _THREADS
            assert counted_threads(process.pid) == _THREADS
        finally:
            around.kill()


def test_who_has_ended_counts_for_nothing(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    with pytest.raises(ProcessLookupError):
        counted_threads(process.pid)
