"""The smallest zygote that keeps the broker's protocol, so that the broker is tested without any partition code.

    python -m tests.runtime.standin_zygote --fd N

It forks twice: the middle process ends at once, so the partition becomes the child of the broker.
"""

import importlib
import os
import socket
import sys
import traceback
from typing import Any, Final, NoReturn

from runtime import codec
from runtime.hypercalls.caller import HypercallPort
from runtime.machine.lifeline import die_with_parent

STANDINS: Final = {"partitions.root": "tests.runtime.standin_root"}


def main() -> None:
    broker_pid = os.getppid()
    with socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1])) as sock:
        while (received := codec.receive_message(sock)) is not None:
            message: Any = received[0]
            (verb, request), fds = message, received[1]
            assert verb == "spawn"
            if request["module"] == "no.such.module":
                codec.send_message(sock, ["failed", {"id": request["id"], "reason": "no such module"}])
            elif request["module"] == "kill.the.zygote":
                os._exit(1)
            else:
                module = STANDINS.get(request["module"], request["module"])
                pid = _fork_twice(sock, broker_pid, module, fds)
                codec.send_message(sock, ["spawned", {"id": request["id"], "pid": pid}])
            codec.close_all(fds)


def _fork_twice(sock: socket.socket, broker_pid: int, module: str, fds: list[int]) -> int:
    reader, writer = os.pipe()
    if (middle := os.fork()) == 0:
        if (pid := os.fork()) == 0:
            _become_partition(sock, broker_pid, module, fds, (reader, writer))
        os.write(writer, pid.to_bytes(4, "little"))
        os._exit(0)
    os.waitpid(middle, 0)
    pid = int.from_bytes(os.read(reader, 4), "little")
    os.close(reader)
    os.close(writer)
    return pid


def _become_partition(
    sock: socket.socket, broker_pid: int, module: str, fds: list[int], pipe: tuple[int, int]
) -> NoReturn:
    code = 120
    try:
        sock.close()
        codec.close_all(pipe)
        die_with_parent(broker_pid)
        port_fd, console_fd = fds
        os.dup2(console_fd, 1)
        code = importlib.import_module(module).main(HypercallPort(socket.socket(fileno=port_fd)))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
