"""The process that runs a guest's ordinary programs: the first one of a process namespace, so that all end with it.

The guest's own process may execute nothing, and has the rings, the memory and the hypercalls. The runner has none of
them: a socket of the guest's, its network namespace, and the host's programs to read and execute. It is forked before
the guest's walls go up and puts up its own: no capability, Landlock, a filter of system calls that lacks local sockets.
Files it and its programs may write in a /tmp of memory alone.

The guest's death is the end of the runner's socket, and the runner's end is that of all its programs.
"""

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
from collections.abc import Collection
from typing import Final

from partitions.programs import wire
from partitions.sandbox import capabilities, descriptors, kernel, landlock, seccomp
from partitions.sandbox.profiles import Profile

PROGRAMS_MAX: Final = 16  # of one guest at a time
TMP_BYTES: Final = 16 << 20
_NEW_PROCESSES: Final = 0x2000_0000  # CLONE_NEWPID
_NEW_MOUNTS: Final = 0x0002_0000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_EXECUTABLE: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib64")
# Of /etc nothing but what the C library and TLS look at.
_READABLE: Final = (
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl",
    "/dev/urandom",
    "/dev/random",
    "/dev/zero",
)
_TMP_RIGHTS: Final = (1 << 15) - 1 - landlock.EXECUTE
_libc: Final = ctypes.CDLL(None, use_errno=True)


def start(kept: Collection[int]) -> int:
    """Fork the runner; the guest's end of its socket. In a process of one thread that has its namespaces, and their
    capabilities, still. `kept`: descriptors that are the guest's alone.

    Raises OSError: this host gives no process namespace.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    said, says = os.pipe2(os.O_CLOEXEC)
    if os.fork() == 0:
        try:
            os.close(said)
            ours.close()
            for descriptor in kept:
                if descriptor > 2:
                    os.close(descriptor)
            kernel.prctl("death signal", _PR_SET_PDEATHSIG, signal.SIGKILL)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 2)  # the guest's console is not for its programs
            os.close(null)
            kernel.unshare(_NEW_PROCESSES | _NEW_MOUNTS)
            first = os.fork()
            if first == 0:
                kernel.prctl("death signal", _PR_SET_PDEATHSIG, signal.SIGKILL)
                _wall_in(theirs.fileno(), says)
                os.close(says)
                _serve(theirs)
                os._exit(0)
            theirs.close()
            descriptors.keep_only((says,))  # and nothing of the guest's birth
            os.close(says)
            os.waitpid(first, 0)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(says, f"{error}".encode()[:1000] or b"?")
        finally:
            os._exit(0)
    theirs.close()
    os.close(says)
    with open(said, "rb") as pipe:
        problem = pipe.read()
    if problem:
        ours.close()
        raise OSError(0, problem.decode("utf-8", "replace"))
    os.set_inheritable(ours.fileno(), False)
    return ours.detach()


def _wall_in(*kept: int) -> None:
    if (
        _libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0b110, f"size={TMP_BYTES},mode=700".encode()) != 0
    ):  # nosuid, nodev
        raise OSError(ctypes.get_errno(), "mount: " + os.strerror(ctypes.get_errno()))
    os.chdir("/tmp")
    kernel.prctl("no_new_privs", _PR_SET_NO_NEW_PRIVS, 1)
    capabilities.hold_only(frozenset())
    ruleset = landlock.Ruleset(network=True)
    for path in _EXECUTABLE:
        ruleset.allow_path(path, landlock.READ | landlock.EXECUTE)
    for path in _READABLE:
        ruleset.allow_path(path, landlock.READ)
    ruleset.allow_path(os.devnull, landlock.READ_FILE | landlock.WRITE_FILE)
    ruleset.allow_path("/tmp", _TMP_RIGHTS)
    ruleset.enforce()
    descriptors.keep_only(kept)
    seccomp.install(Profile.PROGRAMS, os.getpid())


def _serve(sock: socket.socket) -> None:
    """An attendant for each program, until the guest's end is closed."""
    attendants: set[int] = set()
    while True:
        data, fds = wire.receive(sock)
        if not data:
            return
        attendants = {pid for pid in attendants if os.waitpid(pid, os.WNOHANG)[0] == 0}
        try:
            if len(fds) == wire.ORDER_DESCRIPTORS:
                if len(attendants) >= PROGRAMS_MAX:
                    with socket.socket(fileno=os.dup(fds[0])) as told:
                        _say(told, {"error": f"{PROGRAMS_MAX} programs run already"})
                elif (pid := os.fork()) == 0:
                    try:
                        sock.close()
                        _attend(data, fds)
                    finally:
                        os._exit(0)
                else:
                    attendants.add(pid)
        finally:
            for descriptor in fds:
                os.close(descriptor)


def _attend(data: bytes, fds: list[int]) -> None:
    """Start it, say so, wait for its end or for the guest's."""
    told = socket.socket(fileno=fds[0])
    try:
        argv, environment = wire.decode_order(data)
        program = subprocess.Popen(
            argv,
            stdin=fds[1],
            stdout=fds[2],
            stderr=fds[3],
            env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/tmp", **environment},
            cwd="/tmp",
            start_new_session=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        _say(told, {"error": str(error)})
        return
    for descriptor in fds[1:]:
        os.close(descriptor)
    _say(told, {"pid": program.pid})
    ended = os.pidfd_open(program.pid)
    poller = select.poll()
    poller.register(ended, select.POLLIN)
    poller.register(told, select.POLLIN)
    ready = {descriptor for descriptor, _ in poller.poll()}
    if ended not in ready:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
    _say(told, {"code": program.wait()})


def _say(told: socket.socket, values: dict[str, object]) -> None:
    with contextlib.suppress(OSError):
        told.send(wire.encode(values), socket.MSG_NOSIGNAL)
