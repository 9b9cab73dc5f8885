"""Programs that try what a partition must not do, and report what came of it."""

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from fcntl import ioctl
from functools import partial
from pathlib import Path

from partitions.child import Partition

_libc = ctypes.CDLL(None, use_errno=True)
_TIOCSTI = 0x5412


def outcome(attempt: Callable[[], object]) -> str:
    """The error's name, or what it gave."""
    try:
        return f"done: {attempt()}"[:80]
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except MemoryError:
        return "MemoryError"


def _call(number: int, *arguments: int) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(each) for each in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def _open(path: str, flags: int = os.O_RDONLY) -> str:
    os.close(os.open(path, flags))
    return "opened"


def _clone_without_a_thread() -> int:
    """As fork() does it; a child of it, should there be one, ends at once."""
    pid = _call(56, signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return pid


def try_everything(partition: Partition) -> None:
    """`args`: files that must stay closed, and pids of others."""
    here = Path(__file__).parent.parent.parent
    reached = {
        path: outcome(lambda path=path: _open(path))  # type: ignore[misc]
        for path in [*partition.args["files"], "/etc/passwd", "/etc/shadow", "/proc/1/mem", "/proc/1/maps"]
    }
    partition.report("files", reached=reached)
    readable = [os.__file__, __file__, "/proc/self/status", str(here / "bus" / "memory.py")]
    partition.report(
        "attempts",
        readable={path: outcome(lambda path=path: _open(path)) for path in readable},  # type: ignore[misc]
        write_source=outcome(lambda: _open(__file__, os.O_WRONLY)),
        create=outcome(lambda: _open("/tmp/partvisor-created", os.O_CREAT | os.O_WRONLY)),
        write_read_only_memory=outcome(_open_memory_again),
        list_home=outcome(lambda: list(Path("/root").iterdir())),
        fork=outcome(os.fork),
        clone=outcome(_clone_without_a_thread),
        execute=outcome(lambda: os.execv("/bin/true", ["true"])),
        spawn=outcome(lambda: os.posix_spawn("/bin/true", ["true"], {})),
        signal_parent=outcome(lambda: os.kill(os.getppid(), 0)),
        signal_everybody=outcome(lambda: os.kill(-1, signal.SIGCONT)),
        signal_itself=outcome(lambda: os.kill(os.getpid(), 0)),
        internet_socket=outcome(partial(_try_a_socket, socket.AF_INET)),
        local_socket=outcome(partial(_try_a_socket, socket.AF_UNIX)),
        datagram_pair=outcome(partial(_try_a_pair, socket.SOCK_DGRAM)),
        stream_pair=outcome(partial(_try_a_pair, socket.SOCK_STREAM)),
        abstract_connect=outcome(_connect_a_pair),
        type_into_terminal=outcome(lambda: ioctl(2, _TIOCSTI, b"x")),
        open_pidfd=outcome(lambda: os.pidfd_open(os.getppid())),
        io_uring=outcome(lambda: _call(425, 1, 0)),
        new_clone=outcome(lambda: _call(435, 0, 0)),
        thread=outcome(_run_a_thread),
        anonymous_memory=outcome(lambda: os.close(os.memfd_create("mine"))),
        more_files=outcome(_open_until_refused),
        more_memory=outcome(lambda: len(bytearray(8 << 30))),
        executable_memory=outcome(lambda: mmap.mmap(-1, 4096, prot=7).close()),
        user=os.getuid(),
        affinity=outcome(lambda: len(os.sched_getaffinity(0))),
    )


def _open_memory_again() -> str:
    """As one that was handed over for reading alone: its path in /proc leads to the memory itself."""
    memory = os.memfd_create("mine")
    reader = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
    return _open(f"/proc/self/fd/{reader}", os.O_RDWR)


def _try_a_socket(family: int) -> None:
    socket.socket(family).close()


def _try_a_pair(kind: int) -> None:
    for end in socket.socketpair(type=kind):
        end.close()


def _connect_a_pair() -> None:
    one, other = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with one, other:
        one.connect("\0partvisor")


def _run_a_thread() -> bool:
    done = threading.Event()
    thread = threading.Thread(target=done.set)
    thread.start()
    thread.join()
    return done.is_set()


def _open_until_refused() -> int:
    with contextlib.ExitStack() as opened:
        for number in _count():
            try:
                opened.callback(os.close, os.eventfd(0))
            except OSError:
                return number
    return -1


def _count() -> Iterator[int]:
    yield from range(1 << 20)


def call_by_number(partition: Partition) -> None:
    """One system call, which is to be its last."""
    partition.report("about_to_call", call=partition.args["call"])
    _libc.syscall(ctypes.c_long(partition.args["call"]), *(ctypes.c_long(0) for _ in range(5)))
    partition.report("still_alive", call=partition.args["call"])


def end(partition: Partition) -> None:
    pass


def crash(partition: Partition) -> None:
    partition.report("about_to_crash")
    os.abort()


def write_a_lot(partition: Partition) -> None:
    """Into a file that it was given: more than its own memory may ever be."""
    fd = partition.files["out"]
    os.pwrite(fd, b"end", partition.args["offset"])
    partition.report("written", size=os.fstat(fd).st_size, head=struct.calcsize("Q"))
