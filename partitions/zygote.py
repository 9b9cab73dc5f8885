"""The zygote: one process with every import done, from which the broker's partitions are forked.

A fresh interpreter needs 100 to 200 ms before a partition's first line runs; a fork from here needs a few. The zygote
forks a middleman, which forks the partition and exits at once: the kernel then hands the partition to the nearest
subreaper, which is the broker. So the broker is the parent of every partition, can wait for each, and takes them
all along when it dies.

Protocol, on the inherited SEQPACKET socket: ["spawn", {"id", "name", "module"}] with two descriptors (the partition's
end of its hypercall socket, the console) is answered by ["spawned", {"id", "pid"}]; pid 0 says that the fork failed.
"""

import argparse
import contextlib
import gc
import os
import socket
import sys
from typing import Final, NoReturn

import bus.native
import partitions.child
import partitions.guest_modules
import partitions.successor
from runtime.codec import DecodeError, close_all, receive_message, send_message
from runtime.lifeline import die_with_parent, name_process

ROOT_MODULE: Final = "partitions.root"  # a new root, where the machine goes on without the old one
_DESCRIPTORS_PER_SPAWN: Final = 2


def main() -> int:
    parser = argparse.ArgumentParser(prog="partitions.zygote", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the broker's socket")
    arguments = parser.parse_args()
    broker_pid = os.getppid()
    die_with_parent(broker_pid)
    name_process("pv-zygote")
    control = socket.socket(fileno=arguments.fd)
    partitions.guest_modules.preload()
    gc.collect()
    gc.freeze()  # what is here now never becomes garbage: a child's collector need not touch (and copy) its pages
    while True:
        try:
            received = receive_message(control, _DESCRIPTORS_PER_SPAWN)
        except DecodeError:
            return 1  # the broker is the only speaker: this is a defect, and dying shows it
        if received is None:
            return 0
        message, fds = received
        match message:
            case ["spawn", {"id": int(partition_id), "name": str(name), "module": str(module)}] if (
                len(fds) == 2
            ):
                pid = _fork_partition(control, broker_pid, name, module, fds[0], fds[1])
                close_all(fds)
                send_message(control, ["spawned", {"id": partition_id, "pid": pid}])
            case _:
                close_all(fds)
                return 1


def _fork_partition(
    control: socket.socket, broker_pid: int, name: str, module: str, hypercall_fd: int, console_fd: int
) -> int:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        middleman = os.fork()
    except OSError:
        os.close(read_end)
        os.close(write_end)
        return 0
    if middleman == 0:
        os.close(read_end)
        _middleman(control, broker_pid, name, module, hypercall_fd, console_fd, write_end)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        text = pipe.read()
    os.waitpid(middleman, 0)
    return int(text) if text else 0


def _middleman(
    control: socket.socket,
    broker_pid: int,
    name: str,
    module: str,
    hypercall_fd: int,
    console_fd: int,
    write_end: int,
) -> NoReturn:
    with contextlib.suppress(OSError):
        pid = os.fork()
        if pid == 0:
            os.close(write_end)
            control.close()
            _partition(broker_pid, name, module, hypercall_fd, console_fd)
        os.write(write_end, str(pid).encode())
    os._exit(0)


def _partition(broker_pid: int, name: str, module: str, hypercall_fd: int, console_fd: int) -> NoReturn:
    status = 1
    try:
        die_with_parent(broker_pid)
        os.setsid()
        name_process(f"pv-{name}")
        os.environ["PARTVISOR_PARTITION"] = name
        if module == ROOT_MODULE:
            status = partitions.successor.succeed(hypercall_fd, console_fd)
        else:
            status = partitions.child.main(hypercall_fd, console_fd)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else (0 if stop.code is None else 1)
    except BaseException:  # the last frame of this process: say why, then end
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    assert bus.native is not None
    sys.exit(main())
