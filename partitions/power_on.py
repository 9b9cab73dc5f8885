"""The machine's first process: leaves a loader for the hypervisor behind, and becomes the root.

The platform executes this. Later processes of the root are forked from the zygote: partitions.successor.
"""

import argparse
import faulthandler
import os
import signal
import socket
import sys
from typing import NoReturn

import trio

from partitions import loader
from partitions.root import Root
from runtime.abi import EXIT_HYPERVISOR_GONE, HypervisorGone
from runtime.hypercalls.caller import adopt_socket
from runtime.loaded_code import report_if_asked
from runtime.machine.console import ConsoleWriter
from runtime.machine.firmware import PacketLink
from runtime.machine.lifeline import die_with_parent, name_process


def main() -> NoReturn:
    parser = argparse.ArgumentParser(
        prog="partitions.power_on", description="The root partition of a machine."
    )
    parser.add_argument("--hypercall-fd", type=int, required=True)
    parser.add_argument("--firmware-fd", type=int, required=True)
    parser.add_argument("--console-fd", type=int, required=True)
    parser.add_argument(
        "--loader-fd", type=int, required=True, help="where the platform asks for the hypervisor"
    )
    arguments = parser.parse_args()
    platform_pid = os.getppid()
    die_with_parent(platform_pid)
    loader.fork_off(arguments.loader_fd, platform_pid)
    faulthandler.enable()
    name_process("pv-root")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for fd in (arguments.firmware_fd, arguments.console_fd):
        os.set_inheritable(fd, False)
    console = ConsoleWriter(arguments.console_fd, patience_ms=0)
    sys.stdout = console.stream("stdout")
    firmware = PacketLink(socket.socket(fileno=arguments.firmware_fd))
    root = Root(adopt_socket(arguments.hypercall_fd), firmware, console)
    status = EXIT_HYPERVISOR_GONE
    try:
        status = trio.run(root.boot)
    except* HypervisorGone:
        pass
    report_if_asked(console.emit)
    sys.stderr.flush()
    os._exit(status)  # with the hypercall socket open to the last: closing it says that we are lost


if __name__ == "__main__":
    main()
