"""Partitions that hold what they were given, and one that holds more."""

import contextlib
import ctypes
import mmap
import os
import threading
import time
from pathlib import Path
from typing import Final

from partitions.child import Partition
from partitions.links.peer import borrow_link, lend_link, open_switch
from partitions.streams.guest import Listener, Stream, StreamRefused, StreamTimeout
from partitions.vp.port_io import PortIo
from runtime.abi import HypercallError
from runtime.statistics import StatsObject

_PIDFD_OPEN: Final = 434  # linux/unistd.h
_PIDFD_GETFD: Final = 438
_ALL_IS_OPEN: Final = "all-is-open"  # memory of that name says so
_BLOCK: Final = 4096
_FIRST_GPFN: Final = 0x1000  # where a guest has its first channel
_MARK_AT: Final = 4000  # in a ring's header page, where nobody has anything
_ELSEWHERE: Final = 0x8000_0000  # in the parent's space, above all windows
_kept: list[object] = []
_OPENERS: Final = {"link": lend_link, "borrow": borrow_link, "switch": open_switch}


def hold(partition: Partition) -> None:
    """Open each device of ours as `args` says, use the disks, and keep all that."""
    with contextlib.ExitStack() as held:
        if partition.args.get("listens"):
            listener = held.enter_context(partition.listen_stream(5000))
            threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        for name, how in partition.args.get("open", {}).items():
            if how == "disk":
                held.enter_context(partition.open_disk(name, 64 << 10)).write(0, bytes(_BLOCK))
            elif how == "echo":
                held.enter_context(partition.open_echo(name))
            elif how == "tap":
                tap = held.enter_context(partition.open_tap())
                held.enter_context(tap.start(["sleep", "600"]))
            elif how == "net":
                held.enter_context(partition.open_net(name))
            elif how == "serial":
                held.enter_context(partition.open_serial(name))
            else:
                held.enter_context(_OPENERS[how](partition, name))
        for target in partition.args.get("connects", ()):
            held.enter_context(_connect(partition, target))
        if partition.args.get("legacy"):
            PortIo(partition).inb(0x3FD)
        if partition.args.get("statistics"):
            _kept.append(partition.hypercalls.map_stats_page(StatsObject.VP))
            partition.reference_time()
            partition.vps[-1].take_vectors()
        _kept.append(os.memfd_create(_ALL_IS_OPEN, os.MFD_CLOEXEC))
        partition.report("holding")
        time.sleep(600)


# -- a server that does not let go -----------------------------------------------------------------------------


def cling(partition: Partition) -> int:
    """A parent that maps its child's first channel once more, and never unmaps that."""

    def take() -> None:
        call = partition.hypercalls
        while True:
            with contextlib.suppress(HypercallError):
                for child in call.children():
                    (slot,) = call.map_partition_pages(child, _FIRST_GPFN, 1, _ELSEWHERE)
                    mmap.mmap(slot.fd, 0)[_MARK_AT] = 1
                    partition.report("clings", pages=slot.pages)
                    return
            time.sleep(0.002)

    threading.Thread(target=take, daemon=True).start()
    partition.run_children()
    return 0


def open_again(partition: Partition) -> None:
    """Where the server holds on to the first opening's pages, these are given up, and others are used."""
    places = []
    for turn in range(3):
        with partition.open_disk("disk0", 64 << 10) as disk:
            disk.write(0, bytes(_BLOCK))
            (opened,) = partition.vmbus._channels.values()
            while turn == 0 and not opened.slot.memory[_MARK_AT]:  # until the other one has taken hold
                time.sleep(0.002)
            places.append(opened.slot.gpfn)
    partition.report("opened_again", places=places)
    time.sleep(600)


# -- more than it was given ------------------------------------------------------------------------------------


def _accept(listener: Listener) -> None:
    """For ever, and all are kept."""
    while True:
        with contextlib.suppress(StreamTimeout):
            _kept.append(listener.accept(60))


def _connect(partition: Partition, target: str) -> Stream:
    """As soon as somebody listens there."""
    while True:
        with contextlib.suppress(StreamRefused):
            return partition.connect_stream(target, 5000)
        time.sleep(0.05)


def steal(partition: Partition) -> None:
    """From the partition `victim`: its channel's memory, a doorbell, its identity, its disk's file; by the host's power
    over processes of the same user, which a sandbox takes away."""
    victim = _pid_of(f"pv-{partition.args['victim']}")
    stolen: list[object] = []
    while not _holds(victim, f"/memfd:{_ALL_IS_OPEN}"):
        time.sleep(0.01)
    pidfd = _system_call(_PIDFD_OPEN, victim, 0)
    for entry in sorted(Path(f"/proc/{victim}/fd").iterdir(), key=lambda path: int(path.name)):
        link = str(entry.readlink())
        if link.startswith("/memfd:slot-"):
            fd = os.open(entry, os.O_RDWR)
            stolen.append(mmap.mmap(fd, 0))
            os.close(fd)
        elif link == "anon_inode:[eventfd]" or link.startswith("socket:") or link.endswith(".img"):
            stolen.append(_system_call(_PIDFD_GETFD, pidfd, int(entry.name), 0))
    os.close(pidfd)
    partition.report("holding", stolen=len(stolen))
    time.sleep(600)


def _holds(pid: int, link: str) -> bool:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if str(entry.readlink()).startswith(link):
                return True
    return False


def _pid_of(name: str) -> int:
    """Of a sibling: other machines may run on this host."""
    while True:
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if not entry.name.isdecimal():
                    continue
                before, _, after = (entry / "stat").read_text().rpartition(")")
                if before.endswith(f"({name[:15]}") and int(after.split()[1]) == os.getppid():
                    return int(entry.name)
        time.sleep(0.01)


def _system_call(number: int, *arguments: int) -> int:
    result = int(ctypes.CDLL(None, use_errno=True).syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
    return result
