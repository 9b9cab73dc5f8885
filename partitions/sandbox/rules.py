"""Which system calls each kind of partition may make: the tables that docs/sandbox.md prints.

A call that is allowed whatever its arguments are costs next to nothing: the kernel remembers it (see `bpf`). All that
stand on a hot path (read, write, epoll, futex, poll, sendmsg, io_submit, preadv, pwritev) are of that kind.
"""

import errno
import socket
import termios
from typing import Final

from partitions.sandbox import bpf
from partitions.sandbox.profiles import Profile
from partitions.sandbox.syscalls import NUMBERS

REFUSED: Final = bpf.ERRNO | errno.EPERM  # the program sees a PermissionError, and goes on
UNKNOWN: Final = bpf.ERRNO | errno.ENOSYS  # the C library falls back to an older call
HOSTILE: Final = bpf.KILL_PROCESS  # SIGSYS: no honest program calls this, so whoever does has been taken over

_ALLOWED: Final = """
read write close stat fstat lstat poll lseek mmap mprotect munmap brk
rt_sigaction rt_sigprocmask rt_sigreturn pread64 pwrite64 readv writev access
pipe select sched_yield mremap msync mincore madvise dup dup2 pause nanosleep getitimer alarm setitimer
getpid sendfile sendto recvfrom sendmsg recvmsg shutdown getsockname getpeername setsockopt getsockopt
exit uname fcntl flock fsync fdatasync ftruncate getdents getcwd chdir fchdir readlink gettimeofday getrlimit
getrusage sysinfo times getuid getgid geteuid getegid getppid getpgrp getgroups getresuid getresgid getpgid getsid
capget rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack statfs fstatfs getpriority sched_getparam
sched_getscheduler sched_get_priority_max sched_get_priority_min mlock munlock arch_prctl gettid readahead time
futex sched_setaffinity sched_getaffinity io_setup io_destroy io_getevents io_submit io_cancel epoll_create
getdents64 set_tid_address restart_syscall fadvise64 clock_gettime clock_getres clock_nanosleep exit_group
epoll_wait epoll_ctl newfstatat readlinkat faccessat pselect6 ppoll set_robust_list splice tee
sync_file_range epoll_pwait signalfd timerfd_create eventfd fallocate timerfd_settime timerfd_gettime signalfd4
eventfd2 epoll_create1 dup3 pipe2 preadv pwritev recvmmsg sendmmsg getcpu sched_getattr getrandom memfd_create
membarrier copy_file_range preadv2 pwritev2 statx io_pgetevents rseq close_range faccessat2 epoll_pwait2
futex_waitv accept accept4
"""  # the last two on a listening socket that it was handed: it can make none
# The root's devices may listen and be connected to: a serial port behind a socket, a network's end.
_ALLOWED_TO_ROOT: Final = "open openat connect bind listen"
# Ordinary programs: they start each other, talk over the guest's own network, write into a /tmp of their own. Local
# sockets they have none: those with a name lead to the host's services.
_ALLOWED_TO_PROGRAMS: Final = """
open openat connect bind listen execve execveat fork vfork wait4 waitid umask setsid setpgid
setuid setgid setgroups setresuid setresgid setreuid setregid capset kill tkill tgkill prlimit64 setrlimit prctl
pidfd_open pidfd_send_signal mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat
chmod fchmod fchmodat utimensat truncate setpriority sched_setscheduler sched_setattr sched_setparam
get_robust_list
"""
_HOSTILE: Final = """
ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd process_madvise
mount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr
unshare setns sethostname setdomainname
init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct
bpf perf_event_open userfaultfd iopl ioperm add_key request_key keyctl open_by_handle_at
settimeofday clock_settime
"""

_CLONE_THREAD: Final = 0x0001_0000
_CLONE_NEW_ANYTHING: Final = 0x7E02_0000  # CLONE_NEW*: cgroup, UTS, IPC, user, PID, network; and mounts
_SOCK_STREAM_OR_SEQPACKET: Final = (
    kind | flags
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
    for flags in (0, socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK, socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
)
_PAIRS: Final = tuple(
    _SOCK_STREAM_OR_SEQPACKET
)  # not datagrams: those can be sent to any socket that has a name
_IOCTLS: Final = (
    termios.FIONREAD,
    termios.TIOCOUTQ,  # how much of what was sent nobody has read yet
    termios.FIONBIO,
    termios.FIOCLEX,
    termios.FIONCLEX,
    termios.TCGETS,  # isatty()
    termios.TIOCGWINSZ,
)
_TIOCSTI: Final = termios.TIOCSTI  # types into a terminal
_TIOCLINUX: Final = 0x541C  # pastes into one
_PR_GET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_SET_NAME, _PR_GET_NAME = 2, 3, 15, 16
_PR_GET_SECCOMP, _PR_CAPBSET_READ, _PR_SET_TIMERSLACK, _PR_GET_NO_NEW_PRIVS = 21, 23, 29, 39
_PR_SET_VMA: Final = 0x53564D41  # the C library names its memory
_PRCTLS: Final = (
    _PR_GET_PDEATHSIG,
    _PR_GET_DUMPABLE,
    _PR_SET_NAME,
    _PR_GET_NAME,
    _PR_GET_SECCOMP,
    _PR_CAPBSET_READ,
    _PR_SET_TIMERSLACK,
    _PR_GET_NO_NEW_PRIVS,
    _PR_SET_VMA,
)
_WRITES: Final = 0o1 | 0o2 | 0o100 | 0o1000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC


def allowed(profile: Profile) -> list[str]:
    """Calls without conditions, for the docs, too."""
    names = _ALLOWED.split()
    if profile is Profile.PROGRAMS:
        return names + _ALLOWED_TO_PROGRAMS.split()
    if profile is Profile.ROOT:
        names += _ALLOWED_TO_ROOT.split()
    return names


def hostile() -> list[str]:
    return _HOSTILE.split()


def conditional(profile: Profile) -> dict[str, tuple[str, bpf.Program]]:
    """By name: the condition in words, and as a program."""

    def among(argument: int, values: tuple[int, ...]) -> bpf.Program:
        return bpf.if_argument_is(argument, values, bpf.ALLOW, REFUSED)

    if profile is Profile.PROGRAMS:
        own_network = (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
        return {
            "socket": ("of the internet, and netlink", among(0, own_network)),
            "clone": (
                "in no new namespace",
                bpf.if_argument_has(0, 0, _CLONE_NEW_ANYTHING, bpf.ALLOW, REFUSED),
            ),
            "clone3": ("never: its flags lie in memory; the C library then uses clone", bpf.give(UNKNOWN)),
            "socketpair": ("streams and sequenced packets, not datagrams", among(1, _PAIRS)),
            "ioctl": (
                "anything but typing into a terminal",
                bpf.if_argument_is(1, (_TIOCSTI, _TIOCLINUX), REFUSED, bpf.ALLOW),
            ),
        }
    own_pid = bpf.if_argument_is_own_pid(0, bpf.ALLOW, REFUSED)
    rules = {
        "clone": (
            "a thread of this process, in no new namespace",
            bpf.if_argument_has(0, _CLONE_THREAD, _CLONE_NEW_ANYTHING, bpf.ALLOW, REFUSED),
        ),
        "clone3": ("never: its flags lie in memory; the C library then uses clone", bpf.give(UNKNOWN)),
        "kill": ("this process", own_pid),
        "tgkill": ("this process", own_pid),
        "prlimit64": ("this process", bpf.if_argument_is(0, (0,), bpf.ALLOW, REFUSED)),
        "prctl": ("names, timer slack, and what only looks", among(0, _PRCTLS)),
        "socketpair": ("streams and sequenced packets, not datagrams", among(1, _PAIRS)),
        "ioctl": ("what a file is and how much waits in it", among(1, _IOCTLS)),
    }
    if profile is not Profile.GUEST:
        rules["ioctl"] = (
            "anything but typing into a terminal",
            bpf.if_argument_is(1, (_TIOCSTI, _TIOCLINUX), REFUSED, bpf.ALLOW),
        )
    if profile is not Profile.ROOT:
        # Landlock does not look at memory: without this, what was handed over for reading alone could be opened again
        # for writing through /proc/self/fd.
        rules["open"] = "for reading", bpf.if_argument_has(1, 0, _WRITES, bpf.ALLOW, REFUSED)
        rules["openat"] = "for reading", bpf.if_argument_has(2, 0, _WRITES, bpf.ALLOW, REFUSED)
    else:
        families = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
        rules["socket"] = ("local ones and those of the internet", among(0, families))
    return rules


def programs(profile: Profile) -> dict[int, bpf.Program]:
    """By system call number."""
    found = {NUMBERS[name]: bpf.give(bpf.ALLOW) for name in allowed(profile)}
    found |= {NUMBERS[name]: bpf.give(HOSTILE) for name in hostile()}
    found |= {NUMBERS[name]: program for name, (_, program) in conditional(profile).items()}
    return found
