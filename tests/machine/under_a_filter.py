"""Executes a command on a host that allows less: where some system calls fail with EPERM, for it and all below it.

    python -m tests.machine.under_a_filter NUMBER,NUMBER... COMMAND...

That is what a container's own filter does, and nothing in partvisor is told of it.
"""

import ctypes
import errno
import os
import sys

from partitions.sandbox import bpf, kernel, syscalls
from partitions.sandbox.seccomp import _FilterProgram


def main() -> None:
    numbers = [int(word) for word in sys.argv[1].split(",")]
    refused = {number: bpf.give(bpf.ERRNO | errno.EPERM) for number in numbers}
    allow = bpf.give(bpf.ALLOW)
    program = bpf.decide(
        syscalls.AUDIT_ARCH_X86_64, refused, allow, allow, syscalls.UNKNOWN_FROM, bpf.give(bpf.ALLOW)
    )
    assembled = bpf.assemble(program, 0)
    kernel.prctl("no_new_privs", 38, 1)
    kernel.syscall("seccomp", syscalls.SECCOMP, 1, 0, ctypes.byref(_FilterProgram(len(program), assembled)))
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
