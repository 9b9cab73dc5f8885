"""System call numbers of x86-64 Linux (arch/x86/entry/syscalls/syscall_64.tbl), for the calls that a rule names."""

import platform
from typing import Final

AUDIT_ARCH_X86_64: Final = 0xC000_003E  # linux/audit.h
MACHINE: Final = "x86_64"
# Above the last that we know, calls "do not exist": a libc that tries a new one falls back to an old one. So it is
# with the numbers of the x32 convention, which have bit 30 set.
UNKNOWN_FROM: Final = 452

_TABLE: Final = """
read 0 write 1 open 2 close 3 stat 4 fstat 5 lstat 6 poll 7 lseek 8 mmap 9 mprotect 10 munmap 11 brk 12
rt_sigaction 13 rt_sigprocmask 14 rt_sigreturn 15 ioctl 16 pread64 17 pwrite64 18 readv 19 writev 20 access 21
pipe 22 select 23 sched_yield 24 mremap 25 msync 26 mincore 27 madvise 28 dup 32 dup2 33 pause 34 nanosleep 35
getitimer 36 alarm 37 setitimer 38 getpid 39 sendfile 40 socket 41 connect 42 accept 43 sendto 44 recvfrom 45
sendmsg 46 recvmsg 47 shutdown 48 bind 49 listen 50 getsockname 51 getpeername 52 socketpair 53 setsockopt 54
getsockopt 55 clone 56 exit 60 kill 62 uname 63 fcntl 72 flock 73 fsync 74 fdatasync 75 ftruncate 77 getdents 78
getcwd 79 chdir 80 fchdir 81 readlink 89 gettimeofday 96 getrlimit 97 getrusage 98 sysinfo 99 times 100 ptrace 101
getuid 102 getgid 104 geteuid 107 getegid 108 getppid 110 getpgrp 111 getgroups 115 getresuid 118 getresgid 120
getpgid 121 getsid 124 capget 125 rt_sigpending 127 rt_sigtimedwait 128 rt_sigsuspend 130 sigaltstack 131
statfs 137 fstatfs 138 getpriority 140 sched_getparam 143 sched_getscheduler 145 sched_get_priority_max 146
sched_get_priority_min 147 mlock 149 munlock 150 pivot_root 155 prctl 157 arch_prctl 158 chroot 161 acct 163
settimeofday 164 mount 165 umount2 166 swapon 167 swapoff 168 reboot 169 sethostname 170 setdomainname 171 iopl 172
ioperm 173 init_module 175 delete_module 176 gettid 186 readahead 187 time 201 futex 202 sched_setaffinity 203
sched_getaffinity 204 io_setup 206 io_destroy 207 io_getevents 208 io_submit 209 io_cancel 210 epoll_create 213
getdents64 217 set_tid_address 218 restart_syscall 219 fadvise64 221 clock_settime 227 clock_gettime 228
clock_getres 229 clock_nanosleep 230 exit_group 231 epoll_wait 232 epoll_ctl 233 tgkill 234 kexec_load 246
add_key 248 request_key 249 keyctl 250 openat 257 newfstatat 262 readlinkat 267 faccessat 269 pselect6 270
ppoll 271 unshare 272 set_robust_list 273 splice 275 tee 276 sync_file_range 277 epoll_pwait 281 signalfd 282
timerfd_create 283 eventfd 284 fallocate 285 timerfd_settime 286 timerfd_gettime 287 accept4 288 signalfd4 289
eventfd2 290 epoll_create1 291 dup3 292 pipe2 293 preadv 295 pwritev 296 perf_event_open 298 recvmmsg 299
prlimit64 302 open_by_handle_at 304 sendmmsg 307 setns 308 getcpu 309 process_vm_readv 310 process_vm_writev 311
kcmp 312 finit_module 313 sched_getattr 315 seccomp 317 getrandom 318 memfd_create 319 kexec_file_load 320 bpf 321
userfaultfd 323 membarrier 324 copy_file_range 326 preadv2 327 pwritev2 328 statx 332 io_pgetevents 333 rseq 334
open_tree 428 move_mount 429 fsopen 430 fsconfig 431 fsmount 432 fspick 433 clone3 435 close_range 436
pidfd_getfd 438 faccessat2 439 process_madvise 440 epoll_pwait2 441 mount_setattr 442 futex_waitv 449
fork 57 vfork 58 execve 59 wait4 61 truncate 76 rename 82 mkdir 83 rmdir 84 link 86 unlink 87 symlink 88 chmod 90
fchmod 91 umask 95 setuid 105 setgid 106 setpgid 109 setsid 112 setreuid 113 setregid 114 setgroups 116
setresuid 117 setresgid 119 capset 126 setpriority 141 sched_setparam 142 sched_setscheduler 144 setrlimit 160
tkill 200 waitid 247 mkdirat 258 unlinkat 263 renameat 264 linkat 265 symlinkat 266 fchmodat 268 get_robust_list 274
utimensat 280 sched_setattr 314 renameat2 316 execveat 322 pidfd_send_signal 424 pidfd_open 434
"""
_WORDS: Final = _TABLE.split()
NUMBERS: Final = dict(zip(_WORDS[::2], map(int, _WORDS[1::2]), strict=True))
SECCOMP: Final = NUMBERS["seccomp"]
# The same on every processor.
LANDLOCK_CREATE_RULESET: Final = 444
LANDLOCK_ADD_RULE: Final = 445
LANDLOCK_RESTRICT_SELF: Final = 446


def are_known_here() -> bool:
    return platform.machine() == MACHINE
