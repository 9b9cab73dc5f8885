"""A root that follows another: born of the zygote, and waiting until the hypervisor wants a new root."""

import faulthandler
import signal
import socket
import sys

import trio

from partitions import trace_files
from partitions.root import Root
from runtime.abi import EXIT_HYPERVISOR_GONE, HypervisorGone
from runtime.hypercalls.caller import adopt_socket
from runtime.machine.console import ConsoleWriter
from runtime.machine.firmware import PacketLink


def succeed(hypercall_fd: int, console_fd: int) -> int:
    """A successor's life. Returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    hypercalls = adopt_socket(hypercall_fd)
    console = ConsoleWriter(console_fd)
    sys.stdout = console.stream("stdout")

    async def live() -> int:
        """A standby waits here, blocking: trio's own start is behind it, and it has no other task yet."""
        birth = hypercalls.get_birth()  # answered when it becomes the root
        firmware_fd, *traces = birth.files
        names = birth.args.get("traced")
        trace_files.begin(dict(zip(names if isinstance(names, list) else [], traces, strict=False)))
        root = Root(hypercalls, PacketLink(socket.socket(fileno=firmware_fd)), console)
        return await root.succeed(birth)

    try:
        return trio.run(live)
    except* HypervisorGone:
        pass
    return EXIT_HYPERVISOR_GONE
