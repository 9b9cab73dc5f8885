"""What each fault of a living process does to it and to a guest, on a machine that runs. None of them dies of it."""

import contextlib
import os
import resource
from collections.abc import Iterator
from typing import Any, Final

import psutil

from tests.machine.probed_machine import DISK, PROBE, ProbedMachine, soon
from tests.machine.probing_guest import content

_DELAY_MS: Final = 5
_STOPPED: Final = psutil.STATUS_STOPPED


def stop(machine: ProbedMachine) -> None:
    with machine.armed("stop", PROBE) as fault:
        assert soon(lambda: machine.victim(PROBE).status() == _STOPPED)
        asked = machine.start("signals")
        healed_ns = fault.heal()
        assert asked.answer()["done_ns"] > healed_ns


def _is_stopped_now_and_then(machine: ProbedMachine, kind: str, **parameters: Any) -> None:
    process = machine.victim(PROBE)
    with machine.armed(kind, PROBE, **parameters):
        for _ in range(3):
            assert soon(lambda: process.status() == _STOPPED)
            assert soon(lambda: process.status() != _STOPPED)
        machine.works()
    assert process.status() != _STOPPED


def starve(machine: ProbedMachine) -> None:
    _is_stopped_now_and_then(machine, "starve", percent=60, period_ms=20)


def stutter(machine: ProbedMachine) -> None:
    _is_stopped_now_and_then(machine, "stutter", stop_ms=10, interval_ms=20)


def signal_storm(machine: ProbedMachine) -> None:
    before = machine.ask("signals")["count"]
    with machine.armed("signal-storm", PROBE, rate=1_000):
        assert soon(lambda: machine.ask("signals")["count"] >= before + 5)
        machine.works()


@contextlib.contextmanager
def _limited(machine: ProbedMachine, kind: str, target: str, number: int, **parameters: Any) -> Iterator[int]:
    """Its limit is lower, and then as it was."""
    pid = machine.victim(target).pid
    before = resource.prlimit(pid, number)
    with machine.armed(kind, target, **parameters):
        soft = resource.prlimit(pid, number)[0]
        assert before[0] == resource.RLIM_INFINITY or soft < before[0]
        yield soft
    assert resource.prlimit(pid, number) == before


def limit_descriptors(machine: ProbedMachine) -> None:
    many = 200
    with _limited(machine, "limit-descriptors", PROBE, resource.RLIMIT_NOFILE, spare=8):
        assert 8 <= machine.ask("descriptors", count=many)["opened"] < many
        machine.works()
    assert machine.ask("descriptors", count=many)["opened"] == many


def limit_memory(machine: ProbedMachine) -> None:
    with _limited(machine, "limit-memory", PROBE, resource.RLIMIT_DATA, spare_kib=1024):
        assert machine.ask("grow")["error"] == "MemoryError"
        machine.works()
    assert "bytes" in machine.ask("grow")


def limit_file_size(machine: ProbedMachine) -> None:
    block = machine.filled()
    server = "root" if not machine.count_of("driver.serving") else DISK
    with _limited(machine, "limit-file-size", server, resource.RLIMIT_FSIZE):
        assert machine.ask("write", block=block, tag=7)["error"] == "DiskCommandError"
        assert machine.get(block) == content(block)
    machine.put(block, 7)


def limit_processes(machine: ProbedMachine) -> None:
    """Who has root privileges is exempt from what the limit says. A thread that was ending may have been counted."""
    many = 20
    with _limited(machine, "limit-processes", PROBE, resource.RLIMIT_NPROC):
        assert (machine.ask("threads", count=many)["started"] < many) == (os.geteuid() != 0)
        machine.works()
    assert machine.ask("threads", count=many)["started"] == many


def _children(machine: ProbedMachine, word: str) -> list[psutil.Process]:
    return [child for child in machine.victim("platform").children() if word in " ".join(_words(child))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def busy_neighbours(machine: ProbedMachine) -> None:
    with machine.armed("busy-neighbours", PROBE, processes=2):
        assert soon(lambda: len(_children(machine, "while True")) == 2)
        burners = _children(machine, "while True")
        allowed = machine.victim(PROBE).cpu_affinity()
        assert all(burner.cpu_affinity() == allowed for burner in burners)
        assert soon(lambda: all(sum(burner.cpu_times()[:2]) > 0 for burner in burners))
        machine.works()
    assert soon(lambda: not _children(machine, "while True"))


def management_flood(machine: ProbedMachine) -> None:
    with machine.armed("management-flood", "platform", rate=1_000) as fault:
        fault.fires(20)
        assert soon(lambda: len(_children(machine, "management_flood")) == 1)
        assert machine.request("status")["root_pid"], "it still answers"
        machine.works()
    assert soon(lambda: not _children(machine, "management_flood"))


def all_late(machine: ProbedMachine) -> None:
    with machine.armed("all-late", PROBE, delay_ms=_DELAY_MS, processes=1):
        assert machine.ask("call")["took_us"] >= _DELAY_MS * 1_000
        tick = machine.ask("tick", wait_ms=20_000)
        assert tick["reached_us"] - tick["late_us"] >= _DELAY_MS * 1_000
        assert soon(lambda: len(_children(machine, "while True")) == 1)
        machine.works()
