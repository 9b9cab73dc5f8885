"""A successor of the root for tests of the broker: says how it was born, then does what it is told.

It speaks over the firmware descriptor that it was born with: [verb, values] in, [verb, values] out.
"""

import contextlib
import os
import signal
import socket
from typing import Any

from runtime import codec
from runtime.abi import EXIT_RETIRED, HypervisorGone
from runtime.hypercalls.caller import HypercallPort


def main(port: HypercallPort) -> int:
    try:
        birth = port.get_birth()  # waits here until it becomes the root
    except HypervisorGone:
        return 0  # it never will
    if birth.args.get("roots") == "die at once":
        return 3
    firmware = socket.socket(fileno=birth.files[0])
    # Held as long as this process lives: two roots at a time cannot both have it.
    alone = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    is_alone = False
    with contextlib.suppress(OSError):
        alone.bind(f"\0{birth.name}-{os.getppid()}")
        is_alone = True
    pages = [fd for vp in birth.vps for fd in (vp.sim_fd, vp.sief_fd)]
    values = {
        "pid": os.getpid(),
        "partition": birth.partition,
        "args": dict(birth.args),
        "inodes": [os.fstat(fd).st_ino for fd in pages],
        "alone": is_alone,
    }
    codec.send_message(firmware, ["born", values])
    while (received := codec.receive_message(firmware)) is not None:
        message: Any = received[0]
        verb, values = message
        if verb == "retire":
            return EXIT_RETIRED
        if verb == "promise, then stop":
            port.heartbeat(**values)
            os.kill(os.getpid(), signal.SIGSTOP)
            return 0  # it may be continued, but is not to be heard of again
        if verb == "files of a second birth":
            answer: object = len(port.get_birth().files)
        else:
            answer = getattr(port, verb)(**values)
        codec.send_message(firmware, ["done", {"answer": answer}])
    return 0
