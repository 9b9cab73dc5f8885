"""A partition's program for tests of the broker: does what its arguments say."""

import mmap
import os
import signal
import subprocess
import time
from typing import Any

from bus import native
from runtime.hypercalls.caller import Birth, HypercallPort

SINT = 2
TO_ROOT = 1  # connection id of the guest's messages
EVENT_CONNECTION = 0x2001
EVENT_PORT = 0x10


def main(port: HypercallPort) -> int:
    birth = port.get_birth()
    args: Any = birth.args
    match args["do"]:
        case "exit":
            return int(args["code"])
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "linger":
            time.sleep(60)
        case "ignore SIGTERM":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(60)
        case "leave an orphan":
            orphan = subprocess.Popen(["sleep", "60"])
            os.write(birth.files[0], str(orphan.pid).encode())
        case "close the socket":
            port.close()
            time.sleep(60)
        case "flood":
            _flood(port)
        case "echo":
            _echo(port, birth)
        case "answer events":
            _answer_events(port, birth)
        case "write files":
            for number, file in enumerate(birth.files):
                os.write(file, b"%d" % number)
        case "share memory":
            _share_memory(port)
            time.sleep(60)
        case "access ports":
            _access_ports(port, int(args["count"]))
        case "have a child":
            _have_a_child(port)
    return 0


def _flood(port: HypercallPort) -> None:
    """Requests without end, replies never read."""
    sock = port._socket
    request = bytes([0x92, 0x46, 0x80])  # [GetPartitionId, {}]
    while True:
        sock.send(request)


def _pages(birth: Birth) -> tuple[mmap.mmap, mmap.mmap]:
    vp = birth.vps[0]
    return mmap.mmap(vp.sim_fd, 4096), mmap.mmap(vp.sief_fd, 4096)


def _echo(port: HypercallPort, birth: Birth) -> None:
    """Every message back to the root, until an empty one; after a pending one, end-of-message."""
    sim, _ = _pages(birth)
    port.enable_synic(0, [SINT])
    port.post_message(TO_ROOT, 1, b"ready")
    while True:
        os.read(birth.vps[0].line_fd, 8)
        while (message := native.synic_take(sim, SINT)) is not None:
            message_type, _, payload, owed = message
            if owed:
                port.end_of_message(0)
            port.post_message(TO_ROOT, message_type, payload)
            if not payload:
                return


def _answer_events(port: HypercallPort, birth: Birth) -> None:
    """One event back for each doorbell, until killed."""
    _, sief = _pages(birth)
    port.enable_synic(0, [SINT])
    ours = port.claim_port_doorbell(EVENT_PORT)
    theirs = port.claim_connection_doorbell(EVENT_CONNECTION)
    port.post_message(TO_ROOT, 1, b"ready")
    while True:
        os.read(ours.fd, 8)
        native.flags_take_all(sief, SINT)
        native.eventfd_signal(theirs.fd)


def _share_memory(port: HypercallPort) -> None:
    slot = port.map_gpa_pages(0x100, 2)
    with mmap.mmap(slot.fd, 2 * 4096) as memory:
        memory[:5] = b"hello"
    port.post_message(TO_ROOT, 1, b"ready")


def _access_ports(port: HypercallPort, count: int) -> None:
    """Reads of one port that each depend on the answer before, and say so by what they write."""
    value = 0
    for _ in range(count):
        port.access_port(0, 0x3F8, 1, write=True, value=value)
        value = port.access_port(0, 0x3F9, 1).value
    os._exit(value)


def _have_a_child(port: HypercallPort) -> None:
    from runtime.abi import GUEST_PRIVILEGES

    child = port.create_partition()
    port.deposit(child, 20)
    port.set_privileges(child, GUEST_PRIVILEGES)
    port.initialize(child)
    port.create_vp(0, child)
    port.set_program(child, "tests.runtime.standin_guest", "inner", {"do": "linger"})
    port.start_vp(child)
    port.post_message(TO_ROOT, 1, b"ready")
    time.sleep(60)
