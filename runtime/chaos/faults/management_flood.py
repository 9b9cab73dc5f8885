"""A management client that asks and never reads an answer, in a process of its own: `management-flood` starts it.

    python -m runtime.chaos.faults.management_flood PATH

One request to the socket at PATH for each byte that comes on standard input; the end of that ends it. What the machine
does not take is dropped.
"""

import contextlib
import os
import sys

import msgspec
import zmq

from runtime.machine.lifeline import die_with_parent
from runtime.machine.management_wire import Request

_BYTES_AT_ONCE = 4096
_WAITING_MAX = 16  # requests and answers, on our side: the rest is the machine's to keep, or to drop


def main(path: str) -> None:
    die_with_parent(os.getppid())
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    requests = context.socket(zmq.DEALER)
    requests.setsockopt(zmq.RCVHWM, _WAITING_MAX)
    requests.setsockopt(zmq.SNDHWM, _WAITING_MAX)
    requests.connect(f"ipc://{path}")
    number = 0
    while asked := os.read(0, _BYTES_AT_ONCE):
        for _ in asked:
            number += 1
            with contextlib.suppress(zmq.Again):
                requests.send(msgspec.msgpack.encode(Request(number, "list")), zmq.NOBLOCK)
    context.destroy(linger=0)


if __name__ == "__main__":
    main(sys.argv[1])
